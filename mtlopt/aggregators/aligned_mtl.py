"""Aligned-MTL: alignment of principal components (Senushkin et al., CVPR 2023)."""

import jax
import jax.numpy as jnp

from mtlopt._checks import as_task_vector
from mtlopt.linalg.procrustes import Scale, aligned_matrix, factor_gramian


def aligned_mtl_weights(
    gramian: jax.Array,
    preference: jax.Array | None = None,
    *,
    scale: Scale = "min",
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Weights of Aligned-MTL: equal principal components, then a preference.

    .. math:: \alpha = \sqrt{s} \, Q \Sigma^{-1} Q^T w, \qquad G = Q \Sigma^2 Q^T

    `s` is the smallest (`"min"`), lower median or mean (`"rmse"`) of the non-zero
    eigenvalues `Sigma^2`. The row scales are divided out before `G` is factorised, so
    no ratio of gradient norms costs accuracy. Duplicate rows, zero rows and rows that
    sum to zero cost rank and are otherwise handled as the paper's pseudo-inverse does.
    The zero matrix gives weights zero. On equal gradients `g` the direction is `g`
    with the default preference, whatever the number of tasks. NaN in, NaN out. Not
    reverse-differentiable.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      preference: `w`, `[tasks]`, used as it is. `None` means one over the number of
        present tasks for each of them; the paper's listing sums, which is ones.
      scale: `"min"` (the paper), `"median"` or `"rmse"` (the official code).
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `alpha`, `[tasks]`. They may be negative.

    Raises:
      ValueError: If `scale` is unknown or a shape does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> print(aligned_mtl_weights(jnp.diag(jnp.array([4.0, 1.0]))))
      [0.25 0.5 ]

    References:
      Senushkin et al., *Independent Component Alignment for Multi-Task Learning*,
      CVPR 2023, Algorithm 1.
    """
    matrix = aligned_matrix(factor_gramian(gramian, present), scale)
    num_tasks = matrix.shape[0]
    if present is None:
        present = jnp.ones(num_tasks, bool)
    if preference is None:
        preference = present / jnp.maximum(jnp.sum(present), 1)
    preference = as_task_vector("preference", preference, num_tasks)
    preference = jnp.where(present, preference, 0).astype(matrix.dtype)
    return jnp.dot(matrix, preference, precision=jax.lax.Precision.HIGHEST)
