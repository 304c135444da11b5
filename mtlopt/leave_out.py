"""An aggregator that ignores some of the tasks, while their heads still train."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from mtlopt._checks import as_transform, task_mask
from mtlopt.task_grads import TaskGrads


def leave_out(
    aggregator: optax.GradientTransformation, tasks: Sequence[str | int]
) -> optax.GradientTransformationExtraArgs:
    r"""Hides tasks from an aggregator; the heads of these tasks still train.

    .. math:: d = A(\{g_i : i \notin \text{tasks}\})

    Use it for a probe: a head on `jax.lax.stop_gradient(z)` that measures which
    information the latent holds. The gradient of a probe with respect to the shared
    parameters is zero. So without `leave_out`, a probe stops MGDA, MGDA-UB and EDM: a
    zero gradient makes their direction zero. Use it also for a task that may read the
    shared parameters but must not change them.

    The aggregator is built for all tasks and treats the hidden tasks like tasks that
    `present` marks as absent: their weights are zero. Weightings before the aggregator
    still scale the losses of hidden tasks. `leave_out` works inside and outside of
    `in_latent_space`. Hidden tasks need no backward pass, unless rows (the tasks'
    gradients) are streamed.

    Args:
      aggregator: an aggregator of this library.
      tasks: names or indices of the tasks.

    Returns:
      An aggregator with the same state as `aggregator`.

    Raises:
      TypeError: if `aggregator` is not a transform.
      ValueError: if `tasks` is empty; at the first update, if `tasks` names an unknown
        task or contains all tasks, or if `aggregator` contains a weighting.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> def probe(params, z):
      ...     return (params["probe"] * jax.lax.stop_gradient(z) - 1) ** 2
      >>> oracle = mtlopt.task_grad(
      ...     {"a": lambda params, z: params["a"] * z, "probe": probe},
      ...     {"w": "shared", "a": "a", "probe": "probe"},
      ...     encode=lambda params: 2 * params["w"],
      ... )
      >>> params = {"w": jnp.array(1.0), "a": jnp.array(3.0), "probe": jnp.array(1.0)}
      >>> for tx in (mtlopt.mgda(2), mtlopt.leave_out(mtlopt.mgda(2), ["probe"])):
      ...     updates, _ = tx.update(oracle(params), tx.init(params), params)
      ...     print(round(float(updates["w"]), 3), updates["a"], updates["probe"])
      0.0 2.0 4.0
      6.0 2.0 4.0
    """
    inner = as_transform("aggregator", aggregator)
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise TypeError(
            "`tasks` must be a sequence of names or indices of tasks, got "
            f"{tasks!r}. For one task, write [{tasks!r}]."
        )
    if not tasks:
        raise ValueError("`tasks` must have at least one task, got none.")

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        if isinstance(updates, TaskGrads):
            updates = updates.without_rows(_members(tasks, updates.tasks))
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _members(chosen: Sequence[str | int], tasks: tuple[str, ...]) -> np.ndarray:
    """Returns a bool mask `[tasks]` of the chosen tasks; raises if all are chosen."""
    members = task_mask("tasks", chosen, tasks)
    if members.all():
        raise ValueError("`tasks` must leave at least one task, got all of them.")
    return members
