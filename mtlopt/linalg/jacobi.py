"""Singular values and right vectors with high relative accuracy (Jacobi)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide

_MAX_SWEEPS = 20  # 3 to 6 are enough in practice; a cap so that the loop always ends


def graded_svd(matrix: jax.Array, rank: jax.Array | int) -> tuple[jax.Array, jax.Array]:
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
    scale = jnp.max(jnp.abs(matrix))  # so that no square over- or underflows
    triangle = _pivoted_triangle(safe_divide(matrix, scale), rank)
    rows = _orthogonal_rows(triangle)
    singular = jnp.linalg.norm(rows, axis=1)
    order = jnp.argsort(-singular)
    kept = jnp.arange(matrix.shape[0]) < rank
    singular = jnp.where(kept, singular[order], 0)
    return singular * scale, safe_divide(rows[order], singular[:, None])


def _pivoted_triangle(matrix: jax.Array, rank: jax.Array | int) -> jax.Array:
    """The rows `R` of `M = Q_1 R`, in pivoting order and without permuting columns."""
    norms = jnp.linalg.norm(matrix, axis=0)
    init = matrix, jnp.zeros_like(matrix), norms, jnp.asarray(rank)
    return jax.lax.fori_loop(0, matrix.shape[0], _eliminate, init)[1]


def _eliminate(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """One step of QR: projects the largest remaining column out of all others."""
    residual, rows, norms, rank = carry
    num_tasks = norms.shape[0]
    rtol = (16 + num_tasks) * jnp.finfo(norms.dtype).eps
    remaining = jnp.linalg.norm(residual, axis=0)
    # What is left of a column that earlier pivots explain to rounding is noise, and
    # may be larger than all of a small task: it must go.
    explained = remaining <= rtol * norms
    residual = jnp.where(explained, 0, residual)
    remaining = jnp.where(explained, 0, remaining)
    pivot = jnp.argmax(remaining)
    length = jnp.where(step < rank, remaining[pivot], 0)
    unit = safe_divide(residual[:, pivot], length)
    row = jnp.dot(unit, residual, precision=jax.lax.Precision.HIGHEST)
    residual = residual - unit[:, None] * row
    residual = jnp.where(jnp.arange(num_tasks) == pivot, 0, residual)
    return residual, rows.at[step].set(row), norms, rank


class _Sweep(NamedTuple):
    first: jax.Array  # [half, tasks], row k meets row k of `second`
    second: jax.Array
    largest: jax.Array  # the largest cosine between two rows that met in this sweep
    sweeps: jax.Array  # int32: how many so far


def _orthogonal_rows(matrix: jax.Array) -> jax.Array:
    """Rotates pairs of rows until all rows are orthogonal (one-sided Jacobi)."""
    num_tasks = matrix.shape[0]
    half = (num_tasks + 1) // 2
    rows = jnp.pad(matrix, ((0, 2 * half - num_tasks), (0, 0)))
    init = _Sweep(
        rows[:half], rows[half:], jnp.ones([], matrix.dtype), jnp.zeros([], jnp.int32)
    )
    final = jax.lax.while_loop(_unfinished, _sweep, init)
    return jnp.concatenate([final.first, final.second])[:num_tasks]


def _unfinished(state: _Sweep) -> jax.Array:
    tol = jnp.finfo(state.largest.dtype).eps ** 0.75
    return (state.largest > tol) & (state.sweeps < _MAX_SWEEPS)


def _sweep(state: _Sweep) -> _Sweep:
    """Every row meets every other once."""
    init = state._replace(
        largest=jnp.zeros_like(state.largest), sweeps=state.sweeps + 1
    )
    rounds = 2 * state.first.shape[0] - 1
    return jax.lax.scan(_round, init, length=rounds)[0]


def _round(state: _Sweep, _: None) -> tuple[_Sweep, None]:
    """Rotates each pair of rows that meet, then moves every row one seat on."""
    first, second, largest, sweeps = state
    inner = jnp.sum(first * second, axis=1)
    first_square = jnp.sum(first * first, axis=1)
    second_square = jnp.sum(second * second, axis=1)
    lengths = jnp.sqrt(first_square), jnp.sqrt(second_square)
    cosine = safe_divide(safe_divide(inner, lengths[0]), lengths[1])
    # The tangent of the smaller angle that makes the two rows orthogonal.
    zeta = safe_divide(second_square - first_square, 2 * inner)
    tangent = jnp.where(zeta < 0, -1, 1) / (jnp.abs(zeta) + jnp.hypot(1, zeta))
    tangent = jnp.where(inner == 0, 0, tangent)[:, None]
    cos = 1 / jnp.sqrt(1 + tangent * tangent)
    sin = cos * tangent
    first, second = cos * first - sin * second, sin * first + cos * second
    if len(first) > 1:  # the first row keeps its seat
        first, second = (
            jnp.concatenate([first[:1], second[:1], first[1:-1]]),
            jnp.concatenate([second[1:], first[-1:]]),
        )
    largest = jnp.maximum(largest, jnp.max(jnp.abs(cosine)))
    return _Sweep(first, second, largest, sweeps), None
