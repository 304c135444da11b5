"""The direction whose cosines with all rows are equal, or have chosen ratios."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg import two_floats
from mtlopt.linalg.derivatives import constant, first_only
from mtlopt.linalg.normalise import nan_unless_finite, safe_divide
from mtlopt.linalg.products import dot
from mtlopt.linalg.reductions import reduce_each
from mtlopt.linalg.two_floats import exactly
from mtlopt.linalg.two_tasks import AXES_OF_TWO, Pair, look_at_two, solve_two
from mtlopt.linalg.unit_rows import (
    GRAMIAN_RTOL,
    Rotated,
    SecondLook,
    UnitRows,
    rounding,
    unit_rows,
)


class Ray(NamedTuple):
    """A direction of length one, or zero if no direction exists.

    Attributes:
      coefficients: `y`, `[tasks]`: the direction is `sum_i y_i u_i` over unit rows.
      cosines: cosines of the direction with the rows, `[tasks]`; zero for zero rows.
    """

    coefficients: jax.Array
    cosines: jax.Array


def equiangular_ray(
    cosines: jax.Array,
    norms: jax.Array,
    preference: jax.Array | None = None,
    rotated: Rotated | None = None,
) -> Ray:
    r"""Returns the direction whose cosines with the rows are proportional to `p`.

    .. math:: x = U^+ p = U^T y, \qquad y = C^+ p, \qquad C = U U^T

    If the space of the rows has no such direction, the result is the least-squares
    solution. If `p` is at right angles to the range of `U` up to rounding, the result
    is zero. The result is differentiable if the rank does not change. The derivative
    does not pass through a matrix decomposition or the rotated rows of a `SecondLook`.

    Args:
      cosines: `C`, `[tasks, tasks]`, as `normalise` returns them.
      norms: `[tasks]`, as `normalise` returns them.
      preference: `p`, `[tasks]`; None for ones. Its length does not matter.
      rotated: see `unit_rows`.
    """
    find = look_at_two if len(norms) == 2 else unit_rows
    units = find(*jax.lax.stop_gradient((cosines, norms)), rotated=constant(rotated))
    there = (norms != 0).astype(cosines.dtype)
    target = there if preference is None else there * preference.astype(cosines.dtype)
    return _ray(cosines, target, units)


@jax.custom_jvp
def _ray(cosines: jax.Array, target: jax.Array, units: UnitRows | Pair) -> Ray:
    """Returns the ray of unit rows, differentiable with respect to their cosines."""
    del cosines
    squares, axes = _axes(units)
    if isinstance(units, Pair):
        coefficients, square, kept = solve_two(units, target)
        zero = units.zero
    else:
        coefficients, square, kept = _solve(units, target)
        zero = jnp.sum(squares)
    inside, size = reduce_each(sums=[kept**2, target**2])
    # The tolerance of the rank rule, which decides what the rows' space is.
    is_orthogonal = inside <= GRAMIAN_RTOL * jnp.finfo(axes.dtype).eps * size
    length = jnp.where(is_orthogonal, 0, jnp.sqrt(square))
    ray = Ray(
        coefficients=safe_divide(coefficients, length),
        cosines=safe_divide(dot(axes, kept), length),
    )
    return jax.tree.map(lambda x: nan_unless_finite(x, zero), ray)


def _axes(units: UnitRows | Pair) -> tuple[jax.Array, jax.Array]:
    """Returns the eigenvalues of the cosines, zero beyond the rank, and the axes."""
    if isinstance(units, UnitRows):
        return units.singular**2, units.axes
    return units.squares, jnp.asarray(AXES_OF_TWO, units.squares.dtype)


def _solve(
    units: UnitRows, target: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Does for any number of tasks what `solve_two` does for two."""
    singular, axes, norms, look = units
    kept = jnp.where(singular == 0, 0, dot(axes.T, target))
    stretched = safe_divide(kept, singular)
    found = dot(axes, safe_divide(stretched, singular)), jnp.sum(stretched**2)
    if look is not None:
        # If the rank is below the number of non-zero rows, the norms do not matter, and
        # the rank of rotated rows may be noise.
        is_full = jnp.sum(singular > 0) == jnp.sum(norms > 0)
        found = jax.lax.cond(
            look.is_used & is_full,
            _solve_precisely,
            lambda *_: found,
            *(look, norms, target),
        )
    coefficients, square = found
    return coefficients, square, kept


