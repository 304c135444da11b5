"""Fixed combinations of the task gradients: the summed and the averaged loss."""

from typing import Any

import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks, preference_argument
from mtlopt.common.task_weights import TaskWeightsState, mean_weights
from mtlopt.grad import check_task_grads
from mtlopt.partition import check_params


def sum_tasks(num_tasks: int) -> optax.GradientTransformationExtraArgs:
    r"""Adds the task gradients: ordinary training on the summed loss.

    .. math:: d = \sum_i s_i g_i

    `chain(weight_by_fixed(w), sum_tasks(T))` is linear scalarization.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [-2.0, 4.0]]))
      >>> aggregator = mtlopt.sum_tasks(2)
      >>> print(aggregator.update(grads, aggregator.init(jnp.zeros(2)))[0])
      [-1.  4.]
    """
    check_num_tasks(num_tasks)

    def init_fn(params: Any) -> TaskWeightsState:
        check_params(params)
        return TaskWeightsState(jnp.ones(num_tasks, float))

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, TaskWeightsState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "sum_tasks")
        weights = jnp.ones(num_tasks, float)
        if grads.present is not None:
            weights = jnp.where(grads.present, weights, 0)
        return grads.total(), TaskWeightsState(weights)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def mean_tasks(
    num_tasks: int, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the task gradients of the shared parameters.

    .. math:: d = \sum_i w_i s_i g_i, \qquad w_i = 1/T \text{ or the preference}

    To weight the gradients of the heads too, scale the losses with `weight_by_fixed`.

    Args:
      num_tasks: number of tasks T.
      preference: `w`, `[tasks]` or by name, at least 0, used as given; `1/T` if None.

    Raises:
      ValueError: if `preference` does not fit the tasks, is negative, or is all zero.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [-2.0, 4.0]]))
      >>> aggregator = mtlopt.mean_tasks(2)
      >>> print(aggregator.update(grads, aggregator.init(jnp.zeros(2)))[0])
      [-0.5  2. ]
    """
    check_num_tasks(num_tasks)
    read = preference_argument(preference, num_tasks)

    def init_fn(params: Any) -> TaskWeightsState:
        check_params(params)
        return TaskWeightsState.uniform(num_tasks)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, TaskWeightsState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "mean_tasks")
        weights = mean_weights(num_tasks, read(grads.tasks), grads.present)
        weights = weights.astype(state.task_weights.dtype)
        return grads.combine(weights), TaskWeightsState(weights)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
