"""Inner products of rows that are matrix products `x^T d_t`, without computing rows.

    <x^T d_s, x^T d_t> = <K d_s, d_t>,    K = x x^T

Here `x` is `[positions, inputs]` and `d_t` is `[positions, outputs]`. Both have a
leading axis of layers if several layers have the same shape; sums include this axis.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import scale_of
from mtlopt.rows import arithmetic, products
from mtlopt.rows.map_tasks import UNROLL_LIMIT, map_after


def gramian(x: jax.Array, d: jax.Array, in_own_unit: bool = False) -> jax.Array:
    """Returns the inner products of the rows, `[tasks, tasks]`.

    Args:
      x: `[positions, inputs]`.
      d: `[tasks, positions, outputs]`.
      in_own_unit: whether to scale the largest entry of `x` to about one first, so that
        nothing overflows and only negligible numbers are flushed to zero.
    """
    dtype, num_tasks = solver_dtype([x, d]), len(d)
    x, d = x.astype(dtype), d.astype(dtype)
    unit = scale_of(jnp.max(jnp.abs(x), initial=0)) if in_own_unit else None
    x = x if unit is None else x * unit
    kernel = _matmul(x, jnp.swapaxes(x, -1, -2))

    def times(one: jax.Array) -> jax.Array:
        kd = _matmul(kernel, one)
        return kd if unit is None else kd / unit / unit

    def side_by_side(some: jax.Array) -> jax.Array:
        return jnp.stack([times(one) for one in some])

    def rows(some: jax.Array) -> jax.Array:
        return products.cross_gramian([side_by_side(some)], [d])

    if jax.default_backend() != "cpu":
        total = products.cross_gramian([jax.vmap(times)(d)], [d])
    elif num_tasks <= products.FEW_TASKS:
        total = products.products_of_pairs(side_by_side(d), d, dtype)
    elif num_tasks <= UNROLL_LIMIT:
        total = rows(d)
    else:  # `K d` of a few tasks at a time can start as soon as `d` is known
        size = max(i for i in range(1, UNROLL_LIMIT + 1) if num_tasks % i == 0)
        blocks = d.reshape(num_tasks // size, size, *d.shape[1:])
        total = map_after(rows, blocks, 1, d).reshape(num_tasks, num_tasks)
    return (total + total.T) / 2


def bounds(x: jax.Array, d: jax.Array) -> jax.Array:
    """Returns for each task a bound `[tasks]` on the entries of its row."""
    dtype = solver_dtype([x, d])
    largest = products.largest_entries([d])
    return x.shape[-2] * jnp.max(jnp.abs(x), initial=0).astype(dtype) * largest


def combine(
    weights: jax.Array, x: jax.Array, d: jax.Array, precision: Any
) -> jax.Array:
    """Returns `sum_t weights[t] x^T d_t`, in float32 or wider.

    Args:
      weights: `[tasks]`.
      x: `[positions, inputs]`.
      d: `[tasks, positions, outputs]`.
      precision: precision of the product.
    """
    dtype = solver_dtype([x, d])
    (total,) = arithmetic.combine(weights, [d.astype(dtype)])
    return jnp.matmul(jnp.swapaxes(x.astype(dtype), -1, -2), total, precision=precision)


def _matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