@_ray.defjvp
def _ray_jvp(primals: Any, tangents: Any) -> Any:
    r"""Differentiates `y = C^+ p`, `P p = C C^+ p` and `|x|^2 = p^T y`.

    .. math:: dy = C^+ (dp - dC \, y + C^+ dC \, N p) + N dC \, C^+ y, \qquad
        d(Pp) = P \, dp + N dC \, y + C^+ dC \, N p, \qquad N = 1 - P

    These are computed in the axes of C, with p and y in units of `|x|`.
    """
    cosines, target, units = primals
    ray = _ray(*primals)
    squares, axes = _axes(units)
    has_rank = squares > 0
    wanted, shift, solved, reached = (
        dot(axes.T, x) for x in (target, tangents[1], ray.coefficients, ray.cosines)
    )
    change = dot(axes.T, dot(tangents[0], axes))
    inverse = safe_divide(jnp.ones_like(wanted), squares)
    inside = jnp.where(has_rank, wanted, 0)
    length = safe_divide(jnp.sqrt(jnp.sum(inside**2)), jnp.sqrt(jnp.sum(reached**2)))
    shift, outside = (safe_divide(x, length) for x in (shift, wanted - inside))

    turned, lost = dot(change, solved), inverse * dot(change, outside)
    around = dot(change, inverse * solved)
    moved = jnp.where(has_rank, inverse * (shift - turned + lost), around)
    image = jnp.where(has_rank, shift + lost, turned)
    growth = jnp.sum(solved * (shift - turned / 2) + around * outside)
    moved, image = moved - growth * solved, image - growth * reached

    refused = first_only(cosines)
    return ray, Ray(dot(axes, moved) + refused, dot(axes, image) + refused)


def _solve_precisely(
    look: SecondLook, norms: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Solves `C y = p` for rows that are nearly dependent.

    .. math:: y = D B (L C' L)^{-1} B^T N p, \qquad
        N_{ii}^2 = (B^{-T} L C' L B^{-1})_{ii}

    The function uses the rotated rows `B^T J` of `unit_rows`. Along a short rotated
    row, `B^T N p` may be a small difference of large terms, in which the rounding
    errors of the norms `D` would dominate. So the norms `N` are computed again from the
    rotated rows, and the difference is computed with two floats for each number.

    Args:
      look: the rotated rows.
      norms: `D`, `[tasks]`.
      target: `p`, `[tasks]`.

    Returns:
      `y` and `|x|^2 = y^T C y`.
    """
    info = jnp.finfo(norms.dtype)
    # Powers of two, which cause no rounding, bring every row to a length of about one.
    scales = jax.lax.reduce_precision(norms, info.nexp, 0)
    mantissas, basis = safe_divide(norms, scales), look.basis * scales[:, None]
    # One Newton step finds the inverse of the basis. It starts from the inverse that
    # would hold without rounding.
    near = basis.T * mantissas[None] * mantissas[None]
    unit = jnp.diag((mantissas > 0).astype(mantissas.dtype))
    product, error = two_floats.matmul(exactly(basis), exactly(near))
    inverse = near, dot(near, (unit - product) - error)

    rows = two_floats.multiply(exactly(look.lengths[:, None]), inverse)
    products = two_floats.matmul(exactly(look.cosines), rows)
    ones = exactly(jnp.ones_like(mantissas)[None])
    squares = two_floats.matmul(ones, two_floats.multiply(rows, products))
    lengths = two_floats.multiply(two_floats.sqrt(squares), exactly(target[None]))
    high, low = two_floats.matmul(lengths, exactly(basis))

    values, turn = look.values, look.turn
    kept = values > rounding(turn) * values[-1]
    wanted = dot(turn.T, safe_divide((high + low)[0], look.lengths))
    solved = jnp.where(kept, safe_divide(wanted, values), 0)
    weights = dot(basis, safe_divide(dot(turn, solved), look.lengths))
    return mantissas * weights, dot(wanted, solved)
