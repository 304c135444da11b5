"""Inner products of task rows, leaf by leaf.

Rows are a list of arrays `[tasks, ...]`, one for each leaf; together these arrays are
the rows of the Jacobian, the tasks' gradients. Long rows are never concatenated into
one `[tasks, params]` matrix, because this would copy all rows, be several times slower,
and gather sharded leaves.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import ScaledGramian, keeps_squares, scale_of
from mtlopt.linalg.products import diagonal

# On one CPU device, a few long rows are multiplied pair by pair, because a matmul with
# a small result is slow there. Milliseconds for rows of shape [tasks, numbers] on one
# Zen 3 core, matmul / pairs:
#   2, 262144   0.76 / 0.15       4,  262144   0.76 / 0.54
#   3, 262144   0.86 / 0.35       8,  262144   2.75 / 2.09
#   3,  65536   0.22 / 0.10       3, 1048576   5.16 / 1.09
# With eight tasks, each leaf has 36 pairs to compile, and the gain is small. A
# combination of a few long rows adds them one by one, so that they are never stacked.
FEW_TASKS = 4
_LONG_ROW = 2**14
# On one CPU device, the products of rows of at most this many numbers (of biases, for
# example) are computed together, because each kernel takes milliseconds to compile.
_SHORT_ROW = 2**11
# On one CPU device, this many numbers of a leaf are rotated at a time: half a MiB of
# float32.
_CHUNK = 2**17


def replicated(leaf: jax.Array) -> NamedSharding | None:
    """Returns the sharding with which every device holds all of a contraction's result.

    If the mesh has explicit axes, JAX does not choose a sharding. Otherwise, the
    function returns None, which leaves the choice to XLA.
    """
    mesh = jax.typeof(leaf).sharding.mesh
    return NamedSharding(mesh, PartitionSpec()) if mesh.explicit_axes else None


Part = jax.Array | tuple[jax.Array, ...]  # stacked rows, or separate rows


def gramian(rows: Sequence[Part], basis: jax.Array | None = None) -> jax.Array:
    r"""Returns the symmetric matrix of inner products of the rows.

    .. math:: G_{ij} = \sum_{\text{leaf}} \langle g_i, g_j \rangle

    With a basis `B`, the result holds the inner products of the rotated rows `B^T J`.
    On one CPU device, the result is computed in chunks of columns, elsewhere leaf by
    leaf, so that the rows are never copied as a whole.

    Args:
      rows: leaves `[tasks, ...]`, the rows of `J`, or their `parts_of`.
      basis: `B`, `[tasks, tasks]`, or the diagonal of a diagonal matrix, `[tasks]`;
        None for no rotation.

    Returns:
      Array `[tasks, tasks]`, accumulated in float32 or wider at the highest precision.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian([jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.array([1.0, 0.0])])
      Array([[2., 1.],
             [1., 5.]], dtype=float32)
    """
    dtype = solver_dtype(jax.tree.leaves(rows))
    total = jnp.zeros([], dtype)
    for part in rows:
        if basis is not None:
            total += _rotated_products(part, basis.astype(dtype))
        elif isinstance(part, tuple) or few_long_rows(part):
            total += products_of_pairs(part, part, dtype)
        else:
            total += _inner_products(part, part, dtype)
    return (total + total.T) / 2


def gramian_of_tasks(rows: Sequence[Part], losses: jax.Array) -> jax.Array:
    """Returns the Gramian of all tasks, which is zero if there are no rows."""
    if not rows or not len(losses):
        return jnp.zeros((len(losses), len(losses)))
    return gramian(rows)


@jax.jit
def scaled_gramian(
    rows: Sequence[Part], present: jax.Array | None = None
) -> ScaledGramian:
    """Returns the Gramian of rows of any norms.

    If a square would overflow or be flushed to zero, each row is first scaled by a
    power of two. Otherwise this function costs as much as `gramian`. A row much shorter
    than the longest row (1e-31 of its length in float32) counts as zero.

    Args:
      rows: leaves `[tasks, ...]`.
      present: tasks to use, bool `[tasks]`; None for all.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = scaled_gramian([jnp.array([[1e30, 0.0], [3.0, 4.0]])])
      >>> print(jnp.sqrt(jnp.diagonal(found.matrix)) / found.scales)
      [1.e+30 5.e+00]
    """
    return scale_if_needed(
        functools.partial(gramian, rows),
        lambda: largest_entries(rows),
        [_one_row(part) for part in rows],
        present,
    )


def scale_if_needed(
    products_of: Callable[..., jax.Array],
    largest_of: Callable[[], jax.Array],
    row: Sequence[Any],
    present: jax.Array | None,
) -> ScaledGramian:
    """Returns the Gramian of the rows, and scales the rows first if necessary.

    Args:
      products_of: returns the Gramian, or the Gramian of the rows in a basis.
      largest_of: returns the largest absolute value in each row, `[tasks]`.
      row: leaves of one task, or their shapes and types.
      present: tasks to use, bool `[tasks]`; None for all.
    """
    products = products_of()
    squares, size = diagonal(products), sum(leaf.size for leaf in row)

    def as_it_is() -> ScaledGramian:
        return ScaledGramian(products, jnp.ones_like(squares))

    def rescale() -> ScaledGramian:
        # Streamed rows (never all in memory) are scaled in their own type, which may be
        # half precision.
        kinds = [jnp.finfo(leaf.dtype) for leaf in row]
        limit = 2.0 ** (min(kind.maxexp for kind in kinds) - 1)
        scales = jnp.minimum(scale_of(largest_of()), limit)
        matrix = products_of(scales)
        norms, info = jnp.sqrt(diagonal(matrix)) / scales, jnp.finfo(matrix.dtype)
        # Weights are as large as ratios of norms, and these ratios must be finite.
        longest = jnp.max(norms, where=jnp.isfinite(norms), initial=0)
        is_zero = norms < float(info.tiny / info.eps) * longest
        matrix = jnp.where(is_zero[:, None] | is_zero[None], 0, matrix)
        return ScaledGramian(matrix, scales)

    return jax.lax.cond(keeps_squares(squares, size, present), as_it_is, rescale)


def largest_entries(rows: Sequence[Part]) -> jax.Array:
    """Returns the largest absolute value in each row, `[tasks]`."""

    def largest(part: Part) -> jax.Array:
        if isinstance(part, tuple):
            return jnp.stack([jnp.max(jnp.abs(row)) for row in part])
        return jnp.max(jnp.abs(part), axis=tuple(range(1, part.ndim)), initial=0)

    dtype = solver_dtype(jax.tree.leaves(rows))
    return functools.reduce(jnp.maximum, [largest(leaf).astype(dtype) for leaf in rows])


def cross_gramian(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> jax.Array:
    r"""Returns the inner products of two sets of rows, such as rows from two batches.

    .. math:: P_{ij} = \sum_{\text{leaf}} \langle g_i, h_j \rangle

    Args:
      left: leaves `[tasks, ...]`, the rows `g`.
      right: the rows `h`, leaves of the same shapes and dtypes.

    Returns:
      Array `[tasks, tasks]`, accumulated in float32 or wider at the highest precision.
      It is not symmetric.

    Examples:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> cross_gramian([rows], [rows + 1])
      Array([[2., 1.],
             [2., 6.]], dtype=float32)
    """
    dtype = solver_dtype(left)
    total = jnp.zeros([], dtype)
    for leaf, other in zip(left, right, strict=True):
        total += _inner_products(leaf, other, dtype)
    return total


def _inner_products(left: jax.Array, right: jax.Array, dtype: Any) -> jax.Array:
    """Returns the inner products of the rows of one leaf, `[tasks, tasks]`.

    If a leaf is not flattened, all axes except the task axis are contracted.
    """
    left, right = flat_rows(left), flat_rows(right)
    axes = tuple(range(1, left.ndim))
    return jax.lax.dot_general(
        left,
        right,
        ((axes, axes), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=dtype,
        out_sharding=replicated(left),
    )


def products_of_pairs(
    left: Part | list[jax.Array], right: Part | list[jax.Array], dtype: Any
) -> jax.Array:
    """Returns the inner products of few tasks, pair by pair: a symmetric matrix."""
    tasks = range(len(right))
    left, right = ([rows[i].astype(dtype) for i in tasks] for rows in (left, right))
    upper = {
        (i, j): jnp.sum(left[i] * right[j]) for i in tasks for j in tasks if i <= j
    }
    entries = [upper[min(i, j), max(i, j)] for i in tasks for j in tasks]
    return jnp.stack(entries).reshape(len(tasks), len(tasks))


def _rotated_products(leaf: Part, basis: jax.Array) -> jax.Array:
    """Returns the inner products of the rows `basis^T leaf`."""

    def products(rows: jax.Array) -> jax.Array:
        turned = rotate(rows, basis)
        return _inner_products(turned, turned, basis.dtype)

    if isinstance(leaf, tuple):
        if basis.ndim == 1:  # seldom needed, so few kernels count more than their time
            return products(jnp.stack(leaf))
        turned = _rotate_few(leaf, basis)
        return products_of_pairs(turned, turned, basis.dtype)
    if not alone():
        return products(leaf)
    flat = flat_rows(leaf)
    size = flat.shape[1]
    width = max(1, _CHUNK // len(leaf))
    chunks = size // width

    def chunk(start: jax.Array | int, width: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(flat, start, width, axis=1)

    def add_chunk(index: jax.Array, total: jax.Array) -> jax.Array:
        return total + products(chunk(index * width, width))

    total = products(chunk(chunks * width, size - chunks * width))
    return jax.lax.fori_loop(0, chunks, add_chunk, total) if chunks else total


def rotate(leaf: jax.Array, basis: jax.Array) -> jax.Array:
    """Returns the rows `basis^T leaf`, in the type of the basis.

    Args:
      leaf: `[tasks, ...]`.
      basis: as in `gramian`.
    """
    wide = leaf.astype(basis.dtype)
    if basis.ndim == 1:
        return jax.vmap(jnp.multiply)(wide, basis)
    return jnp.tensordot(basis.T, wide, axes=1, precision=jax.lax.Precision.HIGHEST)


def _rotate_few(rows: Sequence[jax.Array], basis: jax.Array) -> list[jax.Array]:
    """Returns the rotated rows of few tasks, separately."""
    tasks, rows = range(len(rows)), [row.astype(basis.dtype) for row in rows]
    terms = [[basis[k, i] * rows[k] for k in tasks] for i in tasks]
    return [functools.reduce(jnp.add, of_task) for of_task in terms]


def parts_of(rows: Sequence[jax.Array]) -> list[Part]:
    """Returns the rows in the form from which their products are computed.

    All code that reads this form reads the same copy, including the branches of a
    `lax.cond`. A few long rows stay separate, so that they are never stacked; other
    rows become matrices. Short rows of one type become one matrix.
    """
    parts: list[Part] = []
    short: dict[Any, list[jax.Array]] = {}
    for leaf in rows:
        if few_long_rows(leaf):
            parts.append(tuple(leaf))
        elif alone() and _row_size(leaf) <= _SHORT_ROW:
            short.setdefault(leaf.dtype, []).append(flat_rows(leaf))
        else:
            parts.append(flat_rows(leaf))
    return parts + [jnp.concatenate(leaves, axis=1) for leaves in short.values()]


def few_long_rows(leaf: jax.Array) -> bool:
    """Returns whether the rows are so few and so long that they are read separately."""
    few = 0 < len(leaf) <= FEW_TASKS
    return few and alone() and _row_size(leaf) >= _LONG_ROW


def _row_size(leaf: jax.Array) -> int:
    return math.prod(leaf.shape[1:])


def _one_row(part: Part) -> Any:
    """Returns one task's row, or its shape and type."""
    if isinstance(part, tuple):
        return part[0]
    return jax.ShapeDtypeStruct(part.shape[1:], part.dtype)


def alone() -> bool:
    """Whether there is only one CPU device, so that nothing is sharded."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def flat_rows(leaf: jax.Array) -> jax.Array:
    """Returns a leaf `[tasks, ...]` as a matrix, if this costs nothing.

    XLA gathers a leaf to flatten it, unless the leaf is sharded along the first of the
    flattened axes. On a single CPU device, a contraction spends half of its time on a
    transposed copy; flattening avoids this copy.
    """
    return leaf.reshape(leaf.shape[0], -1) if alone() else leaf
