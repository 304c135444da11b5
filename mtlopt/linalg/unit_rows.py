"""The principal axes of unit rows, even if the rows are nearly linearly dependent."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import nan_unless_finite, normalise, safe_divide
from mtlopt.linalg.products import dot

# Rounding errors in the cosines grow with the number of parameters in their sums, not
# with the number of tasks. In float32, with 10^5 parameters, the error was up to 4e-5
# of the largest eigenvalue; 512 eps is 6e-5.
GRAMIAN_RTOL = 512
# Power of eps. If the ratio of the smallest to the largest eigenvalue is above this
# power (8e-3 in float32), the smallest is accurate to eps^0.7 (1e-5) despite the
# rounding of the Gramian.
WELL_CONDITIONED = 0.3
# In eps, for matrices of any size: this part of the bound covers small matrices.
_ROUNDING = 16

Rotated = Callable[[jax.Array], jax.Array]


class SecondLook(NamedTuple):
    """Rotated rows `B^T J`, whose Gramian is `L C' L`.

    Attributes:
      is_used: whether the rows were rotated, bool; otherwise `L = Sigma` and `C'` is
        the identity.
      basis: `B`, the axes of the cosines divided by the norms, `[tasks, tasks]`.
      lengths: `L`, `[tasks]`.
      cosines: `C'`, `[tasks, tasks]`.
      values: the eigenvalues of `C'`, ascending, `[tasks]`. They are stored, because
        two simultaneous decompositions of `C'` can block XLA's threads on a CPU
        forever.
      turn: the eigenvectors of `C'`, `[tasks, tasks]`.
    """

    is_used: jax.Array
    basis: jax.Array
    lengths: jax.Array
    cosines: jax.Array
    values: jax.Array
    turn: jax.Array


class UnitRows(NamedTuple):
    """The unit rows `U`, decomposed along their principal axes, `U = Q Sigma P^T`.

    Attributes:
      singular: `Sigma`, `[tasks]`, in no particular order; zero for axes that do not
        count for the rank.
      axes: `Q`, `[tasks, tasks]`.
      norms: the row norms, `[tasks]`; zero for absent tasks.
      look: the rotated rows; None if only the Gramian is known.
    """

    singular: jax.Array
    axes: jax.Array
    norms: jax.Array
    look: SecondLook | None


def unit_rows(
    cosines: jax.Array, norms: jax.Array, rotated: Rotated | None = None
) -> UnitRows:
    r"""Finds the principal axes of the unit rows, the rows divided by their norms.

    .. math:: D^{-1} G D^{-1} = C = Q \Sigma^2 Q^T, \qquad D = \mathrm{diag}(|g_i|)

    A Gramian squares the condition number: it loses directions that differ by less than
    the square root of the precision. If C is nearly singular and the rows can be read
    again, the Gramian of the rotated rows W recovers the lost digits:

    .. math:: W = Q^T D^{-1} J, \qquad W W^T = L C' L, \qquad C' = Q' \Lambda' Q'^T.

    Each row of W is the part of the unit rows along one axis. Its length, an entry of
    L, may be small, but the matrix C' of cosines is far from singular. So
    `\sqrt{\Lambda'} Q'^T L Q^T` is a square root of C that is accurate up to rounding
    of its largest singular value.

    Zero rows and duplicates lower the rank. Directions that are only rounding error
    also lower the rank. In such a direction, the eigenvalue of C is below `512 eps`
    times the largest eigenvalue, or the singular value of the square root is below
    `(16 + tasks) eps` times the largest singular value. NaN or infinity in the input
    gives NaN.

    Args:
      cosines: `C`, `[tasks, tasks]`, as `normalise` returns them.
      norms: `[tasks]`, as `normalise` returns them.
      rotated: function from a basis `B` `[tasks, tasks]` to the Gramian of `B^T J`;
        None if only the Gramian is known. It is called in one branch of a `lax.cond`.
    """
    values, axes = jnp.linalg.eigh(cosines, symmetrize_input=False)
    eps = jnp.finfo(values.dtype).eps
    kept = values > GRAMIAN_RTOL * eps * values[-1]
    singular = jnp.sqrt(jnp.where(kept, values, 0))
    if rotated is None:
        return UnitRows(nan_unless_finite(singular, cosines), axes, norms, None)
    basis = safe_divide(axes, norms[:, None])
    # Each zero row adds an eigenvalue of zero, which does not depend on the other rows.
    rest = jnp.arange(len(norms)) >= jnp.sum(norms == 0)
    smallest = jnp.min(jnp.where(rest, values, values[-1]))
    well = smallest > eps**WELL_CONDITIONED * values[-1]
    singular, axes, look = look_again(
        well, _as_they_are, _refine, rotated, singular, axes, basis
    )
    return UnitRows(nan_unless_finite(singular, cosines), axes, norms, look)


def _as_they_are(
    singular: jax.Array, axes: jax.Array, basis: jax.Array, rotated: Rotated | None
) -> tuple[jax.Array, jax.Array, SecondLook]:
    del rotated
    unit = jnp.eye(len(singular), dtype=axes.dtype)
    ones = jnp.ones_like(singular)
    look = SecondLook(jnp.array(False), basis, singular, unit, ones, unit)
    return singular, axes, look


def _refine(
    singular: jax.Array, axes: jax.Array, basis: jax.Array, rotated: Rotated
) -> tuple[jax.Array, jax.Array, SecondLook]:
    del singular
    inner, lengths = normalise(rotated(basis).astype(axes.dtype))
    there = lengths > rounding(axes) * jnp.max(lengths)
    lengths = jnp.where(there, lengths, 0)
    inner = jnp.where(there[:, None] & there[None], inner, 0)
    values, turn = jnp.linalg.eigh(inner, symmetrize_input=False)
    root = jnp.sqrt(jnp.maximum(values, 0))[:, None] * turn.T * lengths[None]
    _, singular, right = jnp.linalg.svd(root)
    singular = jnp.where(singular > rounding(root) * singular[0], singular, 0)
    look = SecondLook(jnp.array(True), basis, lengths, inner, values, turn)
    return singular, dot(axes, right.T), look


def look_again(
    is_enough: jax.Array,
    usual: Callable[..., Any],
    again: Callable[..., Any],
    rotated: Rotated | None,
    *operands: Any,
) -> Any:
    """Returns the result of `usual`, or of `again` if `is_enough` is false.

    If `rotated` is a `Partial`, it holds its arrays as a pytree, so outside of `jit`
    the branches are compiled once for all rows of the same shape. Other functions close
    over their arrays and do not have this advantage.
    """
    if rotated is None or isinstance(rotated, jax.tree_util.Partial):
        return jax.lax.cond(is_enough, usual, again, *operands, rotated)
    usual, again = (
        functools.partial(branch, rotated=rotated) for branch in (usual, again)
    )
    return jax.lax.cond(is_enough, usual, again, *operands)


def rounding(matrix: jax.Array) -> float:
    """Returns a bound on the relative rounding error of an orthogonal transformation.

    The bound grows with the size of the matrix.
    """
    return (_ROUNDING + matrix.shape[0]) * float(jnp.finfo(matrix.dtype).eps)
