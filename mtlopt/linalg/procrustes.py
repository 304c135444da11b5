"""The Procrustes alignment of the principal axes of the rows."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mtlopt.linalg.derivatives import constant, first_only
from mtlopt.linalg.normalise import (
    Gramian,
    common_scale,
    nan_unless_finite,
    only_present,
    safe_divide,
)
from mtlopt.linalg.principal_axes import (
    Axes,
    axes_of_plane,
    principal_axes,
    principal_plane,
)
from mtlopt.linalg.products import diagonal, dot
from mtlopt.linalg.two_tasks import Plane, align_two
from mtlopt.linalg.unit_rows import Rotated

Scale = Literal["min", "median", "rmse"]


def align(
    gramian: Gramian,
    present: jax.Array | None = None,
    rotated: Rotated | None = None,
    scale: Scale = "min",
) -> jax.Array:
    """Returns the aligning matrix of a Gramian, see `aligned_matrix`.

    The matrix is differentiable if the rank does not change. This also holds for
    repeated singular values, unless a repeated value is the target of `scale`. The
    derivative is with respect to the Gramian; it does not pass through a matrix
    decomposition or the rotated rows of a `SecondLook`.

    Args:
      gramian: `G`, `[tasks, tasks]`.
      present: Tasks to use, bool `[tasks]`.
      rotated: see `unit_rows`.
      scale: see `aligned_matrix`.
    """
    gramian = only_present(gramian, present)
    find = principal_plane if len(gramian) == 2 else principal_axes
    axes = find(jax.lax.stop_gradient(gramian), rotated=constant(rotated))
    return _align(*common_scale(gramian), axes, scale)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _align(
    gramian: jax.Array, unit: jax.Array, axes: Axes | Plane, scale: Scale
) -> jax.Array:
    """Returns the aligned matrix of the axes of a Gramian, with its derivative."""
    del gramian, unit
    if isinstance(axes, Axes):
        return aligned_matrix(axes, scale)
    return align_two(axes, is_mean=scale == "rmse")


@_align.defjvp
def _align_jvp(scale: Scale, primals: Any, tangents: Any) -> Any:
    r"""Differentiates `A = \sqrt{s} \, Q \Sigma^+ Q^T`.

    .. math:: Q f(\Sigma) Q^T \to Q (S \circ K) Q^T, \qquad
        K = \Sigma^{-1} Q^T \, dG \, Q \Sigma^{-1}, \qquad
        S_{ij} = \sigma_i \sigma_j \frac{f_i - f_j}{\sigma_i^2 - \sigma_j^2}

    The formula of Daletskii and Krein also holds for repeated singular values, because
    S contains no difference if `f = \sqrt{s} / \sigma`. Singular values of zero are
    assumed to stay zero, which is true for duplicate rows. The relative change of the
    other singular values is half of the diagonal of K.
    """
    gramian, unit, axes = primals
    matrix = _align(*primals, scale)
    axes = axes if isinstance(axes, Axes) else axes_of_plane(axes)
    singular, right, rank = axes
    longest = singular[0] * unit
    change = safe_divide(safe_divide(tangents[0], longest), longest)
    singular = safe_divide(singular, singular[0])
    target = _target(Axes(singular, right, rank), scale)

    divisors = jnp.where(singular > 0, singular, 1)
    along = dot(right.T, dot(change, right))
    along = along / divisors[:, None] / divisors[None]  # their product may underflow
    edges = safe_divide(safe_divide(target, singular), singular)  # S if sigma_j = 0
    is_zero = edges == 0
    is_edge = is_zero[:, None] | is_zero[None]
    inside = safe_divide(-target, singular[:, None] + singular[None])
    both = is_zero[:, None] & is_zero[None]
    slopes = jnp.where(is_edge, edges[:, None] + edges[None], inside)
    slopes = jnp.where(both, 0, slopes)
    moved = dot(right, dot(slopes * along, right.T))

    if scale == "rmse":
        shares = singular**2
    else:
        shares = jnp.arange(len(singular)) == _target_index(rank, scale)
    shares = shares.astype(singular.dtype)
    rise = safe_divide(jnp.sum(shares * diagonal(along)), 2 * jnp.sum(shares))
    return matrix, moved + rise * matrix + first_only(gramian)


def aligned_matrix(axes: Axes, scale: Scale = "min") -> jax.Array:
    r"""Returns the matrix that aligns the principal axes of the task gradients.

    .. math:: A = \sqrt{s} \, Q \Sigma^+ Q^T, \qquad J^T = P \Sigma Q^T

    Among the matrices whose singular values all equal `sqrt(s)`, `J^T A` is nearest to
    `J^T` (an orthogonal Procrustes problem). So `A @ preference` are the weights of
    Aligned-MTL. Of the `rank` largest squared singular values, `s` is the smallest, the
    lower median or the mean. Only ratios of singular values are computed, so that no
    square can overflow.

    The zero matrix gives `A = 0`. Tasks that are absent or have a zero gradient have
    zero rows and columns. Duplicate rows share an axis. NaN in the input gives NaN.

    Args:
      axes: `Sigma`, `Q` and the rank.
      scale: `"min"` (as in the paper), `"median"` or `"rmse"` (as in the authors'
        code).

    Returns:
      `A`, `[tasks, tasks]`, symmetric and positive semidefinite.

    Examples:
      >>> import jax.numpy as jnp
      >>> axes = principal_axes(jnp.diag(jnp.array([4.0, 1.0])))
      >>> print(aligned_matrix(axes))
      [[0.5 0. ]
       [0.  1. ]]

    References:
      Senushkin et al., *Independent Component Alignment for Multi-Task Learning*,
      CVPR 2023, equations 14 to 16 and Algorithm 1.
    """
    stretch = safe_divide(_target(axes, scale), axes.singular)  # sqrt(s) / sigma
    matrix = dot(axes.right * stretch[None], axes.right.T)
    return nan_unless_finite(matrix, axes.singular)


def _target(axes: Axes, scale: Scale) -> jax.Array:
    """Returns `sqrt(s)`."""
    singular, _, rank = axes
    if scale != "rmse":
        return singular[_target_index(rank, scale)]
    relative = safe_divide(singular, singular[0])
    mean_square = safe_divide(jnp.sum(relative**2), rank.astype(singular.dtype))
    return jnp.sqrt(mean_square) * singular[0]


def _target_index(rank: jax.Array, scale: Scale) -> jax.Array:
    """Returns the index of the target singular value; the median is the lower one."""
    return jnp.maximum(rank - 1, 0) if scale == "min" else rank // 2
