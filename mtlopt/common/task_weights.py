"""Weights of the tasks: equal or preferred weights, and the weights in a state."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt._checks import as_task_vector


class TaskWeightsState(NamedTuple):
    """State of methods without memory: the last weights, for monitoring.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
    """

    task_weights: jax.Array

    @classmethod
    def uniform(cls, num_tasks: int) -> "TaskWeightsState":
        """Returns the state before the first update: weights 1/T."""
        return cls(jnp.full(num_tasks, 1 / num_tasks, float))


def everyone(num_tasks: int, present: jax.Array | None) -> jax.Array:
    """Returns which tasks are present as a mask, `[tasks]` bool."""
    return jnp.ones(num_tasks, bool) if present is None else present


def mean_weights(
    num_tasks: int, preference: Any = None, present: jax.Array | None = None
) -> jax.Array:
    """Returns the preference; its default is one over the number of present tasks.

    Args:
      num_tasks: number of tasks T.
      preference: `[tasks]`, used as given; None for equal weights that sum to one.
      present: `[tasks]` bool; absent tasks get weight zero. None means all are present.

    Returns:
      Weights `[tasks]`.

    Examples:
      >>> import jax.numpy as jnp
      >>> mean_weights(4, present=jnp.array([True, True, False, False]))
      Array([0.5, 0.5, 0. , 0. ], dtype=float32)
    """
    there = jnp.ones(num_tasks) if present is None else present.astype(float)
    if preference is None:
        return there / jnp.maximum(jnp.sum(there), 1)
    return as_task_vector("preference", preference, num_tasks) * there


def task_weights(opt_state: Any) -> jax.Array:
    r"""Returns the weights that the last update gave to the task gradients.

    .. math:: d = \sum_i \alpha_i s_i g_i, \qquad w_i = \alpha_i s_i

    Every method keeps its weights as `task_weights` in its state. This function finds
    them in chains and wrappers. It multiplies the weights `s` of a weighting, which
    scale the losses, by the weights `alpha` of the aggregator after it. So the update
    of the shared parameters that reaches the base optimizer is `sum_i w_i g_i`. The
    gradients of heads are scaled by `s` only. To list the factors separately, use
    `optax.tree.get_all_with_path(opt_state, "task_weights")`.

    Some methods differ from this formula. Methods with memory (`moco`, `balance_norms`
    with labels) apply their weights to averaged gradients. For methods that work entry
    by entry (`graddrop`, `trimmed_mean`), the result is each task's weight averaged
    over all entries. Weightings that learn or remember (`weight_by_uncertainty`,
    `weight_by_gradnorm`, `weight_by_excess`) give an absent task the weight that it
    would have if it were present.

    Args:
      opt_state: state of a chain with a weighting or an aggregator. It may be stacked
        over several seeds by `vmap`.

    Returns:
      Weights `[tasks]`, with the leading axes of a stacked state. Before the first
      update, they are the initial weights from `init`.

    Raises:
      ValueError: if `opt_state` contains no weights, or weights of different shapes.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt, optax
      >>> tx = optax.chain(
      ...     mtlopt.weight_by_log(2), mtlopt.mean_tasks(2), optax.adam(1e-3)
      ... )
      >>> params = {"w": jnp.zeros(2)}
      >>> rows = {"w": jnp.array([[1.0, 0.0], [0.0, 1.0]])}
      >>> grads = mtlopt.TaskGrads.from_rows(rows, losses=[0.5, 2.0])
      >>> _, opt_state = tx.update(grads, tx.init(params), params)
      >>> mtlopt.task_weights(opt_state)
      Array([1.  , 0.25], dtype=float32)
    """

    def has_weights(node: Any) -> bool:
        return hasattr(node, "task_weights")

    # A state with weights is not searched further: its weights include those inside it.
    nodes = jax.tree.leaves(opt_state, is_leaf=has_weights)
    # In an optimizer of Flax NNX the weights are variables.
    found = [jnp.asarray(node.task_weights) for node in nodes if has_weights(node)]
    if not found:
        raise ValueError(
            "`opt_state` must hold the state of a weighting or an aggregator, which "
            "has `task_weights`, got a state without `task_weights`."
        )
    shapes = [weights.shape for weights in found]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"`opt_state` must hold weights of the same tasks, got shapes {shapes}. "
            "Pass the state of one chain at a time."
        )
    return functools.reduce(operator.mul, found)
