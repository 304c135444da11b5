"""Row scales out first: unit rows, their cosines and their norms."""

import jax
import jax.numpy as jnp

from mtlopt.linalg.products import diagonal
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


def normalise(
    gramian: jax.Array, present: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""Splits a Gramian into the cosines between its rows and the row norms.

    .. math:: G = D C D, \qquad D = \mathrm{diag}(|g_1|, \dots, |g_T|)

    Everything that decides (rank, conflict, optimality) is decided on `C`, so a
    task's scale never decides it. Exact up to one rounding per entry for norms whose
    squares neither overflow nor underflow; no absolute threshold.

    A zero row gives a zero row and column of `C`; every other diagonal entry is
    exactly 1 and every cosine lies in [-1, 1]. NaN and infinite entries of the
    Gramian give NaN in `C`. Differentiable away from zero rows.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
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
    gramian = jnp.asarray(gramian)
    if gramian.ndim != 2 or gramian.shape[0] != gramian.shape[1]:
        raise ValueError(f"`gramian` must be square, got shape {gramian.shape}.")
    if present is not None:
        present = jnp.asarray(present, dtype=bool)
        if present.shape != gramian.shape[:1]:
            raise ValueError(
                f"`present` must have shape {gramian.shape[:1]}, got {present.shape}."
            )
        gramian = jnp.where(present[:, None] & present[None], gramian, 0)
    norms = jnp.sqrt(diagonal(gramian))
    is_zero = norms == 0
    divisors = jnp.where(is_zero, 1, norms)
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
