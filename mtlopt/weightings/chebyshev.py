"""Chebyshev scalarization: the largest weighted loss (Bowman, 1976)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import preference_argument, task_argument
from mtlopt.common.task_weights import everyone
from mtlopt.linalg.normalise import nan_unless_finite
from mtlopt.weightings.by_losses import (
    above_reference,
    preference_of,
    weight_by_losses,
)


def chebyshev_weights(
    losses: jax.Array,
    preference: Any = None,
    reference: Any = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the weights `w` `[tasks]` of `weight_by_chebyshev`.

    Losses that tie exactly share the weight equally, which gives a subgradient. A
    single task has weight `p`. A loss that is not finite gives NaN weights.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(chebyshev_weights(jnp.array([1.0, 4.0, 4.0, 2.0]), jnp.ones(4)))
      [0.  0.5 0.5 0. ]
    """
    losses = jnp.asarray(losses)
    there = everyone(len(losses), present)
    preference = preference_of(losses, preference, present)
    values = preference * above_reference(losses, reference, present)
    largest = there & (values == jnp.max(jnp.where(there, values, -jnp.inf)))
    number = jnp.maximum(jnp.sum(largest, dtype=losses.dtype), 1)
    return nan_unless_finite(jnp.where(largest, preference / number, 0), values)


def weight_by_chebyshev(
    num_tasks: int, preference: Any = None, reference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Minimises the largest weighted loss: (weighted) Chebyshev scalarization.

    .. math:: S = \max_i \, p_i (L_i - z_i), \qquad
        w_i = \begin{cases} p_i / k & \text{for the } k \text{ largest} \\
        0 & \text{otherwise} \end{cases}

    For positive `p` the minimiser of `S` is weakly Pareto-optimal. Whatever the front's
    shape, every weakly Pareto-optimal point above `z` minimises `S` for some `p`. A
    step lowers only the worst loss. Near the minimum, the worst task keeps changing.

    Args:
      num_tasks: number of tasks T.
      preference: `p`, `[tasks]` or by name, at least 0, used as given; `1/T` if None.
      reference: `z`, lower bounds of the losses, `[tasks]` or by name; zero if None.

    Raises:
      ValueError: if an argument is out of range or does not fit the tasks.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_chebyshev(2, preference=jnp.array([1.0, 2.0]))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[3.0, 2.0])
      >>> print(weighting.update(grads, weighting.init(jnp.zeros(2)))[1].task_weights)
      [0. 2.]

    References:
      Bowman, *On the Relationship of the Tchebycheff Norm and the Efficient Frontier*,
      1976. Miettinen, *Nonlinear Multiobjective Optimization*, 1998, section 3.4.
    """

    def weights(
        losses: jax.Array, present: jax.Array | None, preference: Any, reference: Any
    ) -> jax.Array:
        return chebyshev_weights(losses, preference, reference, present)

    return weight_by_losses(
        "weight_by_chebyshev",
        num_tasks,
        weights,
        preference=preference_argument(preference, num_tasks),
        reference=task_argument("reference", reference, num_tasks),
    )
