"""State shaped like the task gradients, for methods that remember gradients."""

from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.labels import SHARED, Rules, label_params
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.partition import check_params
from mtlopt.rows.protocol import Leaves


def zero_rows(params: Any, labels: Rules, num_tasks: int) -> Leaves:
    """Returns zeros `[tasks, ...]` for each shared leaf, float32 or wider.

    Args:
      params: parameters.
      labels: see `label_params`; heads get no zeros.
      num_tasks: number of tasks T.
    """
    if not jax.tree.leaves(params):
        return params  # the placeholder of `optax.tree_map_params`
    check_params(params)
    names = jax.tree.leaves(label_params(params, labels))
    return [
        # Made from zeros of the leaf, which are sharded like the leaf.
        jnp.broadcast_to(
            jnp.zeros_like(leaf, solver_dtype([jnp.asarray(leaf)])),
            (num_tasks, *jnp.shape(leaf)),
        )
        for name, leaf in zip(names, jax.tree.leaves(params), strict=True)
        if name == SHARED
    ]


def check_row_state(kept: Leaves, rows: Leaves) -> None:
    """Raises if the rows of an update do not have the shapes that `init` allocated.

    Raises:
      ValueError: if the shapes differ, because the labels are different or the method
        runs in latent space.
    """
    shapes, expected = [jnp.shape(row) for row in rows], [row.shape for row in kept]
    if shapes != expected:
        raise ValueError(
            "`labels` must be the labels that the gradients were computed with: pass "
            "labels=... to the method or to METHODS[name].make. The method must also "
            f"run in parameter space. Its state has rows of shapes {expected}, got "
            f"{shapes}."
        )
