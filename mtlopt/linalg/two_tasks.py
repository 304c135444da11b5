"""Closed forms for two tasks: axes, alignment and equal angles.

For two tasks, a LAPACK decomposition or a loop takes longer to compile than the rest of
a step. The sum and the difference of two unit rows are at right angles, and their
lengths contain the whole eigenvalue decomposition of the cosines.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.unit_rows import (
    GRAMIAN_RTOL,
    WELL_CONDITIONED,
    Rotated,
    look_again,
    rounding,
)

# The axes of two unit rows, as columns: their sum and their difference. The code relies
# on entries that are equal to the bit except for their signs.
AXES_OF_TWO = np.array([[1, 1], [1, -1]]) * 0.5**0.5


class Pair(NamedTuple):
    r"""Two unit rows `u_1`, `u_2`, given by `(u_1 \pm u_2) / \sqrt{2}`.

    Attributes:
      squares: squared lengths of these two vectors, `[2]`; zero for a vector that is
        only rounding error.
      cross: inner product of these two vectors, which is half of
        `|u_1|^2 - |u_2|^2` and therefore only rounding error.
      sine: sine of the angle between the rows; zero if they have rank one.
      zero: zero, or NaN if an input was not finite.
    """

    squares: jax.Array
    cross: jax.Array
    sine: jax.Array
    zero: jax.Array


class Plane(NamedTuple):
    """A Gramian `[[a, b], [b, d]]` of two rows in units of the longer one.

    Attributes:
      entries: `(a, b, d)`.
      root: square root of the determinant; zero if the rank is one.
      largest: the largest eigenvalue.
      unit: length of the longer row.
    """

    entries: tuple[jax.Array, jax.Array, jax.Array]
    root: jax.Array
    largest: jax.Array
    unit: jax.Array


def look_at_two(
    cosines: jax.Array, norms: jax.Array, rotated: Rotated | None = None
) -> Pair:
    """Does for two tasks what `unit_rows` does, with the same rules for the rank.

    Args:
      cosines: `[2, 2]`, as `normalise` returns them.
      norms: `[2]`, as `normalise` returns them.
      rotated: see `unit_rows`.
    """
    cosine, eps = cosines[0, 1], float(jnp.finfo(cosines.dtype).eps)
    if rotated is None:
        found, tolerance = _as_it_is(cosine, norms, None), (GRAMIAN_RTOL * eps) ** 0.5
    else:
        size = jnp.abs(cosine)
        well = 1 - size > eps**WELL_CONDITIONED * (1 + size)
        found = look_again(well, _as_it_is, _turn, rotated, cosine, norms)
        tolerance = rounding(cosines)
    squares, cross = found[:2], found[2]
    largest, product = jnp.maximum(squares[0], squares[1]), squares[0] * squares[1]
    sine = jnp.sqrt(jnp.maximum(product - cross * cross, 0))
    is_full = sine > tolerance * largest
    return Pair(
        squares=jnp.where(is_full | (squares == largest), squares, 0),
        cross=jnp.where(is_full, cross, 0),
        sine=jnp.where(is_full, sine, 0),
        zero=0 * (cosine + cosines[0, 0] + cosines[1, 1]),
    )


def _as_it_is(
    cosine: jax.Array, norms: jax.Array, rotated: Rotated | None
) -> jax.Array:
    del norms, rotated
    return jnp.stack([1 + cosine, 1 - cosine, 0 * cosine])


def _turn(cosine: jax.Array, norms: jax.Array, rotated: Rotated) -> jax.Array:
    ones = jnp.ones_like(norms)
    basis = safe_divide(ones, norms)[:, None] * AXES_OF_TWO.astype(norms.dtype)
    products = rotated(basis).astype(cosine.dtype)
    return jnp.stack([products[0, 0], products[1, 1], products[0, 1]])


def plane_of_two(pair: Pair, norms: jax.Array) -> Plane:
    """Returns the Gramian of two rows from the sum and difference of the unit rows.

    No entry loses digits, whatever the ratio of the norms.

    Args:
      pair: the unit rows.
      norms: `[2]`.
    """
    unit = jnp.maximum(norms[0], norms[1])
    first, second = safe_divide(norms[0], unit), safe_divide(norms[1], unit)
    plus, minus = pair.squares[0] / 2, pair.squares[1] / 2
    entries = (
        first * first * (plus + minus + pair.cross),
        first * second * (plus - minus),
        second * second * (plus + minus - pair.cross),
    )
    a, b, d = entries
    spread = jnp.sqrt((a - d) ** 2 + (2 * b) ** 2)
    return Plane(entries, first * second * pair.sine, (a + d + spread) / 2, unit)


def axes_of_two(plane: Plane) -> tuple[jax.Array, jax.Array]:
    r"""Returns the singular values of two rows, descending, and their axes.

    .. math:: \sigma_1^2 = (a + d + h) / 2, \qquad \sigma_1 \sigma_2 = \sqrt{\det G},
        \qquad h^2 = (a - d)^2 + 4 b^2, \qquad q_1 \propto (a - d + h, 2 b)

    No digits cancel, so each number is accurate up to its own rounding.

    Args:
      plane: the Gramian `G`.
    """
    a, b, d = plane.entries
    largest = jnp.sqrt(plane.largest)
    smallest = safe_divide(plane.root, largest)
    apart = jnp.abs(a - d) + (2 * plane.largest - a - d)
    tangent = safe_divide(2 * b, apart)
    long, short = 1 / jnp.sqrt(1 + tangent**2), tangent / jnp.sqrt(1 + tangent**2)
    first, second = jnp.where(a >= d, long, short), jnp.where(a >= d, short, long)
    # The second axis is the first, rotated by a right angle.
    axes = jnp.stack([first, -second, second, first]).reshape(2, 2)
    return jnp.stack([largest, smallest]) * plane.unit, axes


def align_two(plane: Plane, is_mean: bool) -> jax.Array:
    r"""Returns the matrix that aligns two rows, see `aligned_matrix`.

    .. math:: A = \sigma_2 G^{-1/2}
        = \frac{\mathrm{adj}(G) + \sqrt{\det G} \, I}{\sigma_1^2 + \sqrt{\det G}}

    At rank one, the matrix is `G` divided by its trace. No digits cancel.

    Args:
      plane: the Gramian `G`.
      is_mean: whether to use the root mean square of both singular values instead of
        the smaller one.
    """
    a, b, d = plane.entries
    root, has_rank = plane.root, plane.root > 0
    factor = safe_divide(jnp.ones_like(a), plane.largest + root)
    if is_mean:
        mean = jnp.sqrt(plane.largest * ((a + d) / 2))
        factor *= jnp.where(has_rank, safe_divide(mean, root), 1)
    first, second = jnp.where(has_rank, d + root, a), jnp.where(has_rank, a + root, d)
    between = jnp.where(has_rank, -b, b)
    matrix = jnp.stack([first, between, between, second]) * factor
    return matrix.reshape(2, 2)


def solve_two(pair: Pair, target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Solves `C y = p` for two unit rows, as far as their rank allows.

    .. math:: y = Q (L C' L)^{-1} Q^T N p, \qquad N = \mathrm{diag}(|u_1|, |u_2|)

    Here `L C' L` is the Gramian of the sum and the difference of the rows. If the
    difference of the rows is short, an entry of `Q^T N p` may also be small although
    its two terms are large. The part of this entry that comes from the difference of
    the norms in `N` is computed from `cross`, which is accurate to all its digits.

    Args:
      pair: the unit rows.
      target: `p`, `[2]`.

    Returns:
      `y`, `|x|^2 = y^T C y`, and the components of `p` along the axes, with zero for
      axes that do not count for the rank.
    """
    lengths = jnp.sqrt(pair.squares)
    size = jnp.sqrt((pair.squares[0] + pair.squares[1]) / 2)
    along, across = _turned(target[0], target[1]), _turned(target[0], -target[1])
    kept = jnp.where(lengths > 0, along, 0)
    wanted = safe_divide(size * along + pair.cross / (2 * size) * across, lengths)
    cosine = safe_divide(pair.cross, lengths[0] * lengths[1])
    solved = (wanted - cosine * wanted[::-1]) / ((1 - cosine) * (1 + cosine))
    found = safe_divide(solved, lengths)
    return _turned(found[0], found[1]), jnp.sum(wanted * solved), kept


def _turned(first: jax.Array, second: jax.Array) -> jax.Array:
    """Rotates a vector of two numbers into the axes or back, by the same formula."""
    return 0.5**0.5 * jnp.stack([first + second, first - second])
