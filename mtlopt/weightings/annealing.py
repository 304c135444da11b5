"""Gradient-norm weights, and learning-rate annealing (Wang et al., 2021 and 2023)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks, check_range, task_mask
from mtlopt.common.task_weights import everyone
from mtlopt.grad import check_task_grads
from mtlopt.linalg.normalise import safe_divide
from mtlopt.rows.arithmetic import sum_entries
from mtlopt.task_grads import TaskGrads
from mtlopt.weightings.by_sizes import move_to_equal, move_towards


class WeightByAnnealingState(NamedTuple):
    """State of `weight_by_norms` and `weight_by_annealing`: mean weights, `[tasks]`."""

    task_weights: jax.Array


def weight_by_norms(
    num_tasks: int, decay: Any = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Weights losses by a moving average of their gradients' inverse norms.

    .. math:: w_i \leftarrow \beta w_i + (1 - \beta) \,
        \frac{\mathrm{mean}_j |g_j|}{|g_i|}

    These are the gradient-norm weights of physics-informed networks, as in jaxpi. Once
    the weights are steady, all `w_i g_i` have the same length. (GradNorm learns its
    weights, and slow tasks get longer gradients.) Weights start at 1. Each update first
    moves the weights with its own gradients, then uses them. A gradient that is zero or
    not finite does not count in the mean, and its weight does not move. The usual form
    is `every(1000, weight_by_norms(T))`; `decay` then applies to every 1000th update.

    Args:
      num_tasks: number of tasks T.
      decay: `beta`, at least 0 and below 1; 0 means no average. jaxpi uses 0.9.

    Raises:
      ValueError: if `decay` is out of range.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_norms(2, decay=0.5)
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [0.0, 4.0]]))
      >>> print(weighting.update(grads, weighting.init(jnp.zeros(2)))[1].task_weights)
      [1.75   0.8125]

    References:
      Wang, Sankaran, Wang and Perdikaris, *An Expert's Guide to Training
      Physics-informed Neural Networks*, arXiv:2308.08468, algorithm 1.
    """

    def move(weights: jax.Array, grads: TaskGrads) -> jax.Array:
        there = everyone(num_tasks, grads.present)
        return move_to_equal(weights, grads.rows().norms(), there, decay)

    return _moving("weight_by_norms", num_tasks, decay, move)


def weight_by_annealing(
    num_tasks: int, residuals: Sequence[int | str] = (0,), decay: Any = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Weights a physics-informed network's losses relative to the equation's loss.

    .. math:: w_i \leftarrow \beta w_i + (1 - \beta) \,
        \frac{\max |g_r|}{\mathrm{mean} |g_i|}, \qquad g_r = \sum_{j \in r} g_j

    This is learning-rate annealing: the largest absolute element of the gradient of the
    equation's loss is divided by the mean absolute element of each other gradient. All
    weights start at 1; the weights of the `residuals` stay 1. Each update first moves
    the weights with its own gradients, then uses them. A weight does not move if its
    task's gradient is zero or not finite. This weighting holds T gradients in memory.
    Weights depend on the parametrization: extra parameters that hardly change a loss
    raise its weight. `weight_by_norms` avoids this, and treats all tasks alike.

    Args:
      num_tasks: number of tasks T.
      residuals: numbers or names of the tasks whose losses come from the equations.
      decay: `beta`, at least 0 and below 1. The authors' code uses 0.9.

    Raises:
      ValueError: if `decay` is out of range, or if `residuals` are not tasks.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_annealing(2, decay=0.5)
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[6.0, -8.0], [1.0, 3.0]]))
      >>> print(weighting.update(grads, weighting.init(jnp.zeros(2)))[1].task_weights)
      [1.  2.5]

    References:
      Wang, Teng and Perdikaris, *Understanding and Mitigating Gradient Flow
      Pathologies*, SIAM Journal on Scientific Computing, 2021, algorithm 1.
    """

    def move(weights: jax.Array, grads: TaskGrads) -> jax.Array:
        members = task_mask("residuals", residuals, grads.tasks)
        known = everyone(num_tasks, grads.present) & ~members
        largest, means = jnp.zeros([], weights.dtype), jnp.zeros_like(weights)
        rows = [row.astype(weights.dtype) for row in grads.rows().leaves()]
        size = sum(row[0].size for row in rows)
        for row in rows:  # absent rows are zero
            largest = jnp.maximum(largest, jnp.max(jnp.abs(row[members].sum(axis=0))))
            means += sum_entries(jnp.abs(row) / size)
        target = safe_divide(largest, means)
        return move_towards(weights, target, known & (target > 0), decay)

    return _moving("weight_by_annealing", num_tasks, decay, move, entries=True)


def _moving(
    name: str,
    num_tasks: int,
    decay: Any,
    move: Callable[[jax.Array, TaskGrads], jax.Array],
    **kept: bool,
) -> optax.GradientTransformationExtraArgs:
    """Builds the weighting whose weights start at 1 and follow `move` at each update.

    Further arguments are those of `TaskGrads.keep_rows`.
    """
    check_num_tasks(num_tasks)
    check_range("decay", decay, 1)

    def init_fn(params: Any) -> WeightByAnnealingState:
        del params
        return WeightByAnnealingState(jnp.ones(num_tasks))

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WeightByAnnealingState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, name)
        grads = grads.keep_rows(**kept)
        weights = move(state.task_weights, grads)
        return grads.scale_by(weights), WeightByAnnealingState(weights)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
