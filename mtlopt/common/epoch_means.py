"""Mean losses of the last two epochs, for methods that compare epochs."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt.linalg.normalise import safe_divide


def no_epochs(num_tasks: int) -> dict[str, jax.Array]:
    """Returns the fields of a state before the first update, see `next_epochs`."""
    # An array each: the caller may donate the state.
    return {
        "count": jnp.zeros([], jnp.int32),
        "total": jnp.zeros(num_tasks),
        "seen": jnp.zeros(num_tasks),
        "last": jnp.zeros(num_tasks),
        "before": jnp.zeros(num_tasks),
    }


def next_epochs(
    state: Any, losses: jax.Array, there: jax.Array, steps_per_epoch: int
) -> dict[str, jax.Array]:
    """Returns the fields of a state after an update.

    An epoch ends every `steps_per_epoch` updates; a task that is absent for all of one
    keeps its last two means.

    Args:
      state: with `count`, the updates so far, int32; `total` and `seen` `[tasks]`, sum
        and number of this epoch's losses; `last` and `before` `[tasks]`, mean losses of
        the last epoch and of the one before it.
      losses: `[tasks]`.
      there: `[tasks]` bool, the tasks that are present.
      steps_per_epoch: number of updates that make an epoch.
    """
    dtype = state.total.dtype
    total = state.total + jnp.where(there, losses.astype(dtype), 0)
    seen = state.seen + there.astype(dtype)
    count = jnp.asarray(optax.safe_increment(state.count))
    ends = (count % steps_per_epoch == 0) & (seen > 0)
    return {
        "count": count,
        "total": jnp.where(ends, 0, total),
        "seen": jnp.where(ends, 0, seen),
        "last": jnp.where(ends, safe_divide(total, seen), state.last),
        "before": jnp.where(ends, state.last, state.before),
    }
