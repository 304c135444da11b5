"""COSMOS: a weighted sum minus a cosine (Ruchte and Grabocka, 2021)."""

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
    """Returns the weights `w` `[tasks]` of `weight_by_cosmos`. They may be negative.

    They equal the preference `p` if `penalty` is zero, or if `L` is parallel to `p` up
    to rounding. They also equal `p` at `L = 0`, where the cosine has no derivative.

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
    r"""Lowers a weighted sum and turns the losses towards a preference: COSMOS.

    .. math:: S = \langle p, L \rangle - \lambda \cos(p, L), \qquad
        w = p - \frac{\lambda}{|L|} \Big( \frac{p}{|p|} - \cos(p, L) \frac{L}{|L|} \Big)

    The second term of `w` turns the vector of losses towards `p` and, to first order,
    keeps its length. A loss far below `|L| p_i / |p|` gets a negative weight and rises,
    so watch `TaskGrads.losses`. The paper draws a new `p` for every batch and feeds it
    to the network. To do so, pass `p` with `optax.inject_hyperparams`.

    Args:
      num_tasks: number of tasks T.
      penalty: `lambda`, at least 0, in the unit of the losses; tune it per problem.
      preference: `p`, `[tasks]` or by name, at least 0, used as given; `1/T` if None.

    Raises:
      ValueError: if an argument is out of range or does not fit the tasks.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_cosmos(2, preference=jnp.array([3.0, 4.0]))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[0.0, 2.0])
      >>> print(weighting.update(grads, weighting.init(jnp.zeros(2)))[1].task_weights)
      [2.7 4. ]

    References:
      Ruchte and Grabocka, *Scalable Pareto Front Approximation*, ICDM 2021.
    """
    check_range("penalty", penalty)

    def weights(
        losses: jax.Array, present: jax.Array | None, preference: Any
    ) -> jax.Array:
        return cosmos_weights(losses, penalty, preference, present)

    read = preference_argument(preference, num_tasks)
    return weight_by_losses("weight_by_cosmos", num_tasks, weights, preference=read)
