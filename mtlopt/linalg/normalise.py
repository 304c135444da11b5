"""Splits a Gramian of rows into the cosines between the rows and their norms."""

import dataclasses

import jax
import jax.numpy as jnp

from mtlopt.linalg.products import diagonal, present_products
from mtlopt.linalg.reductions import reduce_each


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns `numerator / denominator`, or zero if the denominator is zero.

    `jnp.where` is applied to the denominator and to the result, so that a zero
    denominator makes neither the value nor the gradient NaN. A NaN or an infinity in
    either argument stays visible.
    """
    is_zero = denominator == 0
    quotient = numerator / jnp.where(is_zero, jnp.ones_like(denominator), denominator)
    return jnp.where(is_zero, jnp.zeros_like(quotient), quotient)


def safe_root(square: jax.Array) -> jax.Array:
    """Returns `sqrt(square)`, or zero without a slope if `square` is not positive.

    NaN stays visible.
    """
    is_low = square <= 0
    return jnp.where(is_low, 0, jnp.sqrt(jnp.where(is_low, 1, square)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledGramian:
    r"""A Gramian of rows whose squares may overflow or underflow.

    .. math:: G = S^{-1} M S^{-1}, \qquad S = \mathrm{diag}(s)

    Attributes:
      matrix: `M`, the Gramian of the rows times their scales, `[tasks, tasks]`.
      scales: `s`, powers of two, `[tasks]`; ones if the squares need no scaling.
    """

    matrix: jax.Array
    scales: jax.Array

    def __len__(self) -> int:
        """Returns the number of tasks, like `len` of a matrix."""
        return len(self.scales)


Gramian = jax.Array | ScaledGramian


def keeps_squares(
    squares: jax.Array, size: int, present: jax.Array | None = None
) -> jax.Array:
    """Returns whether squared norms can be used as they are, a bool scalar.

    Squared norms cannot be used if one of them nearly overflows. The square of an entry
    is flushed to zero if it is below the smallest normal number. So squared norms also
    cannot be used if the flushed squares may add up to more than a rounding error. A
    zero row cannot be told apart from a row whose squares are all flushed.

    Args:
      squares: squares of the rows' norms, `[tasks]`.
      size: number of entries of a row.
      present: Tasks to use, bool `[tasks]`; `None` means all.
    """
    info = jnp.finfo(squares.dtype)
    # Sums and products of squares with ordinary numbers must not overflow either.
    largest = float(info.max * info.eps)
    is_safe = (squares >= size * float(info.tiny / info.eps)) & (squares <= largest)
    return jnp.all(is_safe if present is None else is_safe | ~present)


def scale_of(largest: jax.Array) -> jax.Array:
    """Returns powers of two that bring the largest entries of rows to about one.

    Args:
      largest: absolute values of the largest entries, `[tasks]`.
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
    """Returns the Gramian of the rows times a power of two, and this power of two.

    The power of two is the scale of the longest row, so nothing overflows. If the rows
    were not scaled, the power is one, and the Gramian does not change. Rows that are
    much shorter than the longest row may become zero.

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

    All decisions (rank, conflict, optimality) are made on `C`, so the scale of a task
    never affects them. The split is exact up to one rounding per entry if no squared
    norm overflows or underflows; there is no absolute threshold. With a
    `ScaledGramian`, which the rows of a `TaskGrads` return, the split is exact for all
    finite norms.

    A zero row gives a zero row and column of `C`. Every other diagonal entry is exactly
    1, and every cosine lies in [-1, 1]. NaN and infinite entries of the Gramian give
    NaN in `C`. The split is differentiable; zero rows have a derivative of zero.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`, or what
        `Rows.scaled_gramian` returns.
      present: Tasks to use, bool `[tasks]`; the others become zero rows, whatever their
        entries are. `None` means all.

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
    # Zeros are replaced first, because the derivative of the root at zero is infinite.
    divisors = jnp.sqrt(jnp.where(squares == 0, 1, squares))
    norms = jnp.where(squares == 0, 0, divisors)
    norms = norms if scales is None else norms / scales
    is_zero = norms == 0
    # Divide by one norm at a time, because the product of two small norms may
    # underflow.
    cosines = gramian / divisors[:, None] / divisors[None]
    # Clipping would hide an infinity, and a new diagonal a NaN; 0 * inf is NaN.
    cosines = jnp.clip(cosines, -1, 1) + 0 * cosines
    cosines = jnp.where(is_zero[:, None] | is_zero[None], 0, cosines)
    unit = jnp.where(is_zero, 0, 1 + 0 * norms)
    return jnp.where(jnp.eye(len(norms), dtype=bool), unit, cosines), norms


def nan_unless_finite(result: jax.Array, source: jax.Array) -> jax.Array:
    """Returns `result`, or NaN everywhere if an entry of `source` is not finite.

    Masks and comparisons hide a NaN; this function makes it visible again.
    """
    source = jax.lax.stop_gradient(source)
    largest, minus_smallest = reduce_each(maxima=[source, -source])
    # Zero or NaN. A literal NaN would make `jax_debug_nans` stop even if all numbers
    # are finite.
    zero = (0 * largest + 0 * minus_smallest).astype(result.dtype)
    return jnp.where(zero == 0, result, zero)
