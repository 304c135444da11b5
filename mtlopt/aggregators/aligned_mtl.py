"""Aligned-MTL: alignment of principal components (Senushkin et al., CVPR 2023)."""

from typing import Any

import jax
import optax

from mtlopt._checks import check_choice, preference_argument
from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.common.task_weights import mean_weights
from mtlopt.linalg.normalise import Gramian
from mtlopt.linalg.procrustes import Scale, align
from mtlopt.linalg.products import dot
from mtlopt.linalg.unit_rows import Rotated
from mtlopt.rows.protocol import Rows


def aligned_mtl_weights(
    gramian: Gramian,
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
    with the default preference, whatever the number of tasks. NaN in, NaN out.
    Differentiable where the rank does not change, see `align`.

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

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> print(jax.jit(aligned_mtl_weights)(jnp.diag(jnp.array([4.0, 1.0]))))
      [0.25 0.5 ]

    References:
      Senushkin et al., *Independent Component Alignment for Multi-Task Learning*,
      CVPR 2023, Algorithm 1.
    """
    return _weights(gramian, preference, scale, present)


def _weights(
    gramian: Gramian,
    preference: Any,
    scale: Scale,
    present: jax.Array | None,
    rotated: Rotated | None = None,
) -> jax.Array:
    check_choice("scale", scale, ("min", "median", "rmse"))
    matrix = align(gramian, present, rotated, scale)
    preference = mean_weights(matrix.shape[0], preference, present)
    return dot(matrix, preference.astype(matrix.dtype))


def aligned_mtl(
    num_tasks: int,
    preference: Any = None,
    *,
    scale: Scale = "min",
) -> optax.GradientTransformationExtraArgs:
    r"""Aligns the principal components of the task gradients: Aligned-MTL.

    .. math:: d = \sigma_{\min} \, U V^T w, \qquad J^T = U \Sigma V^T

    with the scaled task gradients as the columns of `J^T`. All principal components get
    the length of the smallest one, so that none dominates: the aligned gradients have
    dominance rate 1. The result is linear in the preference `w` and may conflict with a
    task. On T equal gradients g it returns g with the default preference; the paper's
    `w` of ones gives T times that. A zero gradient is left out. Costs one backward pass
    per task; `in_latent_space(aligned_mtl(T))` is the Z-aligned variant and costs one.

    The update is right for any ratio of the gradients' norms and, in float32, for unit
    gradients of condition up to about 1e4: if they nearly depend on each other, the
    method looks at them a second time. Several microbatches in latent space keep inner
    products only, which show conditions up to about 100.

    A small step lowers `sum w_i L_i` (Theorem 1); the gradient of that sum goes to zero
    if the dominance rate stays bounded. A Z-aligned step can raise every loss at every
    step size, although Theorem 2 says that it converges; and weights may be negative,
    which Theorem 3, on momentum, leaves out. Examples are in
    `tests/theory/test_aligned_mtl.py`.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      preference: `w`, `[tasks]` or by name, not negative, used as it is; None for 1/T.
      scale: length of the aligned components: `"min"` (the paper) the smallest singular
        value, `"median"` the (lower) median one, `"rmse"` their root mean square.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if an option is unknown or `preference` is not one number for each
        task, is negative, or is zero for all.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[100.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.aligned_mtl(2, preference=jnp.ones(2))
      >>> update = jax.jit(aggregator.update)
      >>> updates, _ = update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(updates)
      [1. 1.]

    References:
      Senushkin et al., *Independent Component Alignment for Multi-Task Learning*, CVPR
      2023, definitions 2 and 3, equation 4, algorithm 1. Its official code sums (a
      preference of ones) and decides the rank on the unscaled Gramian.
    """
    check_choice("scale", scale, ("min", "median", "rmse"))
    read = preference_argument(preference, num_tasks)

    def weights(rows: Rows, present: jax.Array | None, preference: Any) -> jax.Array:
        gramian = rows.scaled_gramian(present)
        return _weights(gramian, preference, scale, present, rows.rotated())

    return aggregate_by_weights("aligned_mtl", num_tasks, weights, preference=read)
