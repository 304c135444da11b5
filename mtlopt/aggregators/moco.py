"""MoCo: multi-objective gradient correction (Fernando et al., ICLR 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks, check_positive, check_range
from mtlopt.aggregators.modo import modo_weights
from mtlopt.common.row_state import check_row_state, zero_rows
from mtlopt.grad import check_task_grads
from mtlopt.labels import Rules
from mtlopt.linalg.simplex import share_out, shares_of
from mtlopt.rows.arithmetic import moving_average
from mtlopt.rows.material import MaterialRows
from mtlopt.rows.protocol import Leaves


class MocoState(NamedTuple):
    """State of `moco`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update; zero for absent tasks.
      shares: `[tasks]`, the weights that the next update starts from; they sum to one.
      tracked: running averages of the task gradients; leaves have shape `[tasks, ...]`.
      seen: `[tasks]` bool, the tasks that have had a gradient.
    """

    task_weights: jax.Array
    shares: jax.Array
    tracked: Leaves
    seen: jax.Array


def moco(
    num_tasks: int,
    labels: Rules,
    decay: Any = 0.5,
    learning_rate: Any = 0.1,
    regularization: Any = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages gradients over time and updates the weights from the averages: MoCo.

    .. math:: y_i \leftarrow \beta y_i + (1 - \beta) g_i, \qquad
        w \leftarrow \Pi_\Delta \left( w - \gamma (Y Y^\top + \rho I) w \right),
        \qquad d = Y^\top w

    `Y` has the rows `y_i`, and `Pi_Delta` projects onto the simplex. Averages have
    little noise, so noise hardly biases `w`. Unlike `modo`, MoCo needs no second batch.
    `y_i` starts as the first gradient of task i, so the first update has full length.
    For equal gradients g, `d` is g. `d` may conflict with a task. A zero gradient pulls
    its average to zero. Gradients of heads are not averaged. The steps of `w` scale as
    in `modo`; with `decay=0`, they equal the steps of `modo` on one batch.

    Args:
      num_tasks: number of tasks T.
      labels: which task owns which leaf, as given to `task_grad`.
      decay: `beta`, at least 0 (no memory) and below 1. The paper sets `1 - beta`.
      learning_rate: `gamma`, positive, in units of one over a squared gradient norm.
      regularization: `rho`, at least 0; it makes the weights more equal.

    Raises:
      ValueError: if an argument is out of range, or gradients do not match `labels`.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> aggregator = mtlopt.moco(2, "shared")
      >>> print(jax.jit(aggregator.update)(grads, aggregator.init(jnp.zeros(2)))[0])
      [0.575 0.85 ]

    References:
      Fernando et al., *Mitigating Gradient Bias in Multi-objective Learning*, ICLR
      2023, algorithm 1; here the direction uses the new averages and weights.
    """
    check_num_tasks(num_tasks)
    check_range("decay", decay, below=1)
    check_positive("learning_rate", learning_rate)
    check_range("regularization", regularization)

    def init_fn(params: Any) -> MocoState:
        # Two arrays, because the caller may donate the state.
        first, shares = (jnp.full(num_tasks, 1 / num_tasks, float) for _ in range(2))
        rows = zero_rows(params, labels, num_tasks)
        return MocoState(first, shares, rows, jnp.zeros(num_tasks, bool))

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, MocoState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "moco")
        rows = grads.rows().leaves()
        check_row_state(state.tracked, rows)
        kept = moving_average(state.tracked, rows, state.seen, decay, grads.present)
        tracked = MaterialRows(num_tasks, kept)
        dtype = state.shares.dtype
        moved = modo_weights(
            tracked.scaled_gramian(grads.present),
            state.shares,
            learning_rate,
            regularization,
            grads.present,
        )
        shares = share_out(moved.astype(dtype), state.shares, 1.0, grads.present)
        weights = shares_of(shares, grads.present)
        direction = [
            leaf.astype(row.dtype)
            for leaf, row in zip(tracked.combine(weights), rows, strict=True)
        ]
        seen = state.seen | (True if grads.present is None else grads.present)
        return grads.updates(direction), MocoState(weights, shares, kept, seen)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
