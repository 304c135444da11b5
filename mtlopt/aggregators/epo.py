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
    r"""Weights of EPO: the solution of its linear program.

    .. math:: \beta = \mathrm{argmax}_{\beta \ge 0, \, 1^T \beta = 1} \beta^T G a
        \quad \text{subject to} \quad (G \beta)_j \ge b_j

    See `epo` for `a` and `b`. Solved exactly, by `furthest_in_hull`. Zero rows and
    duplicates are points of the hull as any other: of several solutions it is a vertex.
    NaN in, NaN out.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      losses: `L`, `[tasks]`; negative ones count as zero.
      preference: `p`, `[tasks]`, used as it is; None for one over the number of tasks.
      tolerance: largest non-uniformity that counts as none.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `beta`, `[tasks]`, not negative and summing to one.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -0.5], [-0.5, 1.0]])
      >>> print(epo_weights(gramian, jnp.array([3.0, 1.0])))  # doctest: +NUMBER
      [0.9871 0.0129]

    References:
      Mahapatra and Rajan, *Multi-Task Learning with User Preferences: Gradient Descent
      with Controlled Ascent in Pareto Optimization*, ICML 2020.
    """
    cosines, norms = normalise(gramian, present)
    dtype = norms.dtype
    # A unit, which does not matter.
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
    counts = preference > 0  # a task without preference has no share to be given
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
    r"""Searches the point of the Pareto front whose losses have given ratios: EPO.

    .. math:: p_1 L_1 = \dots = p_T L_T

    How far the losses are from it says the non-uniformity
    `mu = sum_i q_i log(T q_i)` of `q_i = p_i L_i / sum_j p_j L_j`, whose gradient is
    a multiple of `sum_i a_i g_i`. Until it is zero, the update takes it down as fast as
    a convex combination of the gradients can:

    .. math:: d = \sum_i \beta_i g_i, \qquad \beta = \mathrm{argmax}_\beta
        \sum_i a_i \langle g_i, d \rangle \quad \text{subject to} \quad
        \langle g_j, d \rangle \ge b_j, \qquad a_i = p_i (\log(T q_i) - \mu)

    with `h_j = <g_j, sum_i a_i g_i>`. The task of the largest `p_j L_j` may not rise:
    `b_j = 0`. A task with `h_j > 0` has no bound; the others may rise by no more than
    `b_j = h_j`, and not at all if there is no task with `h_j > 0`. Where `mu` is at
    most `tolerance` no loss may rise, and the sum of all falls as fast as it can:
    `a = 1`, `b = 0`. So the losses reach the ray of the preference first, some of them
    rising, and then descend along it; on a front they move along it. It finds points
    that no weighted sum has, where the front is not convex.

    Losses must be positive, and zero their best value: ratios mean nothing else. They
    and the gradients are those behind the weightings that are chained before. The
    larger the preference, the more the others may rise. A task whose preference is zero
    has no share of its own. On T equal gradients g it returns g. Costs one backward
    pass per task.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      preference: `p`, `[tasks]` or by name, not negative, used as it is; None for 1/T.
        The larger, the smaller the loss, as in `weight_by_chebyshev`.
      tolerance: of `mu`, not negative; 1e-4, of the authors' code, lets two losses
        differ by about three percent.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `tolerance` is negative, or `preference` is not one number for each
        task, is negative, or is zero for all.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> rows = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> grads = mtlopt.TaskGrads.from_rows(rows, losses=[1.0, 1.0])
      >>> aggregator = mtlopt.epo(2, preference=jnp.array([1.0, 3.0]))
      >>> updates, state = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(updates)
      [0. 1.]

    References:
      Mahapatra and Rajan, *Multi-Task Learning with User Preferences: Gradient Descent
      with Controlled Ascent in Pareto Optimization*, ICML 2020. Their code multiplies
      the update by T when it trains networks, and by ten times `mu`, at least by one,
      on toy problems; this is `d` itself. Where `mu` is zero the code also bounds its
      change, and then may find no solution; without that bound, as here and with the
      code's `relax`, there always is one.
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
