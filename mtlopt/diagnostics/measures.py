"""Measures of conflict and dominance, from the Gramian of the task gradients."""

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import Gramian, nan_unless_finite, normalise, safe_divide
from mtlopt.linalg.principal_axes import principal_axes


def dominance_rate(gramian: Gramian, present: jax.Array | None = None) -> jax.Array:
    r"""Returns the condition number of the matrix of task gradients.

    .. math:: D = \sigma_{\max} / \sigma_{\min}

    The rate is 1 for orthogonal gradients of equal length. It is infinite if the
    gradients are linearly dependent to the precision of the Gramian, for example if a
    gradient is zero or occurs twice. A common factor of the losses does not change the
    rate.

    Args:
      gramian: `[tasks, tasks]`, inner products of the gradients, for instance
        `grads.rows().gramian()`.
      present: `[tasks]` bool; absent tasks are left out. None means all.

    Returns:
      A scalar of at least 1; NaN if all gradients are zero.

    Examples:
      >>> import jax.numpy as jnp
      >>> dominance_rate(jnp.array([[4.0, 0.0], [0.0, 1.0]]))
      Array(2., dtype=float32)

    References:
      Aligned-MTL (see `aligned_mtl`), definition 1, equation 2.
    """
    singular, _, rank = principal_axes(gramian, present)
    num_tasks = len(gramian) if present is None else jnp.sum(present)
    rate = safe_divide(singular[0], singular[num_tasks - 1])
    deficient = jnp.where(singular[0] > 0, jnp.inf, jnp.nan)
    return jnp.where(rank < num_tasks, deficient, rate)


def cosine_similarity(gramian: Gramian, present: jax.Array | None = None) -> jax.Array:
    r"""Returns the cosines between all pairs of task gradients.

    .. math:: C_{ij} = \langle g_i, g_j \rangle / (|g_i| |g_j|)

    Args:
      gramian: `[tasks, tasks]`, inner products of the gradients.
      present: `[tasks]` bool; absent tasks are left out. None means all.

    Returns:
      `[tasks, tasks]`, with ones on the diagonal. All cosines of a zero gradient are
      zero, even the cosine with itself.

    Examples:
      >>> import jax.numpy as jnp
      >>> cosine_similarity(jnp.array([[4.0, -1.0], [-1.0, 1.0]]))
      Array([[ 1. , -0.5],
             [-0.5,  1. ]], dtype=float32)
    """
    return normalise(gramian, present)[0]


def conflict_rate(gramian: Gramian, present: jax.Array | None = None) -> jax.Array:
    """Returns the share of pairs of tasks whose gradients conflict.

    Two gradients conflict if their inner product is negative (Yu et al., PCGrad,
    definition 1).

    Args:
      gramian: `[tasks, tasks]`, inner products of the gradients.
      present: `[tasks]` bool; absent tasks are left out. None means all.

    Returns:
      A scalar between 0 and 1; zero for a single task.

    Examples:
      >>> import jax.numpy as jnp
      >>> conflict_rate(jnp.array([[4.0, -1.0], [-1.0, 1.0]]))
      Array(1., dtype=float32)
    """
    cosines, _ = normalise(gramian, present)
    num_tasks = len(gramian) if present is None else jnp.sum(present)
    ordered_pairs = jnp.maximum(1, num_tasks * (num_tasks - 1))
    return nan_unless_finite(jnp.sum(cosines < 0) / ordered_pairs, cosines)
