"""Uncertainty weighting (Kendall et al., 2018)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_choice, check_num_tasks, in_order
from mtlopt.grad import check_task_grads
from mtlopt.per_label import advance
from mtlopt.weightings.by_losses import bounded_slope

LossKind = Literal["regression", "classification"]
_FACTORS = {"regression": 0.5, "classification": 1.0}  # `c` in the formula


class WeightByUncertaintyState(NamedTuple):
    """State of `weight_by_uncertainty`: the learned `s`, and its optimizer's state."""

    task_weights: jax.Array
    log_variance: jax.Array
    inner_state: Any


def weight_by_uncertainty(
    num_tasks: int,
    kind: LossKind | Sequence[LossKind] | Mapping[str, LossKind] = "regression",
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Learns a noise level per task and weights the task's loss by the inverse level.

    .. math:: L = \sum_i c_i e^{-s_i} L_i + \tfrac12 s_i, \qquad w_i = c_i e^{-s_i}

    Here `s_i` is the log-variance of task i, initially 0. `c_i` is 1/2 for a regression
    loss (squared error) and 1 for a classification loss (cross-entropy). It is normal
    if the combined loss becomes negative: watch `TaskGrads.losses`.

    The gradient for `s_i` is clipped to at most 1e3 in size, so one huge or infinite
    loss does not spoil the optimizer's moments for good. A NaN loss makes this gradient
    NaN, and `s_i` stays NaN. `skip_not_finite` around the chain skips such a batch.

    Args:
      num_tasks: number of tasks T.
      kind: `"regression"` or `"classification"`, for all tasks or one per task, in
        order or by name. An absolute error (Laplace distribution) counts as regression.
      optimizer: any Optax optimizer for `s`. Default: `optax.adam(1e-2)`.

    Raises:
      ValueError: if `kind` is unknown or does not have one entry per task.

    Examples:
      >>> import jax.numpy as jnp, mtlopt, optax
      >>> weighting = mtlopt.weight_by_uncertainty(2, optimizer=optax.sgd(0.1))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 9.0])
      >>> _, state = weighting.update(grads, weighting.init(jnp.zeros(2)))
      >>> print(*weighting.update(grads, state)[1].task_weights)  # doctest: +NUMBER
      0.5 0.335

    References:
      Kendall, Gal and Cipolla, *Multi-task learning using uncertainty to weigh losses*,
      CVPR 2018, equations 7 and 10, in log-variances.
    """
    check_num_tasks(num_tasks)
    if isinstance(kind, Mapping):
        kinds = tuple(kind.values())
    else:
        kinds = (kind,) * num_tasks if isinstance(kind, str) else tuple(kind)
    if len(kinds) != num_tasks:
        raise ValueError(
            f"`kind` must have one entry per task, {num_tasks}, got {len(kinds)}."
        )
    for one in kinds:
        check_choice("kind", one, ("regression", "classification"))
    inner = optax.with_extra_args_support(optimizer or optax.adam(1e-2))

    def factors(tasks: Sequence[str]) -> list[float]:
        own = in_order("kind", kind, tasks) if isinstance(kind, Mapping) else kinds
        return [_FACTORS[one] for one in own]

    def init_fn(params: Any) -> WeightByUncertaintyState:
        del params
        log_variance = jnp.zeros(num_tasks)
        # With names, the order of the tasks is known only at the update.
        by_name = isinstance(kind, Mapping)
        weights = jnp.ones(num_tasks) if by_name else jnp.asarray(factors(()))
        return WeightByUncertaintyState(
            weights, log_variance, jax.vmap(inner.init)(log_variance)
        )

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, WeightByUncertaintyState]:
        del extra_args
        grads = check_task_grads(
            updates, num_tasks, params, state, "weight_by_uncertainty"
        )
        dtype = state.log_variance.dtype
        weights = jnp.asarray(factors(grads.tasks), dtype)
        weights *= jnp.exp(-state.log_variance)
        # The derivative of `c exp(-s) L + s / 2`.
        slope = bounded_slope(0.5 - weights * grads.losses.astype(dtype))

        steps, inner_state = jax.vmap(functools.partial(advance, inner))(
            slope, state.inner_state, state.log_variance, grads.present
        )
        return grads.scale_by(weights), WeightByUncertaintyState(
            weights, state.log_variance + steps, inner_state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
