"""Singular vectors, computed by rotating columns whose lengths may differ widely."""

import functools

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide

# Up to 9 sweeps are needed. Rounding alone can keep the angles between nearly dependent
# columns above the tolerance, however many sweeps follow.
_MAX_SWEEPS = 12


def rotate_columns(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Returns left singular vectors and singular values, by rotations of columns.

    .. math:: M V = U \Sigma

    `V` is a product of plane rotations. Each rotation makes two columns orthogonal up
    to rounding errors of the *shorter* column. A decomposition that is accurate up to
    rounding of the largest entry loses the directions of much shorter columns; this
    decomposition keeps them. The columns should be roughly sorted by length.

    Disjoint pairs of columns are rotated at the same time, in the order of a
    round-robin tournament: a sweep over all pairs takes `n - 1` rounds, or `n` if `n`
    is odd. Only elementwise operations and sums are used, so that a batch of matrices
    runs in one program.

    Args:
      matrix: `M`, square, `[n, n]`.

    Returns:
      `U` `[n, n]`, with a zero column for each zero singular value, and the singular
      values `[n]`, descending. NaN or infinity in the input gives NaN. There is no
      reverse-mode derivative.

    Examples:
      >>> import jax.numpy as jnp
      >>> left, singular = rotate_columns(jnp.diag(jnp.array([1.0, 2e-9])))
      >>> print(left, singular)
      [[1. 0.]
       [0. 1.]] [1.e+00 2.e-09]

    References:
      Hestenes, *Inversion of matrices by biorthogonalization and related results*,
      J. SIAM 6, 1958. Drmač and Veselić, *New fast and accurate Jacobi SVD algorithm*,
      SIAM J. Matrix Anal. Appl. 29, 2008.
    """
    largest = jnp.max(jnp.abs(matrix))
    columns = safe_divide(matrix, largest)  # so that no square overflows
    columns = jnp.pad(columns, ((0, 0), (0, len(matrix) % 2)))
    halves = tuple(jnp.split(columns, 2, axis=1))
    rounds = columns.shape[1] - 1
    # A sweep squares the angles. So if they are below this, one more sweep leaves only
    # rounding error.
    tolerance = jnp.finfo(matrix.dtype).eps ** 0.6

    def unfinished(carry):
        _, angle, sweeps = carry
        return (angle > tolerance) & (sweeps < _MAX_SWEEPS)

    def sweep(carry):
        halves, _, sweeps = carry
        start = halves, jnp.zeros([], matrix.dtype)
        return *jax.lax.fori_loop(0, rounds, _round, start), sweeps + 1

    start = halves, jnp.full([], jnp.inf, matrix.dtype), 0
    halves, *_ = jax.lax.while_loop(unfinished, sweep, start)
    columns = jnp.concatenate(halves, axis=1)
    singular = jnp.sqrt(jnp.sum(columns**2, axis=0))
    order = jnp.argsort(-singular)[: len(matrix)]
    columns, singular = columns[:, order], singular[order]
    return safe_divide(columns, singular[None]), singular * largest


def _round(_: int, carry):
    """Rotates each column of one half with its partner, and changes partners."""
    (left, right), angle = carry
    dot = functools.partial(jnp.sum, axis=0)
    a, b, overlap = dot(left**2), dot(right**2), dot(left * right)
    angles = safe_divide(jnp.abs(overlap), jnp.minimum(a, b))
    turns = angles > jnp.finfo(left.dtype).eps
    # The tangent of the smaller angle that makes the two columns orthogonal.
    cotangent = (b - a) / (2 * jnp.where(turns, overlap, 1))
    sign = jnp.where(cotangent >= 0, 1, -1)
    tangent = sign / (jnp.abs(cotangent) + jnp.sqrt(1 + cotangent**2))
    tangent = jnp.where(turns, tangent, 0)
    cosine = (1 / jnp.sqrt(1 + tangent**2))[None]
    sine = cosine * tangent[None]
    left, right = cosine * left - sine * right, sine * left + cosine * right
    if left.shape[1] > 1:
        # The first column keeps its place; the others move on by one place in the
        # circle.
        left, right = (
            jnp.concatenate([left[:, :1], right[:, :1], left[:, 1:-1]], axis=1),
            jnp.concatenate([right[:, 1:], left[:, -1:]], axis=1),
        )
    return (left, right), jnp.maximum(angle, jnp.max(angles))
