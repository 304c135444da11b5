"""Products of small matrices, and their diagonals."""

import jax
import jax.numpy as jnp


def dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns `jnp.dot` with the highest precision, so that no factor is rounded."""
    return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)


def diagonal(matrix: jax.Array) -> jax.Array:
    """Returns the diagonal of a matrix `[rows, columns]` with `rows <= columns`.

    The function takes a slice; `jnp.diagonal` is a gather, which needs kernels to
    compute indices.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(diagonal(jnp.array([[1, 2, 3], [4, 5, 6]])))
      [1 5]
    """
    rows, columns = matrix.shape
    last = (rows - 1) * (columns + 1)
    return jax.lax.slice(matrix.reshape(-1), [0], [last + 1], [columns + 1])


def present_products(
    products: jax.Array, present: jax.Array | None, name: str = "products"
) -> jax.Array:
    """Returns inner products `[tasks, tasks]` with zeros for absent tasks.

    Args:
      products: inner products of rows, `[tasks, tasks]`.
      present: Tasks to use, bool `[tasks]`; None for all.
      name: the caller's name for `products`, for the error message.

    Raises:
      ValueError: If `products` is not square or `present` does not fit it.

    Examples:
      >>> import jax.numpy as jnp
      >>> present_products(jnp.ones((2, 2)), jnp.array([True, False]))
      Array([[1., 0.],
             [0., 0.]], dtype=float32)
    """
    products = jnp.asarray(products)
    if products.ndim != 2 or products.shape[0] != products.shape[1]:
        raise ValueError(f"`{name}` must be square, got shape {products.shape}.")
    if present is None:
        return products
    present = jnp.asarray(present, bool)
    if present.shape != products.shape[:1]:
        raise ValueError(
            f"`present` must have shape {products.shape[:1]}, got {present.shape}."
        )
    return jnp.where(present[:, None] & present[None], products, 0)
