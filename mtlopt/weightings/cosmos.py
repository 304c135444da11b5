"""COSMOS: a weighted sum less a cosine (Ruchte and Grabocka, 2021)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_range, preference_argument
from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.vectors import off_axis, unit_vector
from mtlopt.weightings.by_losses import (
    above_reference,
    preference_of,
    weight_by_losses,
)


def cosmos_weights(
    losses: jax.Array,
    penalty: Any = 1.0,
    preference: Any = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the derivatives of COSMOS, see `weight_by_cosmos`.

    Args:
      losses: `L` `[tasks]`.
      penalty: `lambda`, not negative, in the unit of the losses.
      preference: `p` `[tasks]`, used as it is; None for one over the number of tasks.
      present: `[tasks]` bool; absent tasks weigh nothing. None for all.

    Returns:
      Weights `[tasks]`. They may be negative.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(cosmos_weights(jnp.array([0.0, 2.0]), 1.0, jnp.array([3.0, 4.0])))
      [2.7 4. ]
    """
    losses = jnp.asarray(losses)
    preference = preference_of(losses, preference, present)
    axis, length = unit_vector(above_reference(losses, None, present))
    towards = off_axis(unit_vector(preference)[0], axis)
    return preference - safe_divide(penalty * towards, length)


def weight_by_cosmos(
    num_tasks: int, penalty: Any = 1.0, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Descends a weighted sum and turns the losses towards a preference: COSMOS.

    .. math:: S = \langle p, L \rangle - \lambda \cos(p, L)

        w = \frac{\partial S}{\partial L} = p - \frac{\lambda}{|L|}
        \left( \frac{p}{|p|} - \cos(p, L) \frac{L}{|L|} \right)

    `chain(weight_by_cosmos(T), sum_tasks(T))` is gradient descent on `S`. The second
    part turns the vector of losses towards `p` and neither lengthens nor shortens it
    to first order. A weight is negative, so that the loss is driven up, where a loss is
    well below its share: watch `TaskGrads.losses`. Where `L` is parallel to `p`, to
    rounding, or zero, where the cosine has no derivative, the weights are `p`;
    `penalty=0` makes them so everywhere. On T equal gradients g and equal losses it
    returns g; one task is untouched.

    The network of the paper also reads `p`, drawn anew for every batch; then give
    `p` by `optax.inject_hyperparams`. Scales the losses, so heads too.

    Args:
      num_tasks: number of tasks T.
      penalty: `lambda`, not negative, in the unit of the losses. The authors' code uses
        0.01 to 8; no value suits all problems.
      preference: `p`, `[tasks]` or by name, not negative, used as it is; None for
        `1/T`.

    Returns:
      A weighting: `TaskGrads` in, `TaskGrads` out; chain it before an aggregator.

    Raises:
      ValueError: if `penalty` is negative, or `preference` is not one number for each
        task, is negative, or is zero for all.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> weighting = mtlopt.weight_by_cosmos(2, preference=jnp.array([3.0, 4.0]))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[0.0, 2.0])
      >>> _, state = weighting.update(grads, weighting.init(jnp.zeros(2)))
      >>> print(state.task_weights)
      [2.7 4. ]

    References:
      Ruchte and Grabocka, *Scalable Pareto Front Approximation for Deep Multi-Objective
      Learning*, ICDM 2021.
    """
    check_range("penalty", penalty)

    def weights(
        losses: jax.Array, present: jax.Array | None, preference: Any
    ) -> jax.Array:
        return cosmos_weights(losses, penalty, preference, present)

    read = preference_argument(preference, num_tasks)
    return weight_by_losses("weight_by_cosmos", num_tasks, weights, preference=read)
