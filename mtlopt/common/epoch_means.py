"""Weightings that compare the mean losses of the last two epochs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_int, check_num_tasks
from mtlopt.common.task_weights import everyone
from mtlopt.grad import check_task_grads
from mtlopt.linalg.normalise import safe_divide


def by_epochs(
    name: str,
    num_tasks: int,
    steps_per_epoch: int,
    make_state: Callable[..., Any],
    weights_of: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """Builds a weighting whose weights are 1 in the first two epochs.

    Args:
      name: name of the weighting.
      num_tasks: number of tasks T.
      steps_per_epoch: number of updates that make an epoch, a Python int.
      make_state: function that makes a state from `task_weights` `[tasks]` and the
        fields of `_next_epochs`.
      weights_of: function that returns weights `[tasks]`. Its arguments are the mean
        losses `[tasks]` of the last epoch, the mean losses of the epoch before it, and
        a mask of the present tasks, bool `[tasks]`.
    """
    check_num_tasks(num_tasks)
    steps_per_epoch = as_int("steps_per_epoch", steps_per_epoch)

    def init_fn(params: Any) -> Any:
        del params
        return make_state(jnp.ones(num_tasks), **_no_epochs(num_tasks))

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, name)
        there = everyone(num_tasks, grads.present)
        dtype = state.total.dtype
        weights = jnp.where(
            state.count < 2 * steps_per_epoch,
            there.astype(dtype),
            weights_of(state.last, state.before, there).astype(dtype),
        )
        epochs = _next_epochs(state, grads.losses, there, steps_per_epoch)
        return grads.scale_by(weights), make_state(weights, **epochs)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _no_epochs(num_tasks: int) -> dict[str, jax.Array]:
    """Returns the fields of a state before the first update, see `_next_epochs`."""
    # Separate arrays, because the caller may donate the state.
    return {
        "count": jnp.zeros([], jnp.int32),
        "total": jnp.zeros(num_tasks),
        "seen": jnp.zeros(num_tasks),
        "last": jnp.zeros(num_tasks),
        "before": jnp.zeros(num_tasks),
    }


def _next_epochs(
    state: Any, losses: jax.Array, there: jax.Array, steps_per_epoch: int
) -> dict[str, jax.Array]:
    """Returns the fields of a state after an update.

    An epoch ends every `steps_per_epoch` updates. A task that is absent for a whole
    epoch keeps its last two means.

    Args:
      state: state with five fields. `count`, int32, is the number of updates so far.
        `total` and `seen`, `[tasks]`, are the sum and the number of this epoch's
        losses. `last` and `before`, `[tasks]`, are the mean losses of the last epoch
        and of the epoch before it.
      losses: losses of the tasks, `[tasks]`.
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
