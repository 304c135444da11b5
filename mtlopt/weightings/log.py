"""Logarithms of the losses, as in dual-balancing (Lin et al., 2023)."""

import jax
import jax.numpy as jnp
import optax

from mtlopt.linalg.normalise import safe_divide
from mtlopt.weightings.by_losses import weight_by_losses


def log_weights(losses: jax.Array, present: jax.Array | None = None) -> jax.Array:
    """Returns the weights `w` `[tasks]` of `weight_by_log`.

    A loss of zero gets weight zero, because the gradient of a non-negative loss is zero
    there. A negative loss gets NaN. Optax's `apply_if_finite` skips updates with NaN.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(log_weights(jnp.array([0.5, 4.0, 0.0])))
      [2.   0.25 0.  ]
    """
    weights = safe_divide(jnp.ones_like(losses), losses)
    weights = jnp.where(losses < 0, jnp.sqrt(losses), weights)  # NaN
    return weights if present is None else jnp.where(present, weights, 0)


def weight_by_log(num_tasks: int) -> optax.GradientTransformationExtraArgs:
    r"""Trains on the logarithms of the losses, so the units of the losses cancel.

    .. math:: L_i \leftarrow \log L_i, \qquad w_i = 1 / L_i

    `chain(weight_by_log(T), sum_tasks(T))` minimises the product of the losses, and so
    their geometric mean. `chain(weight_by_log(T), balance_norms(T))` is DB-MTL.

    Examples:
      >>> import jax.numpy as jnp, mtlopt, optax
      >>> tx = optax.chain(mtlopt.weight_by_log(2), mtlopt.sum_tasks(2))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[0.5, 4.0])
      >>> print(tx.update(grads, tx.init(jnp.zeros(2)))[0])
      [2.   0.25]

    References:
      Lin et al., *Dual-Balancing for Multi-Task Learning*, arXiv:2308.12029, 2023.
    """

    def weights(losses: jax.Array, present: jax.Array | None) -> jax.Array:
        return log_weights(losses, present)

    return weight_by_losses("weight_by_log", num_tasks, weights)
