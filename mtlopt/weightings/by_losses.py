"""Weightings without memory: their weights are a function of the losses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import Reader, check_num_tasks
from mtlopt.common.task_weights import TaskWeightsState, mean_weights
from mtlopt.grad import check_task_grads

# The largest slope of a log-weight. At rest, weighted losses are about 1, so only the
# sign of a larger slope matters. The square of the slope, which Adam keeps, overflows
# for losses above 1e19. NaN stays NaN.
STEEPEST = 1e3


def weight_by_losses(
    name: str,
    num_tasks: int,
    weights: Callable[..., jax.Array],
    **arguments: Reader,
) -> optax.GradientTransformationExtraArgs:
    """Builds a weighting from `weights(losses, present, **vectors)`.

    The losses are float32 or wider. See `task_argument` for the `arguments`.
    """
    check_num_tasks(num_tasks)

    def init_fn(params: Any) -> TaskWeightsState:
        del params
        return TaskWeightsState.uniform(num_tasks)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, TaskWeightsState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, name)
        losses = grads.losses.astype(state.task_weights.dtype)
        vectors = {name: read(grads.tasks) for name, read in arguments.items()}
        found = weights(losses, grads.present, **vectors)
        return grads.scale_by(found), TaskWeightsState(found)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def bounded_slope(slope: jax.Array) -> jax.Array:
    """Returns the slope of a learned log-weight, limited to `STEEPEST` in size."""
    return jnp.clip(slope, -STEEPEST, STEEPEST)


def only_there(logits: jax.Array, there: jax.Array) -> jax.Array:
    """Returns logits of a softmax over the present tasks, with -inf for the others."""
    # Zeros if no task is present, because -inf less -inf is NaN.
    return jnp.where(there, logits, jnp.where(jnp.any(there), -jnp.inf, 0))


def preference_of(
    losses: jax.Array, preference: Any, present: jax.Array | None
) -> jax.Array:
    """Returns the preference in the dtype of the losses; by default it is `1/T`."""
    return mean_weights(len(losses), preference, present).astype(losses.dtype)


def above_reference(
    losses: jax.Array, reference: Any, present: jax.Array | None
) -> jax.Array:
    """Returns the losses minus the reference point, and zero for absent tasks."""
    if reference is not None:
        losses = losses - jnp.asarray(reference, losses.dtype)
    return losses if present is None else jnp.where(present, losses, 0)
