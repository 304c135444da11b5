"""The principal axes of the rows, from their Gramian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.jacobi import rotate_columns
from mtlopt.linalg.normalise import (
    Gramian,
    common_scale,
    nan_unless_finite,
    normalise,
    only_present,
    safe_divide,
    scale_of,
)
from mtlopt.linalg.products import diagonal, dot
from mtlopt.linalg.two_tasks import Plane, axes_of_two, look_at_two, plane_of_two
from mtlopt.linalg.unit_rows import (
    WELL_CONDITIONED,
    Rotated,
    UnitRows,
    look_again,
    rounding,
    unit_rows,
)


class Axes(NamedTuple):
    """Principal axes of the rows, `J^T = P Sigma Q^T`.

    Attributes:
      singular: `Sigma`, `[tasks]`, descending, zero from the rank on.
      right: `Q`, `[tasks, tasks]`.
      rank: Number of singular values that are not zero, an int32 scalar.
    """

    singular: jax.Array
    right: jax.Array
    rank: jax.Array


def principal_axes(
    gramian: Gramian,
    present: jax.Array | None = None,
    rotated: Rotated | None = None,
) -> Axes:
    r"""Finds the principal axes of the rows, accurate for all ratios of row scales.

    The axes follow from the axes of the unit rows, see `axes_of_units`. There is a
    shortcut if all tasks are present and the condition number of the Gramian itself is
    below `eps^-0.3` (120 in float32). The eigenvalues of the Gramian are then accurate
    to `eps^0.7` (1e-5) and are used directly, which for a hundred tasks on a CPU takes
    a fifth of the time of the other way. Under `vmap`, both ways are computed. Two
    tasks have closed forms instead.

    Zero rows, duplicate rows and rows that sum to zero lower the rank; the zero matrix
    has rank 0. The rank is that of the unit rows (see `unit_rows`), so no ratio of row
    scales lowers it. Without `rotated`, near-duplicates lose their direction if the
    condition number of the unit rows' Gramian is above 1e4 in float32 (1e12 in
    float64).

    Args:
      gramian: `G`, `[tasks, tasks]`.
      present: Tasks to use, bool `[tasks]`; the others have no part in any axis.
      rotated: see `unit_rows`.

    Returns:
      The axes. NaN or infinity in the input gives NaN.

    Examples:
      >>> import jax.numpy as jnp
      >>> axes = principal_axes(jnp.diag(jnp.array([1.0, 4.0])))
      >>> print(axes.singular, axes.rank)
      [2. 1.] 2
    """
    gramian = only_present(gramian, present)
    if len(gramian) == 2:
        return axes_of_plane(principal_plane(gramian, rotated=rotated))
    # In units of the longest row, no eigenvalue overflows unless an entry does.
    matrix, scale = common_scale(gramian)
    largest = jnp.max(jnp.abs(diagonal(matrix)))
    values, vectors = jnp.linalg.eigh(
        safe_divide(matrix, largest), symmetrize_input=False
    )

    unit = jnp.sqrt(largest) / scale
    limit = jnp.finfo(values.dtype).eps ** WELL_CONDITIONED
    is_enough = values[0] > limit * values[-1]
    return look_again(
        is_enough, _direct, _graded, rotated, gramian, values, vectors, unit
    )


def principal_plane(
    gramian: Gramian,
    present: jax.Array | None = None,
    rotated: Rotated | None = None,
) -> Plane:
    """Returns the plane that determines the axes of two tasks: see `principal_axes`."""
    cosines, norms = normalise(gramian, present)
    pair = look_at_two(cosines, norms, rotated)
    plane = plane_of_two(pair, norms)
    return plane._replace(largest=plane.largest + pair.zero)


def axes_of_plane(plane: Plane) -> Axes:
    """Returns the axes of two tasks."""
    singular, right = axes_of_two(plane)
    rank = jnp.sum(singular > 0, dtype=jnp.int32)
    return Axes(singular, right, rank)


def _direct(
    gramian: Gramian,
    values: jax.Array,
    vectors: jax.Array,
    unit: jax.Array,
    rotated: Rotated | None,
) -> Axes:
    del gramian, rotated
    rank = jnp.full([], len(values), jnp.int32)
    return Axes((jnp.sqrt(values) * unit)[::-1], vectors[:, ::-1], rank)


def _graded(
    gramian: Gramian,
    values: jax.Array,
    vectors: jax.Array,
    unit: jax.Array,
    rotated: Rotated | None,
) -> Axes:
    del vectors, unit
    # Runs after the other decomposition. Under `vmap` both run, and two batched ones of
    # jaxlib at a time can deadlock: each holds a thread that the other waits for.
    after = jax.tree.map(lambda leaf: leaf + 0 * values[0], gramian)
    return axes_of_units(unit_rows(*normalise(after), rotated))


def axes_of_units(units: UnitRows) -> Axes:
    r"""Returns the axes of the rows from those of the unit rows.

    .. math:: G = M^T M, \qquad M = \Sigma Q^T D = P' \Sigma' Q'^T

    Here `D = diag(|g_i|)`; the axes are `Sigma'` and `Q'`.

    Args:
      units: the unit rows, `Sigma` and `Q`, and the norms `D`.
    """
    root = units.singular[:, None] * units.axes.T * units.norms[None]
    return graded_svd(root, jnp.sum(units.singular > 0, dtype=jnp.int32))


def graded_svd(matrix: jax.Array, rank: jax.Array) -> Axes:
    r"""Returns the singular values, descending, and right singular vectors of a root.

    .. math:: M = P \Sigma Q^T

    The columns of a root `M` of a Gramian may differ in length by many powers of ten.
    `jnp.linalg.svd` of such a matrix is only accurate to rounding of the *largest*
    singular value, unless the large entries come first. So the columns are sorted by
    length, and `R` of a QR decomposition replaces the matrix. The error was measured in
    float32 against float64, as the relative error of Aligned-MTL's direction. With row
    scales spread evenly from 1 to 1e-6, it is 3e-6 up to 128 tasks, and 4e-3 at 8 tasks
    with the plain `svd`. With scales in two groups, 1 and 1e-6, it is 1e-6 up to 32
    tasks, 2e-5 at 40 and 3e-2 at 64. The rotations used on platforms other than a CPU
    give an error of 2e-6 up to 128 tasks.

    Args:
      matrix: `M`, `[tasks, tasks]`.
      rank: its rank, an int32 scalar.

    Returns:
      The axes, `Sigma` and `Q`.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(graded_svd(jnp.diag(jnp.array([1e-6, 3.0])), jnp.array(2)).singular)
      [3.e+00 1.e-06]
    """
    scale = scale_of(jnp.max(jnp.abs(matrix)))  # no square overflows
    matrix *= scale
    ones = jnp.ones(len(matrix), matrix.dtype)
    norms = jnp.sqrt(dot(ones, matrix**2))
    indices = jnp.arange(len(norms), dtype=jnp.int32)
    minus_norms, order = jax.lax.sort((-norms, indices), num_keys=1)
    # A product with a permutation matrix, because gather and scatter compile slowly.
    sort = (indices[None] == order[:, None]).astype(matrix.dtype)
    triangle = jnp.linalg.qr(dot(matrix, sort.T), mode="r")
    # The rounding of a long column may be longer than a short column: it must go.
    noise = -rounding(matrix) * minus_norms
    triangle = jnp.where(jnp.abs(triangle) <= noise[None], 0, triangle)
    right, singular = _left_axes(triangle.T)
    kept = indices < rank
    # A rank of zero would hide the NaN of a lone task.
    singular = nan_unless_finite(jnp.where(kept, singular / scale, 0), matrix)
    return Axes(singular, dot(sort.T, right), rank)


def _left_axes(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns left singular vectors and values, accurate for unequal columns.

    `jnp.linalg.svd` does not use QR iteration on CPU from size 26, nor on GPU. On GPU,
    QR iteration was off by 5 % if two rows were equal.
    """

    def by_qr(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        algorithm = jax.lax.linalg.SvdAlgorithm.QR
        left, singular, _ = jax.lax.linalg.svd(matrix, algorithm=algorithm)
        return left, singular

    return jax.lax.platform_dependent(matrix, cpu=by_qr, default=rotate_columns)
