"""IMTL-L: learned scales that bring every weighted loss to 1 (Liu et al., 2021)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks
from mtlopt.common.task_weights import everyone
from mtlopt.grad import check_task_grads
from mtlopt.per_label import advance
from mtlopt.weightings.by_losses import bounded_slope


class WeightByImtlLState(NamedTuple):
    """State of `weight_by_imtl_l`: the learned `s`, and its optimizer's state."""

    task_weights: jax.Array
    log_scale: jax.Array
    inner_state: Any


def weight_by_imtl_l(
    num_tasks: int, optimizer: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Learns a scale per task that brings the task's weighted loss to one: IMTL-L.

    .. math:: S = \sum_i e^{s_i} L_i - s_i, \qquad w_i = e^{s_i}

    `s_i` starts at 0, so training starts from the summed loss. At the minimum,
    `w_i L_i = 1`. `S` is twice the loss of `weight_by_uncertainty` for regression, with
    `-s` in place of `s` and the same clipping. Losses must be positive: if a loss
    stays zero, its scale grows without bound. With `imtl_g` after it, this is IMTL.

    Args:
      num_tasks: number of tasks T.
      optimizer: any Optax optimizer for `s`. Default: `optax.adam(1e-2)`. With plain
        SGD, the step of `s_i` grows with the scale of `L_i`, up to a slope of 1e3.

    Examples:
      >>> import jax.numpy as jnp, mtlopt, optax
      >>> weighting = mtlopt.weight_by_imtl_l(2, optimizer=optax.sgd(0.1))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 5.0])
      >>> _, state = weighting.update(grads, weighting.init(jnp.zeros(2)))
      >>> print(*weighting.update(grads, state)[1].task_weights)  # doctest: +NUMBER
      1.00 0.67

    References:
      Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021, section 3.2.
    """
    check_num_tasks(num_tasks)
    inner = optax.with_extra_args_support(optimizer or optax.adam(1e-2))

    def init_fn(params: Any) -> WeightByImtlLState:
        del params
        log_scale = jnp.zeros(num_tasks)
        return WeightByImtlLState(
            jnp.ones(num_tasks), log_scale, jax.vmap(inner.init)(log_scale)
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WeightByImtlLState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "weight_by_imtl_l")
        scales = jnp.exp(state.log_scale)
        slope = bounded_slope(scales * grads.losses.astype(scales.dtype) - 1)
        steps, inner_state = jax.vmap(functools.partial(advance, inner))(
            slope, state.inner_state, state.log_scale, grads.present
        )
        weights = jnp.where(everyone(num_tasks, grads.present), scales, 0)
        return grads.scale_by(weights), WeightByImtlLState(
            weights, state.log_scale + steps, inner_state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
