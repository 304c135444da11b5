"""Projection on the dual cone: the directions that conflict with no task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.min_norm import _minimise
from mtlopt.linalg.normalise import nan_unless_finite, normalise, safe_divide


class ConeProjection(NamedTuple):
    """Projections on the dual cone of the rows.

    Attributes:
      weights: `v`, `[problems, tasks]`, at least `lower`, zero for absent tasks.
      residual: The largest violation of the optimality conditions, `-<g_i, d>` or,
        where `v_i` is above its bound, `|<g_i, d>|`, divided by `|g_i|` and by the
        length `sum_j (|u_j| + v_j - u_j) |g_j|` of what `d` is made of, `[problems]`.
    """

    weights: jax.Array
    residual: jax.Array


class _State(NamedTuple):
    cosines: jax.Array  # C, [tasks, tasks]
    lower: jax.Array  # u, [problems, tasks], of the unit rows, |u| summing to 1
    solution: jax.Array  # y, likewise
    gradient: jax.Array  # C (u + y): cosines of the rows to d, times |d|
    direction: jax.Array  # the next step is along its negative
    residual: jax.Array  # [problems]
    steps: jax.Array  # int32: how many so far


def project_dual_cone(
    gramian: jax.Array, lower: jax.Array, present: jax.Array | None = None
) -> ConeProjection:
    r"""Projects combinations of the task gradients on the cone without conflict.

    .. math:: \mathrm{argmin}_{d : J d \ge 0} |d - J^T u| = J^T v, \qquad
        v = \mathrm{argmin}_{v \ge u} v^T G v

    for each row `u` of `lower`, all at once. On the unit rows and with `y = v - u` it
    is `min_{y >= 0} y'Cy/2 + u'Cy`, so no row scale enters the conditioning. Solved by
    conjugate gradients on the positive `y`: a step that would leave `y >= 0` is cut
    there and starts afresh, and zeros are released once the gradient on them outweighs
    the rest. Each step is two products `[problems, tasks] x [tasks, tasks]`. A problem
    stops when its optimality conditions hold to rounding; those that do not within
    `10 tasks` steps, of nearly dependent rows, are solved by the exact active set of
    `min_norm_point`, which ends always.

    Feasible by construction: `v >= u` exactly. `d` is unique; `v` is not where rows
    depend on each other. A zero row keeps `v = u`; opposed rows leave nothing of their
    common line in `d`; of duplicates any share. NaN or infinity in gives NaN out and
    ends at once. Not reverse-differentiable (`while_loop`; JAX raises).

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      lower: `u`, `[problems, tasks]`, of any sign.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero and
        constrain nothing.

    Returns:
      The weights `v` and the residual of each problem.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> print(project_dual_cone(gramian, jnp.eye(2)).weights)
      [[1.   0.25]
       [1.   1.  ]]

    References:
      Quinton and Rey, *Jacobian Descent for Multi-Objective Optimization*,
      arXiv:2406.16232, proposition 1. Steps: Dostál, *Optimal Quadratic Programming
      Algorithms*, 2009, chapter 5 (proportioning), with projected conjugate steps.
    """
    cosines, norms = normalise(gramian, present)
    lower = jnp.asarray(lower)
    if lower.ndim != 2 or lower.shape[1:] != norms.shape:
        raise ValueError(
            f"`lower` must have shape (problems, {len(norms)}), got {lower.shape}."
        )
    lower = lower.astype(norms.dtype)
    if present is not None:
        lower = jnp.where(present, lower, 0)
    lengths = lower * norms
    size = jnp.sum(jnp.abs(lengths), axis=1, keepdims=True)
    unit = safe_divide(lengths, size)
    solution, residual = _solve(cosines, unit)
    # At least `lower`, exactly: what is added is not negative.
    weights = lower + safe_divide(solution * size, norms)
    projection = ConeProjection(weights, residual)
    return jax.tree.map(lambda x: nan_unless_finite(x, cosines), projection)


def _solve(cosines: jax.Array, lower: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `y` and the residuals, on unit rows."""
    solution = jnp.zeros_like(lower)
    gradient, free, fixed, residual = _conditions(cosines, lower, solution)
    state = jax.lax.while_loop(
        _unfinished,
        _step,
        _State(
            cosines,
            lower,
            solution,
            gradient,
            free + fixed,
            residual,
            jnp.zeros([], jnp.int32),
        ),
    )
    stuck = jnp.any(state.residual > _tolerance(state))
    return jax.lax.cond(stuck, _pivot, _keep, state)


