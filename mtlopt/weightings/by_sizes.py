"""Weights that even out a size of the tasks, as a moving average."""

from typing import Any

import jax
import jax.numpy as jnp

# Weights stay so far below the largest number, so that their average is one.
_HEADROOM = 4


def move_to_equal(
    weights: jax.Array, sizes: jax.Array, there: jax.Array, decay: Any
) -> jax.Array:
    """Moves weights towards the mean size over each own, see `move_towards`.

    A task that is not present, or whose size is not a positive number, has no part.
    """
    sizes = sizes.astype(weights.dtype)
    known = there & (sizes > 0) & jnp.isfinite(sizes)
    count = jnp.maximum(jnp.sum(known, dtype=weights.dtype), 1)
    mean = jnp.sum(jnp.where(known, sizes / count, 0))
    return move_towards(weights, mean / jnp.where(known, sizes, 1), known, decay)


def move_towards(
    weights: jax.Array, target: jax.Array, known: jax.Array, decay: Any
) -> jax.Array:
    """Returns `decay` times the weights and the rest of the target, where it is known.

    Other weights do not move, nor do those that would not be a number.
    """
    most = float(jnp.finfo(weights.dtype).max) / _HEADROOM
    moved = decay * weights + (1 - decay) * jnp.minimum(target, most)
    return jnp.where(known & jnp.isfinite(moved), moved, weights).astype(weights.dtype)
