"""A step down a direction: its update, and the point after it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt.rows.protocol import Leaves
from mtlopt.task_grads import TaskGrads


def step_update(
    grads: TaskGrads, direction: Leaves, head_grads: Leaves, step_size: jax.Array
) -> Any:
    """Returns the update of a step down a direction.

    Args:
      grads: gradients of the tasks.
      direction: direction of the shared leaves.
      head_grads: gradients of the heads' leaves.
      step_size: scalar.
    """
    updates = _updates(direction, step_size), _updates(head_grads, step_size)
    return grads.partition.update(*updates, grads.frozen)


def params_after(
    grads: TaskGrads,
    params: Any,
    direction: Leaves,
    head_grads: Leaves,
    step_size: jax.Array,
) -> Any:
    """Returns the parameters after a step; frozen parameters are not copied."""
    shared, head_params, frozen = grads.partition.split(params)
    moved = (
        move(shared, direction, step_size),
        move(head_params, head_grads, step_size),
    )
    return grads.partition.merge(*moved, frozen)


def move(point: Leaves, direction: Leaves, step_size: jax.Array) -> Leaves:
    """Returns the point after a step down a direction, rounded as it will be stored."""
    moved: Any = optax.apply_updates(point, _updates(direction, step_size))
    return [_stored(leaf) for leaf in moved]


def _updates(direction: Leaves, step_size: jax.Array) -> Leaves:
    """Returns minus the step size times the direction."""
    return [
        _stored(-_stored(step_size.astype(leaf.dtype)) * _stored(leaf))
        for leaf in direction
    ]


def _stored(leaf: jax.Array) -> jax.Array:
    """Rounds a leaf of half precision to the digits that are stored.

    XLA may compute with more digits. A trial would then evaluate losses at parameters
    that no step reaches.
    """
    dtype = jnp.finfo(leaf.dtype)
    if dtype.bits >= 32:
        return leaf
    return jax.lax.reduce_precision(leaf, dtype.nexp, dtype.nmant)
