"""Checks of the arguments of a line search: a direction finder and gradients."""

from typing import Any

import jax

from mtlopt.task_grads import TaskGrads


def check_direction(found: Any, grads: TaskGrads) -> None:
    """Raises unless a direction has the structure of the gradients."""
    if jax.tree.structure(found) != grads.partition.treedef:
        raise TypeError(
            "`direction` must be an aggregator, or weightings chained with one, got a "
            f"transform that turns the gradients into a {type(found).__name__}."
        )


def check_searchable(updates: Any, params: Any) -> TaskGrads:
    """Returns `updates`, or raises an error if the losses cannot be computed again."""
    if not isinstance(updates, TaskGrads):
        raise TypeError(
            f"`updates` must be a mtlopt.TaskGrads, got {type(updates).__name__}. A "
            "line search takes the gradients of the tasks and comes last in a chain."
        )
    if params is None:
        raise ValueError("`params` must be passed to the update of a line search.")
    if updates.losses_at is None:
        raise ValueError(
            "`updates` must come from mtlopt.task_grad: a line search evaluates the "
            "losses at other parameters, and a Jacobian alone cannot do this."
        )
    return updates
