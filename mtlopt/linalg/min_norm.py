"""The point of smallest norm in the convex hull of the task gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.nonnegative import least_distance
from mtlopt.linalg.normalise import (
    Gramian,
    nan_unless_finite,
    normalise,
    safe_divide,
    safe_root,
)
from mtlopt.linalg.products import dot
from mtlopt.linalg.reductions import reduce_each


class MinNormPoint(NamedTuple):
    """The min-norm point of the convex hull of the rows.

    Attributes:
      weights: `w`, `[tasks]`, non-negative, summing to 1, zero for absent tasks.
      norm: `|sum_i w_i g_i|`, a scalar; zero at a Pareto-stationary point.
      residual: The largest relative violation of the optimality conditions, a scalar:
        `(|d|^2 - <g_i, d>) / (|g_i| |d|)` over tasks, or `|d| / min_i |g_i|` if this is
        smaller. Here `d` is the min-norm point.
    """

    weights: jax.Array
    norm: jax.Array
    residual: jax.Array


def min_norm_point(gramian: Gramian, present: jax.Array | None = None) -> MinNormPoint:
    r"""Finds the exact min-norm point of the convex hull of the task gradients.

    .. math:: \min_w w^T G w \quad \text{subject to} \quad w \ge 0, \; 1^T w = 1

    Let `u_i` be the unit rows, `a_i = min_j |g_j| / |g_i|`, and `w_i` proportional to
    `a_i y_i`. Then the optimality conditions equal those of another problem: find the
    shortest `d` with `<u_i, d> >= a_i`. The function `least_distance` finds the
    coefficients `y` of this `d`. If zero is in the hull, there is no such `d`, and the
    combination of the rows with coefficients `y` is zero. The condition number does not
    depend on the norms of the rows. The optimality conditions hold up to rounding,
    relative to the coefficients.

    The weights are feasible by construction. A Gramian determines `|d|` only down to
    `sqrt(eps)` times the rows' norms (3e-4 in float32). Below this limit, `norm` is
    only rounding error, but `d` itself is reduced to a few `eps`, by steps that use
    `C y` instead of the square `y^T C y`.

    If there are zero rows, they share all the weight. If zero is in the hull, `d` is
    zero up to rounding, and the weights are one of several possible choices. NaN or
    infinity in the input gives NaN, without iterations. The weights and the norm are
    differentiable if the set of rows with a positive weight does not change. The
    residual is not differentiable.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights, the norm and the optimality residual.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> point = min_norm_point(jnp.array([[1.0, -1.0], [-1.0, 4.0]]))
      >>> print(jnp.round(point.weights, 4), jnp.round(point.norm, 4))
      [0.7143 0.2857] 0.6547

    References:
      Désidéri, C. R. Math. 350, 2012; Sener and Koltun, *Multi-Task Learning as
      Multi-Objective Optimization*, NeurIPS 2018, equation 3.
    """
    cosines, norms = normalise(gramian, present)
    eligible = norms > 0
    is_zero = norms == 0
    if present is not None:
        is_zero &= present
    num_zero, smallest = reduce_each(
        sums=[is_zero.astype(norms.dtype)],
        maxima=[jnp.where(eligible, -norms, -jnp.inf)],
    )
    smallest = jnp.where(jnp.isinf(smallest), 0, -smallest)
    target = jnp.where(eligible, safe_divide(smallest, norms), 0)  # a
    solution = least_distance(cosines, target).coefficients  # y

    scaled = solution * target  # proportional to w
    gradient = dot(cosines, solution)
    total, square, largest = reduce_each(
        sums=[scaled, solution * gradient], maxima=[gradient]
    )
    # |d| in units of the smallest norm, and <u_i, d> likewise.
    relative_norm = safe_divide(safe_root(square), total)
    slack = relative_norm * target - safe_divide(
        safe_divide(gradient, total), relative_norm
    )
    residual = jnp.max(jnp.where(eligible, slack, 0), initial=0)
    residual = jax.lax.stop_gradient(jnp.minimum(residual, relative_norm))

    any_zero = num_zero > 0
    shared = is_zero.astype(norms.dtype) / jnp.maximum(num_zero, 1)
    point = MinNormPoint(
        weights=jnp.where(any_zero, shared, safe_divide(scaled, total)),
        norm=jnp.where(any_zero, 0, relative_norm * smallest),
        residual=jnp.where(any_zero, 0, residual),
    )
    # A NaN in `C` makes `C y` NaN, whatever `y` is.
    return jax.tree.map(lambda x: nan_unless_finite(x, largest), point)
