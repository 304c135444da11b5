"""EPO: exact Pareto search (Mahapatra and Rajan, ICML 2020)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_task_vector, check_range, preference_argument
from mtlopt.aggregators.by_weights import aggregate_with_state
from mtlopt.common.task_weights import TaskWeightsState, mean_weights
from mtlopt.linalg.hull import furthest_in_hull
from mtlopt.linalg.normalise import (
    Gramian,
    nan_unless_finite,
    normalise,
    safe_divide,
)
from mtlopt.linalg.products import dot
from mtlopt.rows.protocol import Rows
from mtlopt.task_grads import TaskGrads


def epo_weights(
    gramian: Gramian,
    losses: Any,
    preference: Any = None,
    tolerance: Any = 1e-4,
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the weights `beta` `[tasks]` of `epo`, non-negative and summing to 1.

    The weights solve the linear program of `epo` exactly. Zero gradients and duplicates
    count like any other. If several solutions exist, the result is a vertex of their
    set. Equal gradients `g` give the direction `g`. Negative `losses` count as zero.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -0.5], [-0.5, 1.0]])
      >>> print(*epo_weights(gramian, jnp.array([3.0, 1.0])))  # doctest: +NUMBER
      0.9871 0.0129
    """
    cosines, norms = normalise(gramian, present)
    dtype = norms.dtype
    # The result does not depend on this unit.
    largest = jax.lax.stop_gradient(jnp.max(norms))
    lengths = safe_divide(norms, largest)
    losses = as_task_vector("losses", losses, len(norms)).astype(dtype)
    if present is not None:
        losses = jnp.where(present, losses, 0)
    preference = mean_weights(len(norms), preference, present).astype(dtype)
    weighted = preference * jnp.maximum(losses, 0)
    pulls, non_uniformity = _adjustments(weighted, preference)

    is_balanced = non_uniformity <= tolerance
    along = dot(cosines, lengths * jnp.where(is_balanced, 1, pulls))
    helps = along > 0
    least = jnp.where(jnp.any(helps), along, 0)
    bounds = jnp.where(
        weighted == jnp.max(weighted), 0, jnp.where(helps, -jnp.inf, least)
    )
    bounds = jnp.where(is_balanced, 0, bounds)
    weights = furthest_in_hull(cosines, lengths, along, bounds, present)
    return nan_unless_finite(weights, weighted)


def _adjustments(
    weighted: jax.Array, preference: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns `a`, `[tasks]`, and the non-uniformity."""
    counts = preference > 0  # a task without a preference has no target share
    num_tasks = jnp.sum(counts, dtype=weighted.dtype)
    shares = safe_divide(weighted, jnp.sum(weighted))
    # A loss of zero has no logarithm.
    logs = jnp.log(num_tasks * jnp.maximum(shares, jnp.finfo(shares.dtype).eps))
    logs = jnp.where(counts, logs, 0)
    non_uniformity = jnp.sum(shares * logs)
    return preference * (logs - non_uniformity), non_uniformity


def epo(
    num_tasks: int, preference: Any = None, tolerance: Any = 1e-4
) -> optax.GradientTransformationExtraArgs:
    r"""Searches for the point of the Pareto front with given ratios of losses: EPO.

    .. math:: p_1 L_1 = \dots = p_T L_T

    With `q_i = p_i L_i / sum_j p_j L_j`, the non-uniformity `mu = sum_i q_i log(T q_i)`
    is the distance from these ratios. Its gradient is a multiple of `sum_i a_i g_i`.
    Until `mu` is zero, `d` lowers `mu` as fast as any convex combination can:

    .. math:: d = \sum_i \beta_i g_i, \qquad \beta = \mathrm{argmax}_\beta
        \sum_i a_i \langle g_i, d \rangle \quad \text{subject to} \quad
        \langle g_j, d \rangle \ge b_j, \qquad a_i = p_i (\log(T q_i) - \mu)

    Let `h_j = <g_j, sum_i a_i g_i>`. The loss with the largest `p_j L_j` may not rise:
    `b_j = 0`. A task with `h_j > 0` has no bound. For any other task, `b_j = h_j`
    limits how fast its loss rises. If no task has `h_j > 0`, no loss may rise. If `mu`
    is at most `tolerance`, then `a = 1` and `b = 0`: no loss may rise, and the sum of
    the losses falls as fast as possible. So the losses first move to the ray with the
    given ratios, and some may rise. Then they descend along the ray or move along the
    front. If the front is not convex, EPO can find points that no weighted sum reaches.

    After scaling by weightings, the losses must be positive, with zero as their lower
    bound. Otherwise, their ratios mean nothing. Raising one `p_i` lets the other losses
    rise more. A task whose preference is zero has no target share.

    Args:
      num_tasks: number of tasks T.
      preference: `p`, `[tasks]` or by name, at least 0, used as given; `1/T` if None.
        A larger `p_i` means a smaller `L_i`, as in `weight_by_chebyshev`.
      tolerance: largest `mu` taken as 0; at the authors' 1e-4, `p_i L_i` differ by 3 %.

    Raises:
      ValueError: if an argument is out of range or does not fit the tasks.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 1.0])
      >>> aggregator = mtlopt.epo(2, preference=jnp.array([1.0, 3.0]))
      >>> print(aggregator.update(grads, aggregator.init(jnp.zeros(2)))[0])
      [0. 1.]

    References:
      Mahapatra and Rajan, *Multi-Task Learning with User Preferences*, ICML 2020.
    """
    check_range("tolerance", tolerance)
    read = preference_argument(preference, num_tasks)

    def weigh(
        grads: TaskGrads, rows: Rows, state: TaskWeightsState, **_: Any
    ) -> tuple[jax.Array, TaskWeightsState]:
        weights = epo_weights(
            rows.scaled_gramian(grads.present),
            # Rows are gradients of the scaled losses.
            grads.loss_scales * grads.losses.astype(grads.loss_scales.dtype),
            read(grads.tasks),
            tolerance,
            grads.present,
        )
        return weights, state

    return aggregate_with_state(
        "epo", num_tasks, lambda: TaskWeightsState.uniform(num_tasks), weigh
    )