def _tolerance(state: _State) -> float:
    """Residual that is rounding: of sums whose terms add up to 1 in size."""
    return 4 * float(jnp.finfo(state.lower.dtype).eps)


def _conditions(
    cosines: jax.Array, lower: jax.Array, solution: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the gradient, what of it is left to reduce, and the residual.

    That is all of it on positive `y`, and on the others what would raise them.
    """
    gradient = _times(lower + solution, cosines)
    positive = solution > 0
    free = jnp.where(positive, gradient, 0)
    fixed = jnp.where(positive, 0, jnp.minimum(gradient, 0))
    largest = jnp.max(jnp.abs(free + fixed), axis=1)
    size = jnp.sum(jnp.abs(lower) + solution, axis=1)
    return gradient, free, fixed, safe_divide(largest, size)


def _unfinished(state: _State) -> jax.Array:
    limit = 10 * state.cosines.shape[0]
    return (state.steps < limit) & jnp.any(state.residual > _tolerance(state))


def _step(state: _State) -> _State:
    """One projected step of conjugate gradients; problems that are solved stay."""
    cosines, lower, solution, gradient, direction, residual, steps = state
    image = _times(direction, cosines)
    # Never so flat that rounding alone gives a long step.
    flat = jnp.finfo(lower.dtype).eps * _inner(direction, direction)
    curvature = jnp.maximum(_inner(direction, image), flat)
    length = safe_divide(_inner(gradient, direction), curvature)
    is_open = (residual > _tolerance(state))[:, None]
    moved = solution - jnp.where(is_open, length, 0) * direction
    solution = jnp.maximum(moved, 0)
    gradient, free, fixed, residual = _conditions(cosines, lower, solution)

    is_cut = jnp.any(moved < 0, axis=1, keepdims=True)
    overlap = jnp.where(is_cut, 0, safe_divide(_inner(free, image), curvature))
    conjugate = free - overlap * jnp.where(solution > 0, direction, 0)
    releases = _inner(fixed, fixed) > _inner(free, free)
    direction = jnp.where(releases, fixed, conjugate)
    return _State(cosines, lower, solution, gradient, direction, residual, steps + 1)


def _inner(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.sum(left * right, axis=1, keepdims=True)


def _times(vectors: jax.Array, cosines: jax.Array) -> jax.Array:
    return jnp.matmul(vectors, cosines, precision=jax.lax.Precision.HIGHEST)


def _keep(state: _State) -> tuple[jax.Array, jax.Array]:
    return state.solution, state.residual


def _pivot(state: _State) -> tuple[jax.Array, jax.Array]:
    """Solves the open problems by pivoting; returns the better of both answers.

    A ridge of the size of rounding makes every set of rows independent, so that no
    pivot is zero; the optimality conditions feel it no more than rounding.
    """
    cosines, lower = state.cosines, state.lower
    is_open = (state.residual > _tolerance(state))[:, None]
    eligible = is_open & (jnp.diagonal(cosines) > 0)
    target = -_times(lower, cosines)
    ridge = _tolerance(state) * jnp.eye(len(cosines), dtype=cosines.dtype)
    minimise = jax.vmap(_minimise, in_axes=(None, 0, 0))
    exact = jnp.maximum(minimise(cosines + ridge, target, eligible), 0)
    *_, residual = _conditions(cosines, lower, exact)
    is_better = residual < state.residual
    solution = jnp.where(is_better[:, None], exact, state.solution)
    return solution, jnp.where(is_better, residual, state.residual)
