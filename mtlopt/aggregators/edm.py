"""EDM: the equiangular direction (Katrutsa et al., 2020)."""

import jax
import jax.numpy as jnp
import optax

from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.linalg.min_norm import min_norm_point
from mtlopt.linalg.normalise import Gramian, normalise, safe_divide


def edm_weights(gramian: Gramian, present: jax.Array | None = None) -> jax.Array:
    """Returns the weights `w` `[tasks]` of `edm`, which are at least 0 and sum to 1.

    Gradients with a positive weight have the same cosine with the direction; all others
    have larger cosines. Equal gradients `g` give the direction `g`. The direction is
    zero if the convex hull contains zero, as for opposed gradients. Zero gradients get
    all the weight; duplicates share the weight of one task. A single task has weight 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(edm_weights(jnp.diag(jnp.array([9.0, 1.0]))))
      [0.25 0.75]
    """
    cosines, norms = normalise(gramian, present)
    shares = min_norm_point(cosines, present).weights
    # The result does not depend on this unit, so it needs no derivative.
    smallest = jax.lax.stop_gradient(jnp.min(norms, where=norms > 0, initial=jnp.inf))
    scaled = shares * jnp.where(norms > 0, safe_divide(smallest, norms), 0)
    total = jnp.sum(scaled)
    # The total is zero if zero rows have all the weight.
    return jnp.where(total == 0, shares, safe_divide(scaled, total))


def edm(num_tasks: int) -> optax.GradientTransformationExtraArgs:
    r"""Follows the bisector of the task gradients: the equiangular direction method.

    .. math:: d = \sum_i w_i g_i, \qquad w_i \propto \alpha_i / |g_i|, \qquad
        \sum_i w_i = 1, \qquad \alpha = \mathrm{argmin}_{a \ge 0, \, 1^T a = 1}
        |\sum_i a_i g_i / |g_i||^2

    `-d` decreases every loss to first order. Relative to each task's gradient norm, the
    decrease is the same for all tasks with a positive weight and larger for all other
    tasks. `d` is zero exactly at Pareto-stationary points, for example if one gradient
    is zero or two are opposed. Scaling a loss does not change the direction.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.edm(2)
      >>> print(aggregator.update(grads, aggregator.init(jnp.zeros(2)))[0])
      [0.75 0.75]

    References:
      Katrutsa et al., *Follow the bisector*, arXiv 2007.06937, 2020.
    """
    return aggregate_by_weights(
        "edm",
        num_tasks,
        lambda rows, present: edm_weights(rows.scaled_gramian(present), present),
    )
