"""IMTL-L: learned scales that make all weighted losses one (Liu et al., 2021)."""

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
    """State of `weight_by_imtl_l`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
      log_scale: `[tasks]`, the learned `s`.
      inner_state: state of the optimizer of `s`, with a leading task axis.
    """

    task_weights: jax.Array
    log_scale: jax.Array
    inner_state: Any


def weight_by_imtl_l(
    num_tasks: int, optimizer: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Learns a scale per task that makes its weighted loss one: IMTL-L.

    .. math:: S = \sum_i e^{s_i} L_i - s_i, \qquad
        w_i = \frac{\partial S}{\partial L_i} = e^{s_i}

    with `s_i` the log-scale of task i, initially 0, so that training starts from the
    plain sum; `w_i L_i = 1` where `s_i` is at rest. It is learned along with the
    parameters by its own optimizer, so that a weight decay of the model never touches
    it; an absent task's `s` and its optimizer state stand still. The first update on T
    equal gradients g returns `T g`. It is twice `weight_by_uncertainty` of regression
    losses at `-s`.

    Losses must be positive: the scale of one that stays zero grows without bound. The
    slope of `s_i` is at most 1e3 in size, so that one huge or infinite loss does not
    fill the optimizer's moments for good; that of a NaN loss is NaN, and so is `s_i`
    from then on, see `skip_not_finite`. With `imtl_g` behind it, this is IMTL. Scales
    the losses, so heads too.

    Args:
      num_tasks: number of tasks T.
      optimizer: any Optax optimizer for `s`. Default: `optax.adam(1e-2)`. With plain
        SGD the step of `s_i` grows with the unit of `L_i`, up to slopes of 1e3.

    Returns:
      A weighting: `TaskGrads` in, `TaskGrads` out; chain it before an aggregator.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt, optax
      >>> weighting = mtlopt.weight_by_imtl_l(2, optimizer=optax.sgd(0.1))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 5.0])
      >>> state = weighting.init(jnp.zeros(2))
      >>> for _ in range(2):
      ...     scaled, state = weighting.update(grads, state)
      >>> [round(float(weight), 3) for weight in state.task_weights]
      [1.0, 0.67]

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
