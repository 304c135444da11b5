"""GLS: the geometric mean of the losses (Chennupati et al., 2019)."""

import jax
import jax.numpy as jnp
import optax

from mtlopt.common.task_weights import everyone
from mtlopt.weightings.by_losses import weight_by_losses


def geometric_mean_weights(
    losses: jax.Array, present: jax.Array | None = None
) -> jax.Array:
    """Returns the derivatives of the geometric mean of the losses.

    Args:
      losses: `L` `[tasks]`, not negative. A negative loss gives NaN.
      present: `[tasks]` bool; absent tasks weigh nothing. None for all.

    Returns:
      Weights `[tasks]`; zeros where a loss is zero, see `weight_by_geometric_mean`.

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
    own = jnp.where(losses == 0, 0, logs)  # else -inf less -inf: then all weights are 0
    weights = jnp.exp(jnp.sum(logs) / number - own) / number
    return jnp.where(there, weights, 0)


def weight_by_geometric_mean(num_tasks: int) -> optax.GradientTransformationExtraArgs:
    r"""Descends the geometric mean of the losses: GLS.

    .. math:: S = \Big( \prod_i L_i \Big)^{1/T}, \qquad
        w_i = \frac{\partial S}{\partial L_i} = \frac{S}{T L_i}

    `chain(weight_by_geometric_mean(T), sum_tasks(T))` is gradient descent on `S`. All
    weighted losses are equal, `w_i L_i = S / T`: multiplying one loss by a constant
    changes the length of the step but not its direction, nor the tasks' shares in it.
    On T equal gradients g and equal losses it returns g; one task is untouched.

    Losses must not be negative; a negative one gives NaN. A loss of zero makes `S`
    zero, which is its minimum, and all weights zero. Scales the losses, so heads too.

    Args:
      num_tasks: number of tasks T.

    Returns:
      A weighting: `TaskGrads` in, `TaskGrads` out; chain it before an aggregator.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> weighting = mtlopt.weight_by_geometric_mean(2)
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 4.0])
      >>> _, state = weighting.update(grads, weighting.init(jnp.zeros(2)))
      >>> print(state.task_weights)
      [1.   0.25]

    References:
      Chennupati et al., *MultiNet++: Multi-Stream Feature Aggregation and Geometric
      Loss Strategy for Multi-Task Learning*, CVPR Workshops 2019. LibMTL descends the
      same `S`; the weights that it reports are not the derivatives.
    """

    def weights(losses: jax.Array, present: jax.Array | None) -> jax.Array:
        return geometric_mean_weights(losses, present)

    return weight_by_losses("weight_by_geometric_mean", num_tasks, weights)
