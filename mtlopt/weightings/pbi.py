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
    """Returns the weights `w` `[tasks]` of `weight_by_pbi`. They may be negative.

    They equal `p / |p|` if `penalty` is zero, and also on the ray of `p` (up to
    rounding), where the distance `d_2` has no derivative. A single task has weight 1.

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
    r"""Lowers the losses along a preferred ray and moves them towards this ray: PBI.

    .. math:: S = d_1 + \theta d_2, \qquad d_1 = \langle L - z, u \rangle, \qquad
        d_2 = | L - z - d_1 u |, \qquad u = p / |p|

        w = u + \theta \, \frac{L - z - d_1 u}{d_2}

    `d_1` is the distance of the losses from `z` along the ray of `p`; `d_2` is their
    distance from this ray. A common factor of all `L_i - z_i` cancels. A loss far below
    `z_i + d_1 u_i` gets a negative weight and rises, so watch `TaskGrads.losses`.

    Args:
      num_tasks: number of tasks T.
      penalty: `theta`, at least 0. The paper uses 5.
      preference: `p`, at least 0 and of any scale, `[tasks]` or by name; ones if None.
      reference: `z`, lower bounds of the losses, `[tasks]` or by name; zero if None.

    Raises:
      ValueError: if an argument is out of range or does not fit the tasks.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_pbi(2, preference=jnp.array([0.0, 1.0]))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[3.0, 2.0])
      >>> print(weighting.update(grads, weighting.init(jnp.zeros(2)))[1].task_weights)
      [5. 1.]

    References:
      Zhang and Li, *MOEA/D*, IEEE Transactions on Evolutionary Computation 11, 2007,
      section II-C; their `d_1` is an absolute value, which changes nothing above `z`.
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
