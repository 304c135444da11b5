"""FAMO: fast adaptive multitask optimization (Liu et al., NeurIPS 2023)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks, check_range, named_vector, task_argument
from mtlopt.common.task_weights import everyone
from mtlopt.grad import check_task_grads
from mtlopt.linalg.normalise import safe_divide
from mtlopt.per_label import advance
from mtlopt.slopes import slopes
from mtlopt.task_grads import TaskGrads
from mtlopt.weightings.by_losses import (
    above_reference,
    only_there,
)


class WeightByFamoState(NamedTuple):
    """State of `weight_by_famo`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
      logits: `[tasks]`, the learned `x`.
      inner_state: state of the optimizer of `x`, with a leading task axis.
      losses: `[tasks]`, the losses of the last update.
      seen: `[tasks]` bool, which tasks had a loss in the last update.
    """

    task_weights: jax.Array
    logits: jax.Array
    inner_state: Any
    losses: jax.Array
    seen: jax.Array


def _softmax(logits: jax.Array, there: jax.Array) -> jax.Array:
    return jnp.where(there, jax.nn.softmax(only_there(logits, there)), 0)


def famo_weights(
    losses: jax.Array, logits: jax.Array, present: jax.Array | None = None
) -> jax.Array:
    """Returns the weights `w` `[tasks]` of `weight_by_famo`, which sum to one.

    `losses` are `D` (losses minus lower bounds), and `logits` are `x`, `[tasks]`. A `D`
    of zero gives weight zero; a negative `D` gives NaN. A single task has weight 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(*famo_weights(jnp.array([1.0, 3.0]), jnp.zeros(2)))  # doctest: +NUMBER
      0.75 0.25
    """
    losses = jnp.asarray(losses)
    # softmax(x)_i / D_i over its sum, in logarithms.
    there = everyone(len(losses), present) & (losses != 0)
    return _softmax(logits - jnp.log(losses), there)


def weight_by_famo(
    num_tasks: int,
    gamma: Any = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    min_losses: Any = None,
    exact: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Lets all losses fall at the same rate, using only the losses: FAMO.

    .. math:: S = c \sum_i z_i \log D_i, \qquad w_i = c \, \frac{z_i}{D_i}, \qquad
        D = L - b, \quad z = \mathrm{softmax}(x), \quad
        c = \Big( \sum_i \frac{z_i}{D_i} \Big)^{-1}

    Gradients of `S` treat `c` as constant. The logits `x` start at 0 and, after each
    step, rise for the losses that fell least. The optimizer of `x` gets the
    gradient

    .. math:: z_i (\delta_i - \langle z, \delta \rangle) + \gamma x_i, \qquad
        \delta = \log D(\theta_t) - \log D(\theta_{t+1})

    Both values of `D` are for the same batch. Pass the later losses,
    `oracle.losses(params, *previous_batch)`, to the next update as `losses_after`. The
    default is the losses of the current batch. The first update does not move `x`.

    With `exact`, no second losses are needed: `delta` is the derivative of `log D`
    along this update `d`, for a learning rate of one:

    .. math:: \delta_i = \langle \nabla \log D_i, d \rangle, \qquad
        d = \sum_i w_i \nabla L_i

    This costs a backward pass (shared with a following `sum_tasks`) and a JVP. `x`
    moves in the same update. `gamma` has less effect, because this `delta` is larger.

    A constant factor that multiplies a loss changes only the length of the step. If a
    loss is at its lower bound, its logit does not move until the loss rises.

    Args:
      num_tasks: number of tasks T.
      gamma: pull of the logits towards zero, at least 0; part of the gradient that the
        optimizer gets. The paper's listing uses 1e-3; the authors' `famo.py` uses 1e-2.
      optimizer: any Optax optimizer for `x`. Default: `optax.adam(0.025)`.
      min_losses: lower bounds `b` of the losses, `[tasks]` or by name; zero if None.
      exact: whether `delta` is a derivative instead of a difference of losses.

    Raises:
      ValueError: if an argument does not fit the tasks, `gamma` is negative, or
        `losses_after` is given with `exact`.

    Examples:
      >>> import jax.numpy as jnp, mtlopt, optax
      >>> weighting = mtlopt.weight_by_famo(2, optimizer=optax.sgd(1.0))
      >>> state = weighting.init(jnp.zeros(2))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 1.0])
      >>> for after in (None, [0.5, 1.0]):
      ...     _, state = weighting.update(grads, state, losses_after=after)
      >>> print(*state.task_weights)  # doctest: +NUMBER
      0.414 0.586

    References:
      Liu et al., *FAMO*, NeurIPS 2023, algorithm 1.
    """
    check_num_tasks(num_tasks)
    check_range("gamma", gamma)
    read_min_losses = task_argument("min_losses", min_losses, num_tasks)
    # This `eps_root` is below all rounding. With it, a slope of zero has a derivative.
    default = optax.adam(0.025, eps_root=1e-30)
    inner = optax.with_extra_args_support(optimizer or default)

    def init_fn(params: Any) -> WeightByFamoState:
        del params
        logits = jnp.zeros(num_tasks)
        return WeightByFamoState(
            jnp.full(num_tasks, 1 / num_tasks, float),
            logits,
            jax.vmap(inner.init)(logits),
            jnp.zeros(num_tasks),
            jnp.zeros(num_tasks, bool),
        )

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        losses_after: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, WeightByFamoState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "weight_by_famo")
        dtype = state.logits.dtype
        losses = grads.losses.astype(dtype)
        there = everyone(len(losses), grads.present)
        lowest = read_min_losses(grads.tasks)
        current = above_reference(losses, lowest, there)
        logits, inner_state = state.logits, state.inner_state
        weights = famo_weights(current, logits, there)
        if exact:
            if losses_after is not None:
                raise ValueError(
                    "`losses_after` must be left out with `exact=True`, got losses."
                )
            both = there & (current != 0)
            along = slopes(grads, grads.scale_by(weights).total()).total
            fall = safe_divide(along.astype(dtype), current)
        else:
            fall, both = _fall(state, losses, losses_after, grads, lowest)
        shares = _softmax(logits, both)
        slope = shares * (fall - jnp.sum(shares * fall)) + gamma * logits
        steps, inner_state = jax.vmap(functools.partial(advance, inner))(
            slope, inner_state, logits, both
        )
        logits = logits + steps
        if not exact:  # this step uses the logits learned from the last step
            weights = famo_weights(current, logits, there)
        return grads.scale_by(weights), WeightByFamoState(
            weights, logits, inner_state, jnp.where(there, losses, 0), there
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _fall(
    state: WeightByFamoState,
    losses: jax.Array,
    losses_after: Any,
    grads: TaskGrads,
    lowest: Any,
) -> tuple[jax.Array, jax.Array]:
    """Returns how far `log D` fell in the last step, and for which tasks."""
    if losses_after is None:
        after, both = losses, state.seen & everyone(len(losses), grads.present)
    else:
        after = named_vector("losses_after", losses_after, grads.tasks)
        after, both = after.astype(losses.dtype), state.seen
    before = above_reference(state.losses, lowest, both)
    after = above_reference(after, lowest, both)
    # A loss of zero has no logarithm. NaN is not zero and stays visible.
    both = both & (before != 0) & (after != 0)
    before, after = jnp.where(both, before, 1), jnp.where(both, after, 1)
    return jnp.log(before) - jnp.log(after), both
