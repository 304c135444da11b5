"""ExcessMTL: weights by excess risk (He et al., ICML 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks, check_positive
from mtlopt.common.row_state import check_row_state, zero_rows
from mtlopt.common.task_weights import everyone
from mtlopt.grad import check_task_grads
from mtlopt.labels import Rules
from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.simplex import share_out
from mtlopt.rows.arithmetic import sum_entries
from mtlopt.rows.protocol import Leaves

# Squares stay this factor below the largest number, so that two can be added.
_HEADROOM = 4


class WeightByExcessState(NamedTuple):
    """State of `weight_by_excess`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update; they sum to T.
      squares: sums of squared gradients over all updates, with shapes `[tasks, ...]`.
      initial: `[tasks]`, the first excess risk of each task; zero before there is one.
    """

    task_weights: jax.Array
    squares: Leaves
    initial: jax.Array


def weight_by_excess(
    num_tasks: int, labels: Rules, learning_rate: Any = 0.01
) -> optax.GradientTransformationExtraArgs:
    r"""Gives more weight to losses that are far above their optimum: ExcessMTL.

    .. math:: w_i \propto w_i \exp(\eta \, E_i / E_i[0]), \qquad
        E_i = g_i^\top \mathrm{diag}(S_i)^{-1/2} g_i, \qquad S_i = \sum_t g_i[t]^2

    `E_i` uses AdaGrad's estimate of the Hessian to measure how far loss i is above its
    optimum. So a large loss caused by noisy labels does not give a large weight. The
    ratio `E_i / E_i[0]` has no unit: a constant factor that multiplies a loss does not
    matter. Weights are 1 at the first update and sum to T. Elements whose gradient was
    always zero add zero. If a task has only such elements, its ratio is 1. Squares that
    underflow count as zero; squares are cut at a quarter of the largest number.

    Args:
      num_tasks: number of tasks T.
      labels: which task owns which leaf, as given to `task_grad`.
      learning_rate: `eta`, positive.

    Raises:
      ValueError: if `learning_rate` is not positive or gradients do not fit `labels`.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_excess(2, "shared", learning_rate=1.0)
      >>> state = weighting.init(jnp.zeros(2))
      >>> for size in (1.0, 0.0):
      ...     grads = mtlopt.TaskGrads.from_rows(jnp.diag(jnp.array([3.0, size])))
      ...     grads, state = weighting.update(grads, state)
      >>> print(*state.task_weights)  # doctest: +NUMBER
      1.34 0.66

    References:
      He et al., *Robust Multi-Task Learning with Excess Risks*, ICML 2024, equations 6,
      7 and 9, with weights that sum to T as in the authors' code.
    """
    check_num_tasks(num_tasks)
    check_positive("learning_rate", learning_rate)

    def init_fn(params: Any) -> WeightByExcessState:
        return WeightByExcessState(
            jnp.ones(num_tasks),
            zero_rows(params, labels, num_tasks),
            jnp.zeros(num_tasks),
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WeightByExcessState]:
        del extra_args
        grads = check_task_grads(
            updates, num_tasks, params, state, "weight_by_excess"
        ).keep_rows(entries=True)
        rows = grads.rows().leaves()
        check_row_state(state.squares, rows)
        there = everyone(num_tasks, grads.present)
        weights = state.task_weights
        squares, excess = list(state.squares), jnp.zeros_like(weights)
        for index, row in enumerate(rows):  # absent rows are zero
            dtype = squares[index].dtype
            most = float(jnp.finfo(dtype).max) / _HEADROOM
            new = jnp.minimum(jnp.square(row.astype(dtype)), most)
            squares[index] = jnp.minimum(squares[index] + new, most)
            risk = safe_divide(new, jnp.sqrt(squares[index]))
            excess += sum_entries(risk).astype(excess.dtype)
        initial = jnp.where(there & (state.initial == 0), excess, state.initial)
        ratio = jnp.where(initial == 0, 1, safe_divide(excess, initial))
        # A weight that reached zero would never rise again.
        lasting = jnp.maximum(weights, jnp.finfo(weights.dtype).tiny)
        logits = jnp.where(there, jnp.log(lasting) + learning_rate * ratio, -jnp.inf)
        shares = jax.nn.softmax(logits).astype(weights.dtype)
        weights = share_out(shares, weights, num_tasks, grads.present)
        return grads.scale_by(weights), WeightByExcessState(weights, squares, initial)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
