"""Weightings that remember nothing: their weights are a function of the losses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_task_vector, check_num_tasks
from mtlopt.aggregators.by_weights import TaskWeightsState
from mtlopt.aggregators.sums import mean_weights
from mtlopt.task_grads import check_task_grads


def weight_by_losses(
    num_tasks: int,
    weights: Callable[[jax.Array, jax.Array | None], jax.Array],
    **vectors: Any,
) -> optax.GradientTransformationExtraArgs:
    """Builds a weighting from the function that weighs the losses.

    Args:
      num_tasks: number of tasks T.
      weights: from the losses, float32 or wider, and which tasks are present to
        weights `[tasks]` of the same dtype.
      **vectors: arguments that must be None or have one entry per task.

    Returns:
      A weighting whose state is a `TaskWeightsState`.
    """
    check_num_tasks(num_tasks)
    method = weights.__qualname__.partition(".")[0]  # the factory that defines it
    for name, value in vectors.items():
        if value is not None:
            as_task_vector(name, value, num_tasks)

    def init_fn(params: Any) -> TaskWeightsState:
        del params
        return TaskWeightsState.uniform(num_tasks)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, TaskWeightsState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, method)
        losses = jax.lax.stop_gradient(grads.losses).astype(state.task_weights.dtype)
        found = weights(losses, grads.present)
        return grads.scale_by(found), TaskWeightsState(found)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def everyone(losses: jax.Array, present: jax.Array | None) -> jax.Array:
    """Returns which tasks are present as a mask, `[tasks]` bool."""
    return jnp.ones(losses.shape, bool) if present is None else present


def preference_of(
    losses: jax.Array, preference: Any, present: jax.Array | None
) -> jax.Array:
    """Returns the preference in the losses' dtype, by default one over their number."""
    return mean_weights(len(losses), preference, present).astype(losses.dtype)


def above_reference(
    losses: jax.Array, reference: Any, present: jax.Array | None
) -> jax.Array:
    """Returns the losses less the reference point, and zero for absent tasks."""
    if reference is not None:
        losses = losses - jnp.asarray(reference, losses.dtype)
    return losses if present is None else jnp.where(present, losses, 0)
