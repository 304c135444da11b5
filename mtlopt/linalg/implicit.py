"""Derivatives of solutions, computed from the equations that the solutions satisfy."""

import jax
import jax.numpy as jnp

from mtlopt.linalg.products import dot

# Power of eps: the ridge is far above the rounding of the matrix, and far below the
# rows' differences.
_RIDGE_POWER = 0.65


def solve_among(matrix: jax.Array, free: jax.Array, right: jax.Array) -> jax.Array:
    r"""Solves `C_FF y_F = r_F` with `y = 0` outside of F, in fixed shapes.

    If `C_FF` is singular, the rows are linearly dependent, and every solution `y` gives
    the same direction. A ridge selects one solution, and repeating the solve removes
    the error of the ridge.

    Args:
      matrix: `C`, positive semidefinite, entries of size 1, `[tasks, tasks]`.
      free: `F`, bool `[tasks]`.
      right: `r`, `[tasks]`.

    Returns:
      `y`, `[tasks]`, a linear function of `r`.

    Examples:
      >>> import jax.numpy as jnp
      >>> matrix = jnp.array([[1.0, 0.5], [0.5, 1.0]])
      >>> found = solve_among(matrix, jnp.array([True, False]), jnp.ones(2))
      >>> print(jnp.round(found, 4))
      [1. 0.]
    """
    on_diagonal = jnp.eye(len(free), dtype=matrix.dtype)
    matrix = jnp.where(free[:, None] & free[None], matrix, on_diagonal)
    ridge = jnp.finfo(matrix.dtype).eps ** _RIDGE_POWER
    factor = jax.scipy.linalg.cho_factor(matrix + ridge * on_diagonal)
    right = jnp.where(free, right, 0)
    found = jax.scipy.linalg.cho_solve(factor, right)
    for _ in range(2):
        found += jax.scipy.linalg.cho_solve(factor, right - dot(matrix, found))
    return jnp.where(free, found, 0)
