"""Moving averages of weights that make a size, such as a norm, equal for all tasks."""

from typing import Any

import jax
import jax.numpy as jnp

# Weights stay this factor below the largest number, so that averages are finite.
_HEADROOM = 4


def move_to_equal(
    weights: jax.Array, sizes: jax.Array, there: jax.Array, decay: Any
) -> jax.Array:
    """Moves weights towards the mean size divided by each size; see `move_towards`.

    A task takes no part if it is absent or its size is not a positive number.
    """
    sizes = sizes.astype(weights.dtype)
    known = there & (sizes > 0) & jnp.isfinite(sizes)
    count = jnp.maximum(jnp.sum(known, dtype=weights.dtype), 1)
    mean = jnp.sum(jnp.where(known, sizes / count, 0))
    return move_towards(weights, mean / jnp.where(known, sizes, 1), known, decay)


def move_towards(
    weights: jax.Array, target: jax.Array, known: jax.Array, decay: Any
) -> jax.Array:
    """Returns the moving average of the weights and those targets that are known.

    A weight does not move if it has no target or would not be finite.
    """
    most = float(jnp.finfo(weights.dtype).max) / _HEADROOM
    moved = decay * weights + (1 - decay) * jnp.minimum(target, most)
    return jnp.where(known & jnp.isfinite(moved), moved, weights).astype(weights.dtype)
