"""Aggregators whose direction is a weighted sum of the task rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import Reader, check_num_tasks
from mtlopt.grad import check_task_grads


class TaskWeightsState(NamedTuple):
    """State of methods that remember nothing: the last weights, for monitoring.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
    """

    task_weights: jax.Array

    @classmethod
    def uniform(cls, num_tasks: int) -> "TaskWeightsState":
        """Returns the state before the first update: weights 1/T."""
        return cls(jnp.full(num_tasks, 1 / num_tasks, float))


def aggregate_by_weights(
    num_tasks: int, weights: Callable[..., jax.Array], **arguments: Reader
) -> optax.GradientTransformationExtraArgs:
    """Builds an aggregator from the function that weighs the rows.

    Args:
      num_tasks: number of tasks T.
      weights: from the rows, which tasks are present, and the arguments as vectors
        `[tasks]` to weights `[tasks]`.
      **arguments: those with one entry per task, see `task_argument`.

    Returns:
      An aggregator whose state is a `TaskWeightsState`.
    """
    check_num_tasks(num_tasks)
    method = weights.__qualname__.partition(".")[0]  # the factory that defines it

    def init_fn(params: Any) -> TaskWeightsState:
        del params
        return TaskWeightsState.uniform(num_tasks)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, TaskWeightsState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, method)
        rows = grads.rows()
        vectors = {name: read(grads.tasks) for name, read in arguments.items()}
        found = weights(rows, grads.present, **vectors)
        state = TaskWeightsState(found.astype(state.task_weights.dtype))
        return grads.updates(rows.combine(found)), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
