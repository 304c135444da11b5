"""Inner products and combinations of task rows, leaf by leaf.

Rows are a list of arrays `[tasks, ...]`, one for each leaf: together the rows of the
Jacobian. They are never concatenated to one `[tasks, params]` matrix, which costs a
copy, is several times slower, and would gather sharded leaves.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide


def solver_dtype(leaves: Sequence[jax.Array]) -> jnp.dtype:
    """Returns the dtype of small matrices: float32 or wider, whatever the rows are."""
    return jnp.promote_types(jnp.result_type(*leaves), jnp.float32)


def gramian(rows: Sequence[jax.Array]) -> jax.Array:
    r"""Returns the symmetric matrix of inner products of the rows.

    .. math:: G_{ij} = \sum_{\text{leaf}} \langle g_i, g_j \rangle

    Args:
      rows: leaves `[tasks, ...]`.

    Returns:
      Array `[tasks, tasks]`, accumulated in float32 or wider at the highest precision.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian([jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.array([1.0, 0.0])])
      Array([[2., 1.],
             [1., 5.]], dtype=float32)
    """
    dtype = solver_dtype(rows)
    total = jnp.zeros([], dtype)
    for leaf in rows:
        flat = leaf.reshape(leaf.shape[0], -1)
        total += jnp.matmul(
            flat,
            flat.T,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=dtype,
        )
    return (total + total.T) / 2


def combine(weights: jax.Array, rows: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the combination of the rows, `sum_i weights[i] g_i`, in their dtype.

    Args:
      weights: `[tasks]`.
      rows: leaves `[tasks, ...]`.

    Returns:
      Leaves without the task axis.
    """
    return [
        jnp.tensordot(
            weights.astype(solver_dtype([leaf])),
            leaf.astype(solver_dtype([leaf])),
            axes=1,
            precision=jax.lax.Precision.HIGHEST,
        ).astype(leaf.dtype)
        for leaf in rows
    ]


def unit_triangular(
    rows: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Factorises the unit rows without forming their Gramian, by QR leaf by leaf.

    Rounding enters the Gramian squared: directions that differ by less than the square
    root of the precision are lost in it, but not in `R`.

    Args:
      rows: leaves `[tasks, ...]`.

    Returns:
      `R` `[tasks, tasks]`, upper triangular, whose columns' inner products are the
      cosines of the rows, and the rows' norms `[tasks]`. Zero rows give zero columns.
    """
    dtype = solver_dtype(rows)
    flats = [leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in rows]
    norms = jnp.sqrt(sum(jnp.sum(flat * flat, axis=1) for flat in flats))
    blocks = [
        jnp.linalg.qr(safe_divide(flat, norms[:, None]).T, mode="r") for flat in flats
    ]
    return jnp.linalg.qr(_pad_square(jnp.concatenate(blocks)), mode="r"), norms


def _pad_square(matrix: jax.Array) -> jax.Array:
    """Adds zero rows until there are as many rows as columns."""
    missing = max(0, matrix.shape[1] - matrix.shape[0])
    return jnp.pad(matrix, ((0, missing), (0, 0)))
