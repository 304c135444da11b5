"""Row scales out first: unit rows, their cosines and their norms."""

import dataclasses

import jax
import jax.numpy as jnp

from mtlopt.linalg.products import diagonal, present_products
from mtlopt.linalg.reductions import reduce_each


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns `numerator / denominator`, and zero where the denominator is zero.

    The `where` is on both the denominator and the result, so that neither the value
    nor the gradient is NaN where the denominator is zero. A NaN or an infinity in
    either argument stays visible.
    """
    is_zero = denominator == 0
    quotient = numerator / jnp.where(is_zero, jnp.ones_like(denominator), denominator)
    return jnp.where(is_zero, jnp.zeros_like(quotient), quotient)


def safe_root(square: jax.Array) -> jax.Array:
    """Returns `sqrt(square)`; if it is not positive, zero, with a zero derivative.

    NaN stays visible.
    """
    is_low = square <= 0
    return jnp.where(is_low, 0, jnp.sqrt(jnp.where(is_low, 1, square)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledGramian:
    r"""A Gramian of rows whose squares may be no numbers of their dtype.

    .. math:: G = S^{-1} M S^{-1}, \qquad S = \mathrm{diag}(s)

    Attributes:
      matrix: `M`, the Gramian of the rows times their scales, `[tasks, tasks]`.
      scales: `s`, powers of two, `[tasks]`; ones in the ordinary range.
    """

    matrix: jax.Array
    scales: jax.Array

    def __len__(self) -> int:
        """The number of tasks, as that of a matrix."""
        return len(self.scales)


Gramian = jax.Array | ScaledGramian


def keeps_squares(
    squares: jax.Array, size: int, present: jax.Array | None = None
) -> jax.Array:
    """Returns whether squared norms are right as they are, a bool scalar.

    They are not if one nearly overflows, or if the entries' squares below the smallest
    normal number, which are flushed to zero, may be more than rounding together. A row
    of zeros cannot be told from one whose squares are all flushed.

    Args:
      squares: of the rows' norms, `[tasks]`.
      size: number of entries of a row.
      present: Tasks to look at, bool `[tasks]`; `None` means all.
    """
    info = jnp.finfo(squares.dtype)
    # Sums and products of squares with ordinary numbers must not overflow either.
    largest = float(info.max * info.eps)
    is_safe = (squares >= size * float(info.tiny / info.eps)) & (squares <= largest)
    return jnp.all(is_safe if present is None else is_safe | ~present)


def scale_of(largest: jax.Array) -> jax.Array:
    """Returns powers of two that bring the largest entries of rows to about one.

    Args:
      largest: absolute values, `[tasks]`.
    """
    largest = jax.lax.stop_gradient(largest)
    info = jnp.finfo(largest.dtype)
    inside = jnp.clip(largest, float(info.tiny), float(1 / info.tiny))
    return jnp.where(
        largest == 0, 1, 1 / jax.lax.reduce_precision(inside, info.nexp, 0)
    )


def only_present(gramian: Gramian, present: jax.Array | None) -> Gramian:
    """Returns the Gramian with zeros for absent tasks, see `present_products`."""
    if not isinstance(gramian, ScaledGramian):
        return present_products(gramian, present)
    matrix = present_products(gramian.matrix, present)
    return ScaledGramian(matrix, gramian.scales)


def common_scale(gramian: Gramian) -> tuple[jax.Array, jax.Array]:
    """Returns the Gramian of rows times one power of two, and that number.

    It is the scale of the longest row, so nothing overflows; one in the ordinary range,
    where the Gramian is returned as it is. What is much shorter than the longest row
    may flush to zero.

    Args:
      gramian: `G`, `[tasks, tasks]`.
    """
    if not isinstance(gramian, ScaledGramian):
        gramian = jnp.asarray(gramian)
        return gramian, jnp.ones([], gramian.dtype)
    matrix, scales = gramian.matrix, jax.lax.stop_gradient(gramian.scales)
    common = jnp.min(scales)
    shares = common / scales
    return matrix * shares[:, None] * shares[None], common


def normalise(
    gramian: Gramian, present: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""Splits a Gramian into the cosines between its rows and the row norms.

    .. math:: G = D C D, \qquad D = \mathrm{diag}(|g_1|, \dots, |g_T|)

    Everything that decides (rank, conflict, optimality) is decided on `C`, so a
    task's scale never decides it. Exact up to one rounding per entry for norms whose
    squares neither overflow nor underflow; no absolute threshold. A `ScaledGramian`,
    as the rows of a `TaskGrads` give it, is exact for all norms that are numbers.

    A zero row gives a zero row and column of `C`; every other diagonal entry is
    exactly 1 and every cosine lies in [-1, 1]. NaN and infinite entries of the
    Gramian give NaN in `C`. Differentiable; zero rows have a derivative of zero.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`, or what
        `Rows.scaled_gramian` returns.
      present: Tasks to look at, bool `[tasks]`; the others are made zero rows,
        whatever their entries hold. `None` means all.

    Returns:
      The cosines `C`, `[tasks, tasks]`, and the norms `d`, `[tasks]`.

    Raises:
      ValueError: If `gramian` is not square or `present` does not fit it.

    Examples:
      >>> import jax.numpy as jnp
      >>> cosines, norms = normalise(jnp.array([[4.0, -3.0], [-3.0, 9.0]]))
      >>> print(cosines, norms)
      [[ 1.  -0.5]
       [-0.5  1. ]] [2. 3.]
    """
    scales = None
    if isinstance(gramian, ScaledGramian):
        gramian, scales = gramian.matrix, jax.lax.stop_gradient(gramian.scales)
    gramian = present_products(gramian, present, "gramian")
    squares = diagonal(gramian)
    # Twice, because the derivative of the root at zero is infinite.
    divisors = jnp.sqrt(jnp.where(squares == 0, 1, squares))
    norms = jnp.where(squares == 0, 0, divisors)
    norms = norms if scales is None else norms / scales
    is_zero = norms == 0
    # One norm at a time: the product of two small norms may underflow.
    cosines = gramian / divisors[:, None] / divisors[None]
    # Clipping would hide an infinity, a new diagonal a NaN: 0 * inf is NaN.
    cosines = jnp.clip(cosines, -1, 1) + 0 * cosines
    cosines = jnp.where(is_zero[:, None] | is_zero[None], 0, cosines)
    unit = jnp.where(is_zero, 0, 1 + 0 * norms)
    return jnp.where(jnp.eye(len(norms), dtype=bool), unit, cosines), norms


def nan_unless_finite(result: jax.Array, source: jax.Array) -> jax.Array:
    """Returns `result`, or NaN throughout if `source` has an entry that is not finite.

    Masks and comparisons hide a NaN; this makes it visible again.
    """
    source = jax.lax.stop_gradient(source)
    largest, minus_smallest = reduce_each(maxima=[source, -source])
    # Zero or NaN. A literal NaN would stop `jax_debug_nans` on healthy numbers.
    zero = (0 * largest + 0 * minus_smallest).astype(result.dtype)
    return jnp.where(zero == 0, result, zero)
