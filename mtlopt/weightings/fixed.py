"""Fixed loss weights: linear scalarization."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from mtlopt._checks import as_task_vector
from mtlopt.aggregators.by_weights import TaskWeightsState
from mtlopt.task_grads import TaskGrads, check_task_grads


def weight_by_fixed(weights: Any) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the losses by given weights.

    .. math:: L_i \leftarrow w_i L_i

    Weightings scale losses, so they scale a task's head as well as its share of the
    common direction: `chain(weight_by_fixed(w), sum_tasks(T))` trains on
    `sum_i w_i L_i`.

    Args:
      weights: `w` `[tasks]`.

    Returns:
      A weighting: `TaskGrads` in, `TaskGrads` out; chain it before an aggregator.

    Raises:
      ValueError: if `weights` is not a vector, or the number of tasks differs.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt, optax
      >>> tx = optax.chain(mtlopt.weight_by_fixed([1.0, 10.0]), mtlopt.sum_tasks(2))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
      >>> tx.update(grads, tx.init(jnp.zeros(2)))[0]
      Array([ 1., 10.], dtype=float32)
    """
    if isinstance(weights, Mapping):
        raise TypeError("`weights` must be a vector [tasks], got a mapping.")
    factors = jnp.asarray(weights)
    if factors.ndim != 1 or not factors.size:
        raise ValueError(
            f"`weights` must be a vector [tasks], got shape {factors.shape}."
        )

    def init_fn(params: Any) -> TaskWeightsState:
        del params
        return TaskWeightsState(factors.astype(float))

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, TaskWeightsState]:
        del extra_args
        if isinstance(updates, TaskGrads):
            as_task_vector("weights", factors, updates.num_tasks)
        grads = check_task_grads(
            updates, len(factors), params, state, "weight_by_fixed"
        )
        used = factors.astype(float)
        if grads.present is not None:
            used = jnp.where(grads.present, used, 0)
        return grads.scale_by(factors), TaskWeightsState(used)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
