"""The forms in which users pass losses, and how to replace the functions in them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mtlopt._checks import check_num_tasks


@dataclasses.dataclass(frozen=True, eq=False)
class Stacked:
    """A head that is written for one task and runs for all tasks: see `stacked`."""

    head: Callable[..., Any]
    num_tasks: int


def stacked(head: Callable[..., Any], num_tasks: int) -> Stacked:
    """Declares heads whose parameters are stacked along a leading task axis.

    Use this form for many tasks of the same kind: it runs one program instead of
    `num_tasks` copies.

    Args:
      head: `head(params, z, task, *args) -> loss`, written for one task. Leaves
        labelled `"stacked"` come without their leading task axis. `task` is the index
        of the task, a traced int32. In a problem without `encode` there is no `z`.
      num_tasks: number of tasks, which is the size of the task axis.

    Returns:
      The value to pass to `task_grad` as `losses`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> params = {"w": jnp.ones(2), "heads": jnp.ones((3, 2))}
      >>> def head(params, z, task, x):
      ...     return (task + 1) * jnp.vdot(params["heads"], z)
      >>> oracle = mtlopt.task_grad(
      ...     mtlopt.stacked(head, 3),
      ...     {"w": "shared", "heads": "stacked"},
      ...     encode=lambda params, x: params["w"] * x,
      ... )
      >>> oracle(params, jnp.ones(2)).losses
      Array([2., 4., 6.], dtype=float32)
    """
    if not callable(head):
        raise TypeError(f"`head` must be callable, got {type(head).__name__}.")
    check_num_tasks(num_tasks)
    return Stacked(head, num_tasks)


def map_functions(
    losses: Any, change: Callable[..., Callable[..., Any]], has_latent: bool
) -> Any:
    """Returns `losses` in the same form, with `change` applied to each function.

    Args:
      losses: see `task_grad`.
      change: takes a function, the name for it in errors and, for a stacked head, the
        position of the task, counted from the first argument after the parameters.
      has_latent: whether the functions take a latent.
    """
    if isinstance(losses, Stacked):
        head = change(losses.head, "the stacked head", int(has_latent))
        return dataclasses.replace(losses, head=head)
    if isinstance(losses, Mapping):
        return {
            task: change(function, f"the loss of task {task!r}")
            for task, function in losses.items()
        }
    return change(losses, "`losses`")
