"""PBI: penalty-based boundary intersection (Zhang and Li, 2007)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_range, preference_argument, task_argument
from mtlopt.linalg.vectors import off_axis, unit_vector
from mtlopt.weightings.by_losses import (
    above_reference,
    preference_of,
    weight_by_losses,
)


def pbi_weights(
    losses: jax.Array,
    penalty: Any = 5.0,
    preference: Any = None,
    reference: Any = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the derivatives of PBI, see `weight_by_pbi`.

    Args:
      losses: `L` `[tasks]`.
      penalty: `theta`, not negative.
      preference: direction `p` `[tasks]`; its length does not matter. None for equal
        losses.
      reference: `z` `[tasks]`, the point that losses are counted from; None for zero.
      present: `[tasks]` bool; absent tasks weigh nothing. None for all.

    Returns:
      Weights `[tasks]`. They may be negative.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(pbi_weights(jnp.array([3.0, 2.0]), 5.0, jnp.array([0.0, 1.0])))
      [5. 1.]
    """
    losses = jnp.asarray(losses)
    axis, _ = unit_vector(preference_of(losses, preference, present))
    direction, _ = unit_vector(above_reference(losses, reference, present))
    away, _ = unit_vector(off_axis(direction, axis))
    return axis + penalty * away


def weight_by_pbi(
    num_tasks: int,
    penalty: Any = 5.0,
    preference: Any = None,
    reference: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Descends along a direction of preference and towards it: PBI.

    .. math:: S = d_1 + \theta d_2, \qquad d_1 = \langle L - z, u \rangle, \qquad
        d_2 = | L - z - d_1 u |, \qquad u = p / |p|

        w = \frac{\partial S}{\partial L} = u + \theta \, \frac{L - z - d_1 u}{d_2}

    `d_1` is how far the losses are from the reference point along `p`, `d_2` how far
    they are off that ray. `chain(weight_by_pbi(T), sum_tasks(T))` is gradient descent
    on `S`. The weights do not depend on the unit that all losses share. A weight is
    negative, so that the loss is driven up, where a loss is well below its share:
    watch `TaskGrads.losses`. On the ray, to rounding, where `d_2` has no derivative,
    its part is zero and the weights are `u`; `penalty=0` makes them so everywhere. On
    T equal gradients g and equal losses it returns `sqrt(T) g`; one task is untouched.

    Scales the losses, so heads too.

    Args:
      num_tasks: number of tasks T.
      penalty: `theta`, not negative. The paper's value is 5.
      preference: `p`, `[tasks]` or by name, not negative; its length does not matter.
        None for equal losses.
      reference: `z`, `[tasks]` or by name, a lower bound of the losses; None for zero.

    Returns:
      A weighting: `TaskGrads` in, `TaskGrads` out; chain it before an aggregator.

    Raises:
      ValueError: if `penalty` is negative, `preference` or `reference` is not one
        number for each task, or `preference` is negative, or zero for all.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> weighting = mtlopt.weight_by_pbi(2, preference=jnp.array([0.0, 1.0]))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[3.0, 2.0])
      >>> _, state = weighting.update(grads, weighting.init(jnp.zeros(2)))
      >>> print(state.task_weights)
      [5. 1.]

    References:
      Zhang and Li, *MOEA/D: A Multiobjective Evolutionary Algorithm Based on
      Decomposition*, IEEE Transactions on Evolutionary Computation 11, 2007, section
      II-C; its `d_1` is an absolute value, the same above `z`. TorchJD adds 1e-12 under
      the root of `d_2`; this is the exact derivative.
    """
    check_range("penalty", penalty)

    def weights(
        losses: jax.Array, present: jax.Array | None, preference: Any, reference: Any
    ) -> jax.Array:
        return pbi_weights(losses, penalty, preference, reference, present)

    return weight_by_losses(
        "weight_by_pbi",
        num_tasks,
        weights,
        preference=preference_argument(preference, num_tasks),
        reference=task_argument("reference", reference, num_tasks),
    )
