"""Products of small matrices."""

import jax
import jax.numpy as jnp


def dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """`jnp.dot` at the highest precision: accelerators round its factors otherwise."""
    return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)
