"""Fixed loss weights: linear scalarization."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from mtlopt._checks import task_argument
from mtlopt.common.task_weights import TaskWeightsState
from mtlopt.grad import check_task_grads
from mtlopt.task_grads import TaskGrads


def weight_by_fixed(weights: Any) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the losses by given weights.

    .. math:: L_i \leftarrow w_i L_i

    `chain(weight_by_fixed(w), sum_tasks(T))` trains on `sum_i w_i L_i`.

    Args:
      weights: `w`, finite numbers `[tasks]` or a mapping from task to weight.

    Raises:
      ValueError: if `weights` has a wrong form or size, or is not finite.

    Examples:
      >>> import jax.numpy as jnp, mtlopt, optax
      >>> tx = optax.chain(mtlopt.weight_by_fixed([1.0, 10.0]), mtlopt.sum_tasks(2))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
      >>> print(tx.update(grads, tx.init(jnp.zeros(2)))[0])
      [ 1. 10.]
    """
    by_name = isinstance(weights, Mapping)
    shape = (len(weights),) if by_name else jnp.asarray(weights).shape
    if len(shape) != 1 or not shape[0]:
        raise ValueError(
            "`weights` must be a vector [tasks] or a mapping from task to weight, got "
            f"shape {shape}."
        )
    num_tasks = shape[0]
    read = task_argument("weights", weights, num_tasks)

    def init_fn(params: Any) -> TaskWeightsState:
        del params
        # With names, the order of the tasks is known only at the update.
        first = jnp.ones(num_tasks) if by_name else jnp.asarray(weights)
        return TaskWeightsState(jnp.array(first, float, copy=True))

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, TaskWeightsState]:
        del extra_args
        if isinstance(updates, TaskGrads):
            read(updates.tasks)  # first, because its error names the weights
        grads = check_task_grads(updates, num_tasks, params, state, "weight_by_fixed")
        factors = read(grads.tasks)
        used = factors.astype(float)
        if grads.present is not None:
            used = jnp.where(grads.present, used, 0)
        return grads.scale_by(factors), TaskWeightsState(used)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
