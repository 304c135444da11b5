"""Decompositions of small matrices, in closed form for two tasks.

For two tasks a decomposition of LAPACK takes longer to compile than the rest of a step.
"""

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide, scale_of


def axes_of_cosines(cosines: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the eigenvalues and eigenvectors of a matrix of cosines.

    Args:
      cosines: `C`, `[tasks, tasks]`; its diagonal is one, or zero for zero rows.

    Returns:
      The values `[tasks]`, ascending, and the vectors as columns `[tasks, tasks]`.

    Examples:
      >>> import jax.numpy as jnp
      >>> values, axes = axes_of_cosines(jnp.array([[1.0, 0.5], [0.5, 1.0]]))
      >>> print(values)
      [0.5 1.5]
    """
    if len(cosines) != 2:
        values, axes = jnp.linalg.eigh(cosines, symmetrize_input=False)
        return values, axes
    first, cosine, second = cosines[0, 0], cosines[0, 1], cosines[1, 1]
    smaller, larger = jnp.minimum(first, second), jnp.maximum(first, second)
    values = jnp.stack([smaller - jnp.abs(cosine), larger + jnp.abs(cosine)])
    # Difference and sum of two rows, or each of them for itself.
    half, sign = jnp.full_like(cosine, 0.5**0.5), jnp.sign(cosine)
    sums = jnp.stack([half, half, -sign * half, sign * half])
    one = (first <= second).astype(cosines.dtype)
    alone = jnp.stack([one, 1 - one, 1 - one, one])
    return values, jnp.where(cosine == 0, alone, sums).reshape(2, 2)


def axes_of_columns(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Returns the singular values and right singular vectors of a matrix.

    .. math:: M = P \Sigma Q^T

    For two columns `n_1 u_1`, `n_2 u_2` of lengths 1 and `r`, with the cosine `c` and
    the sine `s` between them:

    .. math:: 2 \sigma_1^2 = 1 + r^2 + h, \quad \sigma_1 \sigma_2 = r s, \quad
        q_1 \propto (1, t), \quad t = \frac{2 r c}{1 - r^2 + h}, \quad
        h^2 = (1 - r^2)^2 + (2 r c)^2.

    Nothing cancels, so that each number is right to its own rounding for any lengths.
    The sine is the determinant of the unit columns, which is right if `M` is a diagonal
    matrix times an orthogonal one times a diagonal one, as roots of Gramians are.

    Args:
      matrix: `M`, square.

    Returns:
      `Sigma`, descending, and `Q`, whose columns are the vectors.

    Examples:
      >>> import jax.numpy as jnp
      >>> singular, right = axes_of_columns(jnp.array([[0.0, 3.0], [1e-9, 0.0]]))
      >>> print(singular)
      [3.e+00 1.e-09]
    """
    if len(matrix) != 2:
        _, singular, right = jnp.linalg.svd(matrix)
        return singular, right.T
    units = scale_of(jnp.max(jnp.abs(matrix), axis=0))  # no square overflows
    columns = matrix * units[None]
    lengths = jnp.sqrt(jnp.sum(columns**2, axis=0))
    (a, b), (c, d) = safe_divide(columns, lengths[None])
    cosine, sine = a * b + c * d, jnp.abs(a * d - b * c)

    lengths /= units
    first, second = lengths
    longer, shorter = jnp.maximum(first, second), jnp.minimum(first, second)
    ratio = safe_divide(shorter, longer)
    apart, twice = (1 - ratio) * (1 + ratio), 2 * ratio * cosine
    spread = jnp.sqrt(apart**2 + twice**2)
    largest = jnp.sqrt((1 + ratio**2 + spread) / 2)
    singular = jnp.stack([largest * longer, safe_divide(shorter * sine, largest)])

    tangent = safe_divide(twice, apart + spread)
    own = 1 / jnp.sqrt(1 + tangent**2)
    other = own * tangent
    as_sorted = jnp.stack([own, -other, other, own])
    swapped = jnp.stack([other, own, own, -other])
    return singular, jnp.where(first >= second, as_sorted, swapped).reshape(2, 2)
