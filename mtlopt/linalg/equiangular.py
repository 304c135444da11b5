"""The direction at equal, or chosen, angles to all rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg import two_floats
from mtlopt.linalg.normalise import nan_unless_finite, safe_divide
from mtlopt.linalg.products import dot
from mtlopt.linalg.reductions import reduce_each
from mtlopt.linalg.two_floats import exactly
from mtlopt.linalg.unit_rows import GRAMIAN_RTOL, UnitRows, rounding


class Ray(NamedTuple):
    """A direction of length one, or zero if there is none.

    Attributes:
      coefficients: `y`, `[tasks]`: the direction is `sum_i y_i u_i` over unit rows.
      cosines: with the rows, `[tasks]`; zero for zero rows.
    """

    coefficients: jax.Array
    cosines: jax.Array


def equiangular_ray(units: UnitRows, preference: jax.Array | None = None) -> Ray:
    r"""The direction whose cosines with the rows are as the preference says.

    .. math:: x = U^+ p = U^T y, \qquad y = C^+ p, \qquad C = U U^T

    Least squares where the rows' space has no such direction, and zero where it is at
    right angles to `p`, to within rounding.

    Args:
      units: the unit rows `U`.
      preference: `p`, `[tasks]`; None for ones. Its length does not matter.
    """
    singular, axes, norms = units[:3]
    there = (norms != 0).astype(axes.dtype)
    target = there if preference is None else there * preference.astype(axes.dtype)
    kept = jnp.where(singular == 0, 0, dot(axes.T, target))
    stretched = safe_divide(kept, singular)
    inside, size, square, total = reduce_each(
        sums=[kept**2, target**2, stretched**2, singular]
    )
    # The same tolerance as the rank rule, which decides what the rows' space is.
    is_orthogonal = inside <= GRAMIAN_RTOL * jnp.finfo(axes.dtype).eps * size
    length = jnp.where(is_orthogonal, 0, jnp.sqrt(square))
    ray = Ray(
        coefficients=safe_divide(dot(axes, safe_divide(stretched, singular)), length),
        cosines=safe_divide(dot(axes, kept), length),
    )
    return jax.tree.map(lambda x: nan_unless_finite(x, total), ray)


def equal_projections(units: UnitRows) -> jax.Array:
    r"""`G^+ n`, `n_i = |g_i|`, with the digits that its sum needs.

    .. math:: G^{-1} n = B (L C' L)^{-1} B^T n, \qquad
        n_i^2 = (B^{-T} L C' L B^{-1})_{ii}

    with the rotated rows `B^T J` of `unit_rows`. If the rows nearly are dependent, the
    sum of these weights depends on the rounding of `n`: along a short rotated row,
    `B^T n` is a small difference of large terms. So `n` is computed anew, as the
    rotated rows have it, and the difference taken, in two floats.

    Args:
      units: the unit rows.

    Returns:
      `[tasks]`, up to a positive factor; zero for zero rows.
    """
    info = jnp.finfo(units.norms.dtype)
    # A power of two, which rounds nothing, makes the longest row about one long.
    scale = jax.lax.reduce_precision(jnp.max(units.norms), info.nexp, 0)
    norms, basis = safe_divide(units.norms, scale), units.basis * scale
    # The inverse of the basis, by one step of Newton from the one without rounding.
    near = basis.T * norms[None] * norms[None]
    unit = jnp.diag((norms > 0).astype(norms.dtype))
    product, error = two_floats.matmul(exactly(basis), exactly(near))
    inverse = near, dot(near, (unit - product) - error)

    rows = two_floats.multiply(exactly(units.lengths[:, None]), inverse)
    products = two_floats.matmul(exactly(units.cosines), rows)
    ones = exactly(jnp.ones_like(norms)[None])
    squares = two_floats.matmul(ones, two_floats.multiply(rows, products))
    high, low = two_floats.matmul(two_floats.sqrt(squares), exactly(basis))

    values, turn = jnp.linalg.eigh(units.cosines, symmetrize_input=False)
    kept = values > rounding(turn) * values[-1]
    target = dot(turn.T, safe_divide((high + low)[0], units.lengths))
    solved = dot(turn, jnp.where(kept, safe_divide(target, values), 0))
    return dot(basis, safe_divide(solved, units.lengths))
