"""Products of small matrices, and their diagonals."""

import jax
import jax.numpy as jnp


def dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """`jnp.dot` at the highest precision: accelerators round its factors otherwise."""
    return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)


def diagonal(matrix: jax.Array) -> jax.Array:
    """The diagonal of a matrix `[rows, columns]` with `rows <= columns`.

    A slice; `jnp.diagonal` gathers, which takes kernels to make the indices.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(diagonal(jnp.array([[1, 2, 3], [4, 5, 6]])))
      [1 5]
    """
    rows, columns = matrix.shape
    last = (rows - 1) * (columns + 1)
    return jax.lax.slice(matrix.reshape(-1), [0], [last + 1], [columns + 1])
