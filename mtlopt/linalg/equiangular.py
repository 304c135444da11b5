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
    singular, axes, norms = units.singular, units.axes, units.norms
    there = (norms != 0).astype(axes.dtype)
    target = there if preference is None else there * preference.astype(axes.dtype)
    kept = jnp.where(singular == 0, 0, dot(axes.T, target))
    stretched = safe_divide(kept, singular)
    inside, size, square, total = reduce_each(
        sums=[kept**2, target**2, stretched**2, singular]
    )
    coefficients = dot(axes, safe_divide(stretched, singular))
    if units.refined is not None:
        # At missing rank no norm decides, and rotated rows may have a rank of noise.
        is_full = jnp.sum(singular > 0) == jnp.sum(norms > 0)
        coefficients, square = jax.lax.cond(
            units.refined & is_full,
            _solve_precisely,
            _solved,
            units,
            target,
            coefficients,
            square,
        )
    # The same tolerance as the rank rule, which decides what the rows' space is.
    is_orthogonal = inside <= GRAMIAN_RTOL * jnp.finfo(axes.dtype).eps * size
    length = jnp.where(is_orthogonal, 0, jnp.sqrt(square))
    ray = Ray(
        coefficients=safe_divide(coefficients, length),
        cosines=safe_divide(dot(axes, kept), length),
    )
    return jax.tree.map(lambda x: nan_unless_finite(x, total), ray)


def _solved(
    _units: UnitRows, _target: jax.Array, coefficients: jax.Array, square: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return coefficients, square


def _solve_precisely(
    units: UnitRows, target: jax.Array, *_: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Solves `C y = p` for rows that nearly are dependent.

    .. math:: y = D B (L C' L)^{-1} B^T N p, \qquad
        N_{ii}^2 = (B^{-T} L C' L B^{-1})_{ii}

    with the rotated rows `B^T J` of `unit_rows`. Along a short one, `B^T N p` may be a
    small difference of large terms, which the rounding of the norms `D` would decide.
    So norms `N` are computed anew, as the rotated rows have them, and the difference is
    taken, in two floats.

    Args:
      units: the unit rows.
      target: `p`, `[tasks]`.

    Returns:
      `y` and `|x|^2 = y^T C y`.
    """
    info = jnp.finfo(units.norms.dtype)
    # Powers of two, which round nothing, make every row about one long.
    scales = jax.lax.reduce_precision(units.norms, info.nexp, 0)
    norms, basis = safe_divide(units.norms, scales), units.basis * scales[:, None]
    # The inverse of the basis, by one step of Newton from the one without rounding.
    near = basis.T * norms[None] * norms[None]
    unit = jnp.diag((norms > 0).astype(norms.dtype))
    product, error = two_floats.matmul(exactly(basis), exactly(near))
    inverse = near, dot(near, (unit - product) - error)

    rows = two_floats.multiply(exactly(units.lengths[:, None]), inverse)
    products = two_floats.matmul(exactly(units.cosines), rows)
    ones = exactly(jnp.ones_like(norms)[None])
    squares = two_floats.matmul(ones, two_floats.multiply(rows, products))
    lengths = two_floats.multiply(two_floats.sqrt(squares), exactly(target[None]))
    high, low = two_floats.matmul(lengths, exactly(basis))

    values, turn = jnp.linalg.eigh(units.cosines, symmetrize_input=False)
    kept = values > rounding(turn) * values[-1]
    wanted = dot(turn.T, safe_divide((high + low)[0], units.lengths))
    solved = jnp.where(kept, safe_divide(wanted, values), 0)
    weights = dot(basis, safe_divide(dot(turn, solved), units.lengths))
    return norms * weights, dot(wanted, solved)
