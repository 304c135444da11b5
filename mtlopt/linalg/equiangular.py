"""The direction at equal, or chosen, angles to all rows."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import Gramian, nan_unless_finite, normalise, safe_divide
from mtlopt.linalg.products import dot
from mtlopt.linalg.reductions import reduce_each

Solver = Literal["gramian", "qr"]

# See `linalg/procrustes.py`: rounding of a Gramian, relative to its largest eigenvalue.
_RTOL = 512


class UnitRows(NamedTuple):
    """The unit rows `U` in their principal axes, `U = Q Sigma P^T`.

    Attributes:
      singular: `Sigma`, `[tasks]`, zero from the rank on.
      axes: `Q`, `[tasks, tasks]`.
      norms: the row norms, `[tasks]`; zero for absent tasks.
    """

    singular: jax.Array
    axes: jax.Array
    norms: jax.Array


class Ray(NamedTuple):
    """A direction of length one, or zero if there is none.

    Attributes:
      coefficients: `y`, `[tasks]`: the direction is `sum_i y_i u_i` over unit rows.
      cosines: with the rows, `[tasks]`; zero for zero rows.
    """

    coefficients: jax.Array
    cosines: jax.Array


def axes_of_gramian(gramian: Gramian, present: jax.Array | None = None) -> UnitRows:
    """Finds the axes from the cosines; rank is decided as in `factor_gramian`."""
    cosines, norms = normalise(gramian, present)
    values, axes = jnp.linalg.eigh(cosines, symmetrize_input=False)
    kept = values > _RTOL * jnp.finfo(values.dtype).eps * values[-1]
    singular = jnp.sqrt(jnp.where(kept, values, 0))
    return UnitRows(nan_unless_finite(singular, cosines), axes, norms)


def axes_of_triangle(
    triangle: jax.Array, norms: jax.Array, present: jax.Array | None = None
) -> UnitRows:
    """Finds the axes from a QR decomposition of the unit rows, see `unit_triangular`.

    Sees near-duplicate rows that no Gramian shows, as in `factor_triangular`.
    """
    if present is not None:
        norms = jnp.where(present, norms, 0)
    triangle = jnp.where(norms == 0, 0, triangle)
    _, singular, axes = jnp.linalg.svd(triangle)
    rtol = (16 + len(norms)) * jnp.finfo(singular.dtype).eps
    singular = jnp.where(singular > rtol * singular[0], singular, 0)
    return UnitRows(nan_unless_finite(singular, triangle), axes.T, norms)


def equiangular_ray(units: UnitRows, preference: jax.Array | None = None) -> Ray:
    r"""The direction whose cosines with the rows are as the preference says.

    .. math:: x = U^+ p = U^T y, \qquad y = C^+ p, \qquad C = U U^T

    Least squares where the rows' space has no such direction, and zero where it is at
    right angles to `p`, to within rounding.

    Args:
      units: the unit rows `U`.
      preference: `p`, `[tasks]`; None for ones. Its length does not matter.
    """
    singular, axes, norms = units
    there = (norms != 0).astype(axes.dtype)
    target = there if preference is None else there * preference.astype(axes.dtype)
    kept = jnp.where(singular == 0, 0, dot(axes.T, target))
    stretched = safe_divide(kept, singular)
    inside, size, square, total = reduce_each(
        sums=[kept**2, target**2, stretched**2, singular]
    )
    # The same tolerance as the rank rule, which decides what the rows' space is.
    is_orthogonal = inside <= _RTOL * jnp.finfo(axes.dtype).eps * size
    length = jnp.where(is_orthogonal, 0, jnp.sqrt(square))
    ray = Ray(
        coefficients=safe_divide(dot(axes, safe_divide(stretched, singular)), length),
        cosines=safe_divide(dot(axes, kept), length),
    )
    return jax.tree.map(lambda x: nan_unless_finite(x, total), ray)
