"""PCGrad: projecting conflicting gradients (Yu et al., NeurIPS 2020)."""

import jax

from mtlopt.linalg.surgery import project_conflicts


def pcgrad_weights(
    gramian: jax.Array, order: jax.Array, present: jax.Array | None = None
) -> jax.Array:
    r"""Weights of PCGrad for a given order of projections.

    .. math:: d = \sum_i p_i = \sum_j \alpha_j g_j

    `p_i` starts as `g_i` and, for each other task `j` in `order[i]`, loses its
    component along `g_j` if `<p_i, g_j> < 0`. As in the paper, a task never meets
    itself and the result is a sum, not a mean: on `T` equal gradients `g` it is
    `T g`. A zero row is skipped; NaN in, NaN out. Differentiable away from
    `<p_i, g_j> = 0`.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      order: Row `i` is the order in which task `i` meets the others, int
        `[tasks, tasks]`. The paper draws each row at random.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `alpha`, `[tasks]`, each at least 1 for a present task.

    Raises:
      ValueError: If a shape does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> print(pcgrad_weights(gramian, jnp.array([[0, 1], [0, 1]])))
      [2.   1.25]

    References:
      Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, Algorithm 1.
    """
    return project_conflicts(gramian, order, present)
