"""Gradients scaled to equal norms, as in dual-balancing (Lin et al., 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks, check_range
from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.common.row_state import check_row_state, zero_rows
from mtlopt.grad import check_task_grads
from mtlopt.labels import Rules
from mtlopt.linalg.normalise import Gramian, nan_unless_finite, normalise, safe_divide
from mtlopt.linalg.reductions import reduce_each
from mtlopt.rows.arithmetic import moving_average
from mtlopt.rows.material import MaterialRows
from mtlopt.rows.protocol import Leaves


class BalanceNormsState(NamedTuple):
    """State of `balance_norms` with `labels`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update; zero for absent tasks.
      average: running averages of the task gradients; leaves have shape `[tasks, ...]`.
      seen: `[tasks]` bool, the tasks that have had a gradient.
    """

    task_weights: jax.Array
    average: Leaves
    seen: jax.Array


def balance_norms_weights(
    gramian: Gramian, present: jax.Array | None = None
) -> jax.Array:
    r"""Returns weights `alpha` `[tasks]` that scale all gradients to the largest norm.

    .. math:: \alpha_i = \max_j |g_j| \, / \, |g_i|

    A zero gradient gets weight zero. All other weights are at least 1. Equal gradients
    and a single task get 1. Inner products are ignored, so opposed gradients cancel and
    every duplicate counts. Weights are differentiable if the largest norm is unique.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> print(jax.jit(balance_norms_weights)(jnp.diag(jnp.array([4.0, 1.0, 0.0]))))
      [1. 2. 0.]
    """
    _, norms = normalise(gramian, present)
    (largest,) = reduce_each(maxima=[norms])
    return nan_unless_finite(safe_divide(largest, norms), norms)


def balance_norms(
    num_tasks: int, labels: Rules | None = None, decay: Any = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Scales all task gradients to the largest norm and adds them.

    .. math:: d = \max_j |y_j| \sum_i \frac{y_i}{|y_i|}, \qquad
        y_i \leftarrow \beta y_i + (1 - \beta) s_i g_i

    `y_i` starts as the first gradient of task i. All tasks contribute equally; the
    units of the losses change only the length of `d`. `d` may conflict with a task.
    DB-MTL is `chain(weight_by_log(T), balance_norms(T, labels, decay))`.

    Args:
      num_tasks: number of tasks T.
      labels: the `labels` that you gave `task_grad`; None if nothing is averaged.
      decay: `beta`, at least 0 (no memory) and below 1; without `labels` it must be 0.

    Raises:
      ValueError: if `decay` is out of range, or the gradients do not match `labels`.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[100.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.balance_norms(2)
      >>> print(jax.jit(aggregator.update)(grads, aggregator.init(jnp.zeros(2)))[0])
      [100. 100.]

    References:
      Lin et al., *Dual-Balancing for Multi-Task Learning*, arXiv:2308.12029, 2023.
    """
    check_num_tasks(num_tasks)
    check_range("decay", decay, below=1)
    if labels is None:
        if not isinstance(decay, int | float) or decay:
            raise ValueError(
                f"`labels` must be given if `decay` is not 0, got {decay}, because the "
                "averages have the shapes of the shared leaves."
            )
        return aggregate_by_weights(
            "balance_norms",
            num_tasks,
            lambda rows, present: balance_norms_weights(
                rows.scaled_gramian(present), present
            ),
        )

    def init_fn(params: Any) -> BalanceNormsState:
        return BalanceNormsState(
            jnp.full(num_tasks, 1 / num_tasks, float),
            zero_rows(params, labels, num_tasks),
            jnp.zeros(num_tasks, bool),
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, BalanceNormsState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "balance_norms")
        rows = grads.rows().leaves()
        check_row_state(state.average, rows)
        kept = moving_average(state.average, rows, state.seen, decay, grads.present)
        average = MaterialRows(num_tasks, kept)
        weights = balance_norms_weights(
            average.scaled_gramian(grads.present), grads.present
        )
        direction = [
            leaf.astype(row.dtype)
            for leaf, row in zip(average.combine(weights), rows, strict=True)
        ]
        seen = state.seen | (True if grads.present is None else grads.present)
        weights = weights.astype(state.task_weights.dtype)
        return grads.updates(direction), BalanceNormsState(weights, kept, seen)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
