"""Projection onto the dual cone: the directions that conflict with no row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.nonnegative import minimise_nonnegative
from mtlopt.linalg.normalise import Gramian, nan_unless_finite, normalise, safe_divide
from mtlopt.linalg.products import dot


class ConeProjection(NamedTuple):
    """Projections onto the dual cone of the rows.

    Attributes:
      weights: `v`, `[problems, tasks]`, at least `lower`, zero for absent tasks.
      residual: The largest violation of the optimality conditions, `[problems]`:
        `-<g_i, d>`, or `|<g_i, d>|` if `v_i` is above its bound. The violation is
        divided by `|g_i|` and by the sum of the lengths of the terms of `d`, `sum_j
        (|u_j| + v_j - u_j) |g_j|`.
    """

    weights: jax.Array
    residual: jax.Array


def project_dual_cone(
    gramian: Gramian, lower: jax.Array, present: jax.Array | None = None
) -> ConeProjection:
    r"""Projects combinations of the task gradients onto the cone without conflicts.

    .. math:: \mathrm{argmin}_{d : J d \ge 0} |d - J^T u| = J^T v, \qquad
        v = \mathrm{argmin}_{v \ge u} v^T G v

    This solves the problem for all rows `u` of `lower` at once. With unit rows of `J`
    and `y = v - u`, the problem is `min_{y >= 0} y'Cy/2 + u'Cy`. So its condition
    number does not depend on the norms of the rows of `J`. `minimise_nonnegative`
    solves it until the optimality conditions hold to rounding.

    `v >= u` holds exactly. `d` is unique; `v` is not unique if the rows are linearly
    dependent. A zero row keeps `v = u`. `d` is orthogonal to opposed rows. Duplicate
    rows split their weight arbitrarily. NaN or infinity in the input gives NaN, without
    iterations. The result is differentiable as in `minimise_nonnegative`.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      lower: `u`, `[problems, tasks]`, of any sign.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero and
        constrain nothing.

    Returns:
      The weights `v` and the residual of each problem.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> print(project_dual_cone(gramian, jnp.eye(2)).weights)
      [[1.   0.25]
       [1.   1.  ]]

    References:
      Quinton and Rey, *Jacobian Descent for Multi-Objective Optimization*,
      arXiv:2406.16232, proposition 1.
    """
    cosines, norms = normalise(gramian, present)
    lower = jnp.asarray(lower)
    if lower.ndim != 2 or lower.shape[1:] != norms.shape:
        raise ValueError(
            f"`lower` must have shape (problems, {len(norms)}), got {lower.shape}."
        )
    lower = lower.astype(norms.dtype)
    if present is not None:
        lower = jnp.where(present[None], lower, 0)
    lengths = lower * norms[None]
    size = jnp.sum(jnp.abs(lengths), axis=1, keepdims=True)
    unit = safe_divide(lengths, size)
    minimise = jax.vmap(minimise_nonnegative, in_axes=(None, 0))
    solution, residual = minimise(cosines, dot(unit, cosines))
    # Exactly at least `lower`, because the added part is not negative.
    weights = lower + safe_divide(solution * size, norms[None])
    projection = ConeProjection(weights, residual)
    # A NaN in `C` makes the residual of every problem NaN.
    return jax.tree.map(lambda x: nan_unless_finite(x, residual[0]), projection)
