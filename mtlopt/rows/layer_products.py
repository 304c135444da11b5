"""Inner products of rows that are products `x^T d_t`, without making them.

    <x^T d_s, x^T d_t> = <K d_s, d_t>,    K = x x^T

with `x` `[positions, inputs]` and `d_t` `[positions, outputs]`, both with a leading
axis of layers where there are several of a shape. Sums are over these axes too.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import scale_of
from mtlopt.rows import arithmetic, products
from mtlopt.rows.task_loops import Leaf, map_after

# Tasks of which a CPU has `K d` at the same time.
_BLOCK = 8


class Kernel(NamedTuple):
    """`K = x x^T`, in a unit of its own.

    Attributes:
      matrix: `K` times the square of the unit.
      unit: a power of two; None for one.
    """

    matrix: jax.Array
    unit: jax.Array | None

    @classmethod
    def of(cls, x: jax.Array, in_own_unit: bool, dtype: Any) -> "Kernel":
        """Returns the kernel of `x`.

        Args:
          x: `[positions, inputs]`.
          in_own_unit: whether to bring the largest entry of `x` to about one first:
            then nothing that counts is flushed to zero, and nothing overflows.
          dtype: of the kernel.
        """
        x, unit = x.astype(dtype), None
        if in_own_unit:
            unit = scale_of(jnp.max(jnp.abs(x), initial=0))
            x = x * unit
        axis, batch = x.ndim - 1, tuple(range(x.ndim - 2))
        return cls(_contract(x, x, ((axis,), (axis,)), (batch, batch), dtype), unit)

    def times(self, one: jax.Array) -> jax.Array:
        """Returns `K d`."""
        axis, batch = self.matrix.ndim - 1, tuple(range(self.matrix.ndim - 2))
        dtype = self.matrix.dtype
        contracted = (axis,), (axis - 1,)
        kd = _contract(
            self.matrix, one.astype(dtype), contracted, (batch, batch), dtype
        )
        return kd if self.unit is None else kd / self.unit / self.unit


def gramian(x: jax.Array, d: Leaf, in_own_unit: bool = False) -> jax.Array:
    """Returns the inner products of the rows, `[tasks, tasks]`.

    Args:
      x: `[positions, inputs]`.
      d: `[positions, outputs]` of each task.
      in_own_unit: see `Kernel`.
    """
    dtype = solver_dtype([x, *jax.tree.leaves(d)])
    kernel = Kernel.of(x, in_own_unit, dtype)
    if isinstance(d, tuple):
        total = _products_of_pairs(tuple(map(kernel.times, d)), d, dtype)
    else:
        total = _products_in_blocks(kernel, d, dtype)
    return (total + total.T) / 2


def squares(x: jax.Array, d: Leaf, in_own_unit: bool = False) -> jax.Array:
    """Returns the squared norms of the rows, `[tasks]`, see `gramian`."""
    dtype = solver_dtype([x, *jax.tree.leaves(d)])
    kernel = Kernel.of(x, in_own_unit, dtype)

    def square(one: jax.Array) -> jax.Array:
        left, right = kernel.times(one).ravel(), one.astype(dtype).ravel()
        return _contract(left, right, ((0,), (0,)), ((), ()), dtype)

    if isinstance(d, tuple):
        return jnp.stack([square(one) for one in d])
    return _for_each(square, d)


def bounds(x: jax.Array, d: Leaf) -> jax.Array:
    """Returns a number for each task that no entry of its row exceeds, `[tasks]`."""
    dtype = solver_dtype([x, *jax.tree.leaves(d)])
    largest = products.largest_entries([d])
    return x.shape[-2] * jnp.max(jnp.abs(x), initial=0).astype(dtype) * largest


def combine(weights: jax.Array, x: jax.Array, d: Leaf, precision: Any) -> jax.Array:
    """Returns `sum_t weights[t] x^T d_t`, in float32 or wider.

    Args:
      weights: `[tasks]`.
      x: `[positions, inputs]`.
      d: `[positions, outputs]` of each task.
      precision: of the product.
    """
    dtype = solver_dtype([x, *jax.tree.leaves(d)])
    if isinstance(d, tuple):
        terms = [
            weights[t].astype(dtype) * one.astype(dtype) for t, one in enumerate(d)
        ]
        total = functools.reduce(jnp.add, terms)
    else:
        (total,) = arithmetic.combine(weights, [d.astype(dtype)])
    axis, batch = x.ndim - 2, tuple(range(x.ndim - 2))
    return jax.lax.dot_general(
        x.astype(dtype),
        total,
        (((axis,), (axis,)), (batch, batch)),
        precision=precision,
    )


def scale(d: Leaf, factors: jax.Array, present: jax.Array | None = None) -> Leaf:
    """Multiplies what task i has by `factors[i]`; zero for absent ones, also of NaN."""

    def of_task(task: Any, one: jax.Array) -> jax.Array:
        scaled = one * factors[task].astype(one.dtype)
        return scaled if present is None else jnp.where(present[task], scaled, 0)

    if isinstance(d, tuple):
        return tuple(of_task(task, one) for task, one in enumerate(d))
    return jax.vmap(of_task)(jnp.arange(len(d)), d)


def rotate(d: Leaf, basis: jax.Array) -> Leaf:
    """Returns the same of the rotated rows `basis^T J`, in float32 or wider.

    Args:
      d: factors or rows of each task.
      basis: as in `Rows.gramian`.
    """
    wide = jax.tree.map(lambda one: one.astype(basis.dtype), d)
    if basis.ndim == 1:
        return scale(wide, basis)
    stack = jnp.stack(wide) if isinstance(wide, tuple) else wide
    turned = jnp.tensordot(basis.T, stack, 1, precision=jax.lax.Precision.HIGHEST)
    return tuple(turned) if isinstance(d, tuple) else turned


def parts_of(rows: Leaf) -> list[products.Leaf]:
    """Returns rows in the form that inner products of them read."""
    return products.parts_of([jnp.stack(rows) if isinstance(rows, tuple) else rows])


def squares_of_rows(rows: Leaf) -> jax.Array:
    """Returns the squared norms of rows that exist, `[tasks]`."""
    stack = jnp.stack(rows) if isinstance(rows, tuple) else rows
    wide = stack.astype(solver_dtype([stack]))
    return arithmetic.sum_entries(jnp.square(wide))


def combine_rows(weights: jax.Array, rows: Leaf) -> jax.Array:
    """Returns the combination of rows that exist, in their type."""
    stack = jnp.stack(rows) if isinstance(rows, tuple) else rows
    return arithmetic.combine(weights, [stack])[0]


def _contract(
    a: jax.Array, b: jax.Array, axes: Any, batch: Any, dtype: Any
) -> jax.Array:
    return jax.lax.dot_general(
        a,
        b,
        (axes, batch),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )


def _products_in_blocks(kernel: Kernel, d: jax.Array, dtype: Any) -> jax.Array:
    """Returns `<K d_s, d_t>`, with `K d_s` of some tasks at a time."""
    num_tasks, wide = len(d), _flat(d, dtype)

    def rows(block: jax.Array) -> jax.Array:
        return _contract(
            _flat(_for_each(kernel.times, block), dtype),
            wide,
            ((1,), (1,)),
            ((), ()),
            dtype,
        )

    size = max(i for i in range(1, _BLOCK + 1) if num_tasks % i == 0)
    if size == 1 or jax.default_backend() != "cpu":
        return rows(d)
    blocks = d.reshape(num_tasks // size, size, *d.shape[1:])
    return map_after(rows, blocks, 1, d).reshape(num_tasks, num_tasks)


def _for_each(function: Any, d: jax.Array) -> jax.Array:
    """One task after the other on a CPU, whose results start where `d` is known."""
    if jax.default_backend() == "cpu":
        return map_after(function, d, 1, d)
    return jax.vmap(function)(d)


def _products_of_pairs(left: tuple[Any, ...], right: Any, dtype: Any) -> jax.Array:
    """Of few tasks, whose stack need not exist."""
    tasks = range(len(right))
    if len(right) > products.FEW_TASKS:
        both = _flat(left, dtype), _flat(right, dtype)
        return _contract(*both, ((1,), (1,)), ((), ()), dtype)
    upper = {
        (i, j): jnp.sum(left[i] * right[j].astype(dtype))
        for i in tasks
        for j in tasks
        if i <= j
    }
    entries = [upper[min(i, j), max(i, j)] for i in tasks for j in tasks]
    return jnp.stack(entries).reshape(len(right), len(right))


def _flat(d: Leaf, dtype: Any) -> jax.Array:
    """Returns a matrix, `[tasks, numbers]`."""
    stack = jnp.stack(d) if isinstance(d, tuple) else d
    return stack.reshape(len(stack), math.prod(stack.shape[1:])).astype(dtype)
