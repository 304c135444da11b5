"""CR-MOGM: weights averaged over time (Zhou et al., NeurIPS 2022)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_range
from mtlopt.aggregators.by_weights import aggregate_with_state
from mtlopt.aggregators.mgda import mgda_weights
from mtlopt.common.task_weights import everyone
from mtlopt.linalg.normalise import common_scale
from mtlopt.rows.arithmetic import moving_average
from mtlopt.rows.protocol import Rows
from mtlopt.task_grads import TaskGrads


class CrMogmState(NamedTuple):
    """State of `cr_mogm`: the averaged weights and the tasks seen so far, `[tasks]`."""

    task_weights: jax.Array
    average: jax.Array
    seen: jax.Array


def cr_mogm(
    num_tasks: int,
    weights: Callable[..., jax.Array] = mgda_weights,
    decay: Any = 0.9,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the weights of another method over the updates: CR-MOGM.

    .. math:: d = \sum_i \alpha_i s_i g_i, \qquad
        \alpha \leftarrow \beta \alpha + (1 - \beta) \, \hat\alpha(G)

    A batch's weights depend on its noise. So in general, the expected direction is not
    a linear combination of the expected gradients. Averages start at each task's first
    weight and depend little on any single batch. The guarantees of the other method,
    such as no conflicts, are lost. For constant gradients, averaging changes nothing.

    Args:
      num_tasks: number of tasks T.
      weights: the other method, a function such as `mgda_weights`. It takes the Gramian
        `[tasks, tasks]` and `present`, and returns weights `[tasks]`.
      decay: `beta`, at least 0 (no average) and below 1. The paper raises it towards 1.

    Raises:
      ValueError: if an argument is out of range, or `weights` returns a wrong shape.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> aggregator = mtlopt.cr_mogm(2, decay=0.75)
      >>> state, update = aggregator.init(jnp.zeros(2)), jax.jit(aggregator.update)
      >>> for rows in ([[1.0, 0.0], [2.0, 1.0]], [[2.0, 1.0], [1.0, 0.0]]):
      ...     grads = mtlopt.TaskGrads.from_rows(jnp.array(rows))
      ...     updates, state = update(grads, state)
      >>> print(*updates, *state.task_weights)  # doctest: +NUMBER
      1.75 0.75 0.75 0.25

    References:
      Zhou et al., *On the Convergence of Stochastic Multi-Objective Gradient
      Manipulation and Beyond*, NeurIPS 2022, algorithm 1.
    """
    check_range("decay", decay, below=1)

    def initial() -> CrMogmState:
        # Two arrays, because the caller may donate the state.
        first, average = (jnp.full(num_tasks, 1 / num_tasks, float) for _ in range(2))
        return CrMogmState(first, average, jnp.zeros(num_tasks, bool))

    def weigh(
        grads: TaskGrads, rows: Rows, state: CrMogmState, **_: Any
    ) -> tuple[jax.Array, CrMogmState]:
        present = grads.present
        gramian = rows.scaled_gramian(present)
        if weights is not mgda_weights:  # a user's function takes a plain matrix
            gramian, _unit = common_scale(gramian)
        found = weights(gramian, present)
        if found.shape != (num_tasks,):
            raise ValueError(
                f"`weights` must return one weight per task, shape ({num_tasks},), got "
                f"shape {found.shape}."
            )
        (average,) = moving_average(
            [state.average], [found], state.seen, decay, present
        )
        there = everyone(num_tasks, present)
        state = state._replace(average=average, seen=state.seen | there)
        return jnp.where(there, average, 0), state

    return aggregate_with_state("cr_mogm", num_tasks, initial, weigh)
