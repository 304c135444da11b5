"""Singular values and right vectors with high relative accuracy (Jacobi)."""

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide

_MAX_SWEEPS = 20  # 3 to 6 are enough in practice; a cap so that the loop always ends


def graded_svd(matrix: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Singular values and right singular vectors of a column-scaled matrix.

    .. math:: M = B D = P \Sigma Q^T

    `B` is well conditioned on its rank, and `D` is any diagonal, for instance 1 to
    1e-6. A bidiagonal SVD (LAPACK, `jnp.linalg.svd`) has an error relative to the
    *largest* singular value: in float32, with row scales from 1 to 1e-6 and 32 tasks,
    its smallest singular vectors are wrong by 10 % and more. Here the error is that
    of `B` alone, whatever `D` is, in two steps that never mix columns of different
    scale:

    1. QR with column pivoting, `M = Q_1 R`, largest remaining column first.
    2. One-sided Jacobi: pairs of rows of `R` are rotated until all rows are
       orthogonal. What is left is `Sigma Q^T`. Rotations run on disjoint pairs at
       once (round-robin order).

    Stops when the largest cosine between two rows that a sweep met is below
    `eps ** 0.75` (convergence is quadratic), or after 20 sweeps. Duplicate columns
    and zero columns cost rank, nothing else: columns that depend on earlier ones to
    rounding are never pivots. The zero matrix gives zeros. NaN gives NaN or zeros and
    ends at once. Not reverse-differentiable (`while_loop`; JAX raises).

    Args:
      matrix: `M`, `[tasks, tasks]`.
      rank: The number of singular values to keep, an int32 scalar.

    Returns:
      The singular values, `[tasks]`, descending, zero from `rank` on; and `Q^T`,
      `[tasks, tasks]`, one right singular vector a row, zero rows from `rank` on.

    Example:
      >>> import jax.numpy as jnp
      >>> singular, right = graded_svd(jnp.array([[3.0, 0.0], [0.0, 1e-6]]), 2)
      >>> print(singular, jnp.abs(right))
      [3.e+00 1.e-06] [[1. 0.]
       [0. 1.]]

    References:
      Demmel and Veselić, *Jacobi's method is more accurate than QR*, SIAM J. Matrix
      Anal. Appl. 13(4), 1992. Drmač and Veselić, *New fast and accurate Jacobi SVD
      algorithm I*, 2008 (QR first).
    """
    num_tasks = matrix.shape[0]
    rows = _orthogonal_rows(_pivoted_triangle(matrix, rank))
    singular = jnp.linalg.norm(rows, axis=1)
    order = jnp.argsort(-singular)
    kept = jnp.arange(num_tasks) < rank
    singular = jnp.where(kept, singular[order], 0)
    return singular, safe_divide(rows[order], singular[:, None])


def _pivoted_triangle(matrix: jax.Array, rank: jax.Array) -> jax.Array:
    """The rows `R` of `M = Q_1 R`, in pivoting order and without permuting columns."""
    num_tasks = matrix.shape[0]
    rtol = 4 * num_tasks * jnp.finfo(matrix.dtype).eps
    norms = jnp.linalg.norm(matrix, axis=0)

    def step(i, carry):
        residual, rows = carry
        remaining = jnp.linalg.norm(residual, axis=0)
        # A column that earlier pivots explain to rounding holds only noise.
        remaining = jnp.where(remaining > rtol * norms, remaining, 0)
        pivot = jnp.argmax(remaining)
        length = jnp.where(i < rank, remaining[pivot], 0)
        unit = safe_divide(residual[:, pivot], length)
        row = jnp.dot(unit, residual, precision=jax.lax.Precision.HIGHEST)
        residual = residual - unit[:, None] * row
        residual = jnp.where(jnp.arange(num_tasks) == pivot, 0, residual)
        return residual, rows.at[i].set(row)

    init = matrix, jnp.zeros_like(matrix)
    return jax.lax.fori_loop(0, num_tasks, step, init)[1]


def _orthogonal_rows(matrix: jax.Array) -> jax.Array:
    """Rotates pairs of rows until all rows are orthogonal (one-sided Jacobi)."""
    num_tasks = matrix.shape[0]
    half = (num_tasks + 1) // 2
    tol = jnp.finfo(matrix.dtype).eps ** 0.75
    rows = jnp.pad(matrix, ((0, 2 * half - num_tasks), (0, 0)))

    def rotate(carry, _):
        """One round: `half` disjoint pairs, then every row moves one seat on."""
        first, second, largest = carry
        inner = jnp.sum(first * second, axis=1)
        first_square = jnp.sum(first * first, axis=1)
        second_square = jnp.sum(second * second, axis=1)
        cosine = safe_divide(
            safe_divide(inner, jnp.sqrt(first_square)), jnp.sqrt(second_square)
        )
        # tan of the smaller angle that makes the two rows orthogonal.
        zeta = safe_divide(second_square - first_square, 2 * inner)
        sign = jnp.where(zeta >= 0, 1, -1).astype(zeta.dtype)
        tangent = sign / (jnp.abs(zeta) + jnp.sqrt(1 + zeta * zeta))
        tangent = jnp.where(inner == 0, 0, tangent)[:, None]
        cos = jax.lax.rsqrt(1 + tangent * tangent)
        sin = cos * tangent
        first, second = cos * first - sin * second, sin * first + cos * second
        seats = (
            jnp.concatenate([first[:1], second[:1], first[1:-1]])[:half],
            jnp.concatenate([second[1:], first[-1:]]),
        )
        if half == 1:
            seats = first, second
        return (*seats, jnp.maximum(largest, jnp.max(jnp.abs(cosine)))), None

    def sweep(carry):
        first, second, _, count = carry
        init = first, second, jnp.zeros((), matrix.dtype)
        rounds = 2 * half - 1
        (first, second, largest), _ = jax.lax.scan(rotate, init, length=rounds)
        return first, second, largest, count + 1

    def unfinished(carry):
        return (carry[2] > tol) & (carry[3] < _MAX_SWEEPS)

    init = rows[:half], rows[half:], jnp.ones((), matrix.dtype), 0
    first, second, *_ = jax.lax.while_loop(unfinished, sweep, init)
    return jnp.concatenate([first, second])[:num_tasks]
