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
    r"""Returns the weights `alpha` `[tasks]` of `aligned_mtl`, which may be negative.

    .. math:: \alpha = \sqrt{s} \, Q \Sigma^{-1} Q^T w, \qquad G = Q \Sigma^2 Q^T

    `w` is the preference. The argument `scale` sets `s` to the smallest (`"min"`), the
    lower median (`"median"`) or the mean (`"rmse"`) of the non-zero eigenvalues in
    `Sigma^2`. Unequal gradient norms do not reduce the accuracy. Duplicate or zero
    gradients, and gradients that sum to zero, lower the rank of `G`; the inverse is
    then a pseudo-inverse. A zero `G` gives zero weights. By default, equal gradients
    `g` give the direction `g`. Weights are differentiable if the rank does not change.

    Raises:
      ValueError: if `scale` is unknown.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> print(jax.jit(aligned_mtl_weights)(jnp.diag(jnp.array([4.0, 1.0]))))
      [0.25 0.5 ]
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

    All principal components get the length of the smallest one. `d` is linear in `w`
    and may conflict with a task. A small step along `-d` lowers `sum_i w_i L_i`, but
    with `in_latent_space(aligned_mtl(T))` (Z-aligned), a step may raise every loss. In
    float32, unit gradients with a condition number up to about 1e4 are supported.

    Args:
      num_tasks: number of tasks T.
      preference: `w`, `[tasks]` or by name, at least 0, used as given; `1/T` if None.
      scale: length of the aligned components: the smallest singular value (`"min"`, as
        in the paper), the lower median (`"median"`) or the root mean square (`"rmse"`).

    Raises:
      ValueError: if an argument is invalid or does not fit the tasks.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[100.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.aligned_mtl(2, preference=jnp.ones(2))
      >>> print(jax.jit(aggregator.update)(grads, aggregator.init(jnp.zeros(2)))[0])
      [1. 1.]

    References:
      Senushkin et al., *Independent Component Alignment for Multi-Task Learning*, CVPR
      2023, definitions 2, 3, equation 4, algorithm 1, theorem 1.
    """
    check_choice("scale", scale, ("min", "median", "rmse"))
    read = preference_argument(preference, num_tasks)

    def weights(rows: Rows, present: jax.Array | None, preference: Any) -> jax.Array:
        gramian = rows.scaled_gramian(present)
        return _weights(gramian, preference, scale, present, rows.rotated())

    return aggregate_by_weights("aligned_mtl", num_tasks, weights, preference=read)
