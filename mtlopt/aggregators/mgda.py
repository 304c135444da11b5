"""MGDA: the min-norm point of the task gradients (Sener & Koltun, NeurIPS 2018)."""

import jax

from mtlopt.linalg.min_norm import min_norm_point


def mgda_weights(gramian: jax.Array, present: jax.Array | None = None) -> jax.Array:
    r"""Weights of MGDA: the convex combination of smallest norm.

    .. math:: \alpha = \mathrm{argmin}_w \, w^T G w
        \quad \text{subject to} \quad w \ge 0, \; 1^T w = 1

    Exact, not Frank-Wolfe (see `min_norm_point`). If zero is in the convex hull of
    the gradients the direction is zero, and zero rows get all the weight. On equal
    gradients `g` the direction is `g`. NaN in, NaN out. Not reverse-differentiable.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `alpha`, `[tasks]`, non-negative and summing to 1.

    Raises:
      ValueError: If a shape does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> print(mgda_weights(jnp.diag(jnp.array([4.0, 1.0]))))
      [0.2 0.8]

    References:
      Désidéri, *Multiple-gradient descent algorithm*, C. R. Math. 350, 2012. Sener and
      Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018,
      Algorithm 2.
    """
    return min_norm_point(gramian, present).weights
