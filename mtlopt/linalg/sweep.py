"""Principal pivots of a tableau."""

import jax
import jax.numpy as jnp

from mtlopt.linalg.products import dot


def pick_row(tableau: jax.Array, is_chosen: jax.Array) -> jax.Array:
    """The chosen row, by a product: a gather is several kernels for its indices."""
    return dot(is_chosen.astype(tableau.dtype), tableau)


def sweep(
    tableau: jax.Array, is_chosen: jax.Array, pivot: jax.Array, inside: jax.Array
) -> jax.Array:
    """Principal pivot: solves for the chosen task (or, if it is `inside`, undoes that).

    For F the swept set, the tableau of [C, a] is [[-C_FF^-1, C_FF^-1 C_FN, y_F],
    [C_NF C_FF^-1, C_NN - C_NF C_FF^-1 C_FN, a_N - C_NF y_F]]; `a` may be several
    columns.

    Args:
      tableau: `[tasks, tasks + columns]`.
      is_chosen: true for one task, bool `[tasks]`.
      pivot: its entry on the diagonal.
      inside: whether it is in F.

    Returns:
      The tableau with the task in F, or out of it.
    """
    num_tasks, num_columns = tableau.shape
    is_column = jnp.pad(is_chosen, (0, num_columns - num_tasks))
    sign = jnp.where(inside, 1, -1).astype(tableau.dtype)
    row = jnp.where(is_column, sign, pick_row(tableau, is_chosen))
    # (a b) / c and not a (b / c): what is symmetric stays so to the last digit, and the
    # row is the column.
    change = row[:num_tasks, None] * row / pivot
    return jnp.where(is_chosen[:, None] | is_column, 0, tableau) - change
