"""Norms, combinations, averages and scaled copies of task rows, leaf by leaf.

Rows are the tasks' gradients: a list of arrays `[tasks, ...]`, one for each leaf.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.labels import STACKED
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import safe_divide
from mtlopt.partition import Partition
from mtlopt.rows.products import alone, few_long_rows, replicated
from mtlopt.rows.protocol import Leaves


def combine(weights: jax.Array, rows: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the combination `sum_i weights[i] g_i` of the rows, in the rows' dtype.

    Args:
      weights: `[tasks]`.
      rows: leaves `[tasks, ...]`.

    Returns:
      Leaves without the task axis.
    """

    def of_leaf(leaf: jax.Array) -> jax.Array:
        dtype = solver_dtype([leaf])
        factors, wide = weights.astype(dtype), leaf.astype(dtype)
        if few_long_rows(leaf):  # so that they are never stacked
            total = functools.reduce(
                jnp.add, [factors[task] * wide[task] for task in range(len(leaf))]
            )
        else:
            total = jnp.tensordot(
                factors, wide, axes=1, precision=jax.lax.Precision.HIGHEST
            )
        return total.astype(leaf.dtype)

    return [of_leaf(leaf) for leaf in rows]


def inner_products(rows: Leaves, direction: Leaves) -> jax.Array:
    """Returns the inner product `[tasks]` of every row with one direction."""
    dtype = solver_dtype(rows)
    products = [
        jnp.tensordot(
            leaf,
            one,
            one.ndim,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=dtype,
            out_sharding=replicated(leaf),
        )
        for leaf, one in zip(rows, direction, strict=True)
    ]
    return jnp.sum(jnp.stack(products), axis=0)


def scale_rows(
    rows: Leaves, scales: jax.Array, present: jax.Array | None = None
) -> Leaves:
    """Multiplies row i by `scales[i]`; absent tasks' rows become zero, even if NaN."""

    def scale(leaf: jax.Array) -> jax.Array:
        column = (slice(None),) + (None,) * (leaf.ndim - 1)
        scaled = leaf * scales[column].astype(leaf.dtype)
        return scaled if present is None else jnp.where(present[column], scaled, 0)

    return [scale(leaf) for leaf in rows]


def scale_head_grads(
    partition: Partition,
    head_grads: Leaves,
    scales: jax.Array,
    present: jax.Array | None = None,
) -> Leaves:
    """Multiplies the leaves of each head by its task's factor, see `scale_rows`."""
    scaled = []
    for label, leaf in zip(partition.head_labels, head_grads, strict=True):
        if label == STACKED:
            scaled += scale_rows([leaf], scales, present)
            continue
        task = partition.tasks.index(label)
        there = None if present is None else present[task : task + 1]
        (row,) = scale_rows([leaf[None]], scales[task : task + 1], there)
        scaled.append(row[0])
    return scaled


def sum_entries(leaf: jax.Array) -> jax.Array:
    """Returns the sum over all axes except the first, `[tasks]`, without flattening.

    Args:
      leaf: `[tasks, ...]`.
    """
    return jnp.sum(leaf, axis=tuple(range(1, leaf.ndim)))


@jax.custom_jvp
def row_norms(rows: Sequence[jax.Array]) -> jax.Array:
    """Returns the norms of the rows; computes no inner products of different rows.

    One pass sums the squares in three units (Blue, *A portable Fortran program to find
    the Euclidean norm of a vector*, 1978). In at least one unit the sum neither
    overflows nor flushes to zero.

    Args:
      rows: leaves `[tasks, ...]`.

    Returns:
      Array `[tasks]`, accumulated in float32 or wider. A norm is correct if it is
      representable in that dtype, and infinite if an entry is infinite.
    """
    dtype = solver_dtype(rows)
    info = jnp.finfo(dtype)
    size = sum(leaf[0].size for leaf in rows)
    # A power of two whose square is about the square root of the largest number.
    units = [jnp.asarray(2.0 ** (i * (info.maxexp // 2)), dtype) for i in (0, 1, -1)]
    sums = [_sum_squares(leaf.astype(dtype), units) for leaf in rows]
    squares = [functools.reduce(jnp.add, each) for each in zip(*sums, strict=True)]
    plain, short, long = (
        jnp.sqrt(each) / unit for each, unit in zip(squares, units, strict=True)
    )
    exact = jnp.where(squares[0] < size * float(info.tiny / info.eps), short, plain)
    return jnp.where(jnp.isinf(squares[0]), long, exact)


@row_norms.defjvp
def _row_norms_jvp(
    primals: tuple[Sequence[jax.Array]], tangents: tuple[Sequence[jax.Array]]
) -> tuple[jax.Array, jax.Array]:
    """Differentiates the plain formula, because the scaled squares may overflow.

    The derivative at a row of zeros is zero.
    """
    (rows,), (steps,) = primals, tangents
    norms = row_norms(rows)
    pairs = zip(rows, steps, strict=True)
    along = [
        sum_entries(row.astype(norms.dtype) * step.astype(norms.dtype))
        for row, step in pairs
    ]
    return norms, safe_divide(functools.reduce(jnp.add, along), norms)


def _sum_squares(leaf: jax.Array, units: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """Returns the sums of the squares of each row in each unit.

    On one CPU device this is one reduction, so that the scaled leaf is never stored. On
    several devices XLA would gather the operands of such a reduction.
    """
    squares = tuple(jnp.square(leaf * unit) for unit in units)
    if not alone():
        return tuple(map(sum_entries, squares))

    def add(left: Sequence[Any], right: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(map(jax.lax.add, left, right))

    zeros = (jnp.zeros([], leaf.dtype),) * len(units)
    return jax.lax.reduce(squares, zeros, add, list(range(1, leaf.ndim)))


def moving_average(
    kept: Sequence[jax.Array],
    rows: Sequence[jax.Array],
    seen: jax.Array,
    decay: Any,
    present: jax.Array | None = None,
) -> list[jax.Array]:
    r"""Returns the exponential average of rows that arrive one step at a time.

    .. math:: y_i \leftarrow \beta \, y_i + (1 - \beta) \, g_i

    A task's average starts at its first row, so it is not biased towards zero at the
    start. The average of an absent task stays the same, bit for bit.

    Args:
      kept: the average `y`, leaves `[tasks, ...]`.
      rows: the rows `g`, leaves of the same shapes.
      seen: tasks that had a row before, bool `[tasks]`.
      decay: `beta`, a number from 0 (no memory) to 1.
      present: tasks that have a row now, bool `[tasks]`; None for all.

    Returns:
      Leaves in the dtypes of `kept`.

    Examples:
      >>> import jax.numpy as jnp
      >>> rows, seen = jnp.array([[4.0], [4.0]]), jnp.array([True, False])
      >>> moving_average([jnp.zeros((2, 1))], [rows], seen, 0.75)
      [Array([[1.],
             [4.]], dtype=float32)]
    """
    there = jnp.ones(seen.shape, bool) if present is None else present
    decays = jnp.where(seen, decay, 0.0)

    def blend(old: jax.Array, new: jax.Array, decay: jax.Array, there: jax.Array):
        decay = decay.astype(old.dtype)
        mixed = decay * old + (1 - decay) * new.astype(old.dtype)
        return jnp.where(there, mixed, old)

    return [
        jax.vmap(blend)(old, new, decays, there)
        for old, new in zip(kept, rows, strict=True)
    ]
