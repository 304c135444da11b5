"""An ordinary gradient (not one per task), and checks of a transform's argument."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt._checks import check_state_tasks
from mtlopt._guard import SaysWhatToDo
from mtlopt.task_grads import TaskGrads

PyTree = Any


class _GradFields(NamedTuple):
    losses: jax.Array
    grad: PyTree
    aux: Any
    state: PyTree = None


class Grad(_GradFields, metaclass=SaysWhatToDo):
    """Losses and an ordinary gradient from an oracle's `task`, `block` or `heads`.

    Pass its `grad` to an optimizer.

    Attributes:
      losses: `[tasks]`; a scalar if you requested one task.
      grad: pytree with the structure of the parameters, zero for leaves that you did
        not request.
      aux: an `Aux`, or None without `has_aux`.
      state: the model's new state, or None without `has_state`.
    """

    __slots__ = ()
    what_to_do = "pass its `.grad`"


def check_task_grads(
    updates: Any,
    num_tasks: int,
    params: PyTree | None = None,
    state: Any = None,
    name: str = "",
) -> TaskGrads:
    """Returns `updates` if they are the gradients of `num_tasks` tasks, or raises.

    Args:
      updates: the argument that was passed to the transform.
      num_tasks: number of tasks that the transform was built for.
      params: parameters, if they were passed to the transform.
      state: state of the transform, whose `task_weights` are `[tasks]`.
      name: name of the transform; without it the state is not checked.

    Raises:
      TypeError: if `updates` is not a `TaskGrads`, or `state` is the state of another
        transform.
      ValueError: if `num_tasks` or the structure of `params` does not fit the
        gradients, or if `state` was made for another number of tasks.
    """
    if isinstance(updates, Grad):
        raise TypeError(
            "`updates` must be a mtlopt.TaskGrads, got Grad, which has only one "
            "gradient, so there is nothing to weight or combine. Pass its `.grad` to "
            "an Optax optimizer without a method before it."
        )
    if not isinstance(updates, TaskGrads):
        if type(updates).__name__ == "State":
            raise TypeError(
                "`updates` must be a mtlopt.TaskGrads, got a State of Flax NNX. Place "
                "weightings first, then one aggregator, then ordinary Optax "
                "transforms. Pass the chain to mtlopt.nnx.Optimizer, and call its "
                "update with the model and the result of an oracle of mtlopt.nnx."
            )
        raise TypeError(
            f"`updates` must be a mtlopt.TaskGrads, got {type(updates).__name__}. "
            "Compute it with mtlopt.task_grad, and place weightings first, then one "
            "aggregator, then ordinary Optax transforms."
        )
    if updates.num_tasks != num_tasks:
        whose = f" of `{name}`" if name else ""
        raise ValueError(
            f"`num_tasks`{whose} must be {updates.num_tasks}, the number of tasks of "
            f"the gradients, got {num_tasks}."
        )
    if params is not None:
        structure = jax.tree.structure(params)
        if structure != updates.partition.treedef:
            raise ValueError(
                "`params` must have the structure of the parameters for which the "
                f"gradients were computed, {updates.partition.treedef}, got "
                f"{structure}."
            )
    if name:
        weights = getattr(state, "task_weights", None)
        if weights is None:
            raise TypeError(
                f"`state` must be the state of `{name}`, as its `init` returns it, got "
                f"{type(state).__name__}."
            )
        check_state_tasks(name, jnp.size(weights), num_tasks)
    return updates


def check_updates(updates: Any, name: str, otherwise: str = "") -> None:
    """Raises if the argument of the transform `name` cannot update parameters.

    Args:
      updates: the argument.
      name: name of the transform.
      otherwise: what the user can do instead of chaining an aggregator.
    """
    if isinstance(updates, TaskGrads):
        raise TypeError(
            "`updates` must have the structure of the parameters, got TaskGrads. "
            f"Chain an aggregator before `{name}`{otherwise}."
        )
    check_no_grad(updates, name)


def check_no_grad(updates: Any, name: str) -> None:
    """Raises if a `Grad` was passed to the transform `name`."""
    if isinstance(updates, Grad):
        raise TypeError(
            f"`updates` must not be a Grad, got one. Pass its `.grad` to `{name}`."
        )
