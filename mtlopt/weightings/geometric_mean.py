"""GLS: the geometric mean of the losses (Chennupati et al., 2019)."""

import jax
import jax.numpy as jnp
import optax

from mtlopt.common.task_weights import everyone
from mtlopt.weightings.by_losses import weight_by_losses


def geometric_mean_weights(
    losses: jax.Array, present: jax.Array | None = None
) -> jax.Array:
    """Returns the weights `w` `[tasks]` of `weight_by_geometric_mean`.

    If a loss is zero, the geometric mean is at its minimum and all weights are zero. A
    negative loss gives NaN. A single task has weight 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(geometric_mean_weights(jnp.array([1.0, 4.0])))
      [1.   0.25]
    """
    losses = jnp.asarray(losses)
    there = everyone(len(losses), present)
    number = jnp.maximum(jnp.sum(there, dtype=losses.dtype), 1)
    # In logarithms, so that no product overflows or underflows.
    logs = jnp.where(there, jnp.log(losses), 0)
    own = jnp.where(losses == 0, 0, logs)  # -inf less -inf is NaN; weights are then 0
    weights = jnp.exp(jnp.sum(logs) / number - own) / number
    return jnp.where(there, weights, 0)


def weight_by_geometric_mean(num_tasks: int) -> optax.GradientTransformationExtraArgs:
    r"""Minimises the geometric mean of the losses: GLS.

    .. math:: S = \Big( \prod_i L_i \Big)^{1/T}, \qquad w_i = \frac{S}{T L_i}

    All weighted losses are equal, `w_i L_i = S / T`. A constant factor that multiplies
    a loss changes the step's length, but not its direction or the tasks' shares in it.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_geometric_mean(2)
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 4.0])
      >>> print(weighting.update(grads, weighting.init(jnp.zeros(2)))[1].task_weights)
      [1.   0.25]

    References:
      Chennupati et al., *MultiNet++*, CVPR Workshops 2019.
    """

    def weights(losses: jax.Array, present: jax.Array | None) -> jax.Array:
        return geometric_mean_weights(losses, present)

    return weight_by_losses("weight_by_geometric_mean", num_tasks, weights)
