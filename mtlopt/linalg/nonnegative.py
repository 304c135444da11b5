"""Quadratic programs over non-negative vectors, one or many at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.pivots import minimise_by_pivots
from mtlopt.linalg.products import dot
from mtlopt.linalg.reductions import reduce_each


class NonnegativeMinimum(NamedTuple):
    """The minimum.

    Attributes:
      solution: `y`, `[tasks]`, or `[problems, tasks]`.
      residual: The largest violation of the optimality conditions, relative to
        `1 + sum_i y_i`, a scalar, or `[problems]`.
    """

    solution: jax.Array
    residual: jax.Array


class _Problem(NamedTuple):
    """One problem, or many with an axis in front."""

    linear: jax.Array  # q, [tasks]
    solution: jax.Array  # y, [tasks]
    left: jax.Array  # what of C y + q is left to reduce, [tasks]
    direction: jax.Array  # the next step is along its negative, [tasks]
    residual: jax.Array  # scalar


class _State(NamedTuple):
    cosines: jax.Array  # C, [tasks, tasks]
    problem: _Problem
    steps: jax.Array  # int32: how many so far


def minimise_nonnegative(cosines: jax.Array, linear: jax.Array) -> NonnegativeMinimum:
    r"""Minimises quadratic functions with one matrix over non-negative vectors.

    .. math:: \min_{y \ge 0} \tfrac12 y^T C y + q^T y

    By conjugate gradients on the positive `y`. A step that would leave `y >= 0` ends at
    the first zero and goes on with a short projected one along the gradient; after it
    the directions start afresh. Zeros are released once the gradient on them outweighs
    the rest. Each step is two products of `C` with a vector for each problem. A problem
    stops when its optimality conditions hold to rounding, all stop after `10 tasks`
    steps. What is still open then is solved by `minimise_by_pivots`, which always ends;
    the better of both answers counts.

    A problem without a minimum (`C z = 0` and `q'z < 0` for some `z >= 0`) stops far
    out on such a ray, once that dominates. NaN ends at once.

    Args:
      cosines: `C`, positive semidefinite, diagonal 1 or 0, `[tasks, tasks]`.
      linear: `q`, of size 1, `[tasks]`, or `[problems, tasks]`.

    Returns:
      The solutions and their residuals.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = minimise_nonnegative(jnp.eye(2), jnp.array([-3.0, 1.0]))
      >>> print(found.solution)
      [3. 0.]

    References:
      Dostál, *Optimal Quadratic Programming Algorithms*, 2009, chapter 5 (MPRGP).
    """
    left = _left_to_reduce(linear, jnp.zeros_like(linear, bool))
    many = linear.shape[:-1]
    problem = _Problem(
        linear, jnp.zeros_like(linear), left, left, jnp.full(many, jnp.inf, left.dtype)
    )
    state = _State(cosines, problem, steps=jnp.zeros([], jnp.int32))
    problem = jax.lax.while_loop(_unfinished, _step_all, state).problem
    found = NonnegativeMinimum(problem.solution, problem.residual)
    stuck = jnp.any(_is_open(found.residual))
    return jax.lax.cond(stuck, _pivot, _keep, cosines, linear, found)


def _rounding(array: jax.Array) -> float:
    """Residual that is rounding: of sums whose terms add up to 1 in size."""
    return 4 * float(jnp.finfo(array.dtype).eps)


def _is_open(residual: jax.Array) -> jax.Array:
    return residual > _rounding(residual)


def _unfinished(state: _State) -> jax.Array:
    limit = 10 * len(state.cosines)
    return (state.steps < limit) & jnp.any(_is_open(state.problem.residual))


def _step_all(state: _State) -> _State:
    """One step; module-level, so that a second call outside `jit` compiles no more."""
    is_one = state.problem.linear.ndim == 1
    step = _step if is_one else jax.vmap(_step, in_axes=(None, 0))
    return _State(state.cosines, step(state.cosines, state.problem), state.steps + 1)


def _step(cosines: jax.Array, problem: _Problem) -> _Problem:
    """One projected step of conjugate gradients; a problem that is solved stays."""
    linear, solution, left, direction, residual = problem
    eps, tiny = jnp.finfo(linear.dtype).eps, jnp.finfo(linear.dtype).tiny
    image = dot(cosines, direction)
    square, curvature, descent, total, minus_end = reduce_each(
        sums=[direction * direction, direction * image, direction * left, solution],
        maxima=[jnp.where(direction > 0, -solution / direction, -jnp.inf)],
    )
    # Never so flat that rounding alone gives a long step; far out on a ray, where most
    # of the gradient is rounding, not all of that may be in the same direction.
    noise = eps * jnp.clip(eps**0.5 * total, 1, len(linear))
    curvature = jnp.maximum(curvature, noise * square + tiny)
    length = descent / curvature
    is_open = _is_open(residual)
    is_cut = is_open & (length > -minus_end)
    length = jnp.where(is_open, jnp.minimum(length, -minus_end), 0)
    push = jnp.where(is_cut, 1.9 / len(linear), 0)  # below 2 / |C|
    pushed = solution - length * direction
    pushed -= push * jnp.where(solution > 0, left - length * image, 0)
    solution = jnp.clip(pushed, 0, eps**-2)  # `q` is no longer seen that far out

    positive = solution > 0
    left = _left_to_reduce(dot(cosines, solution) + linear, positive)
    free, fixed = jnp.where(positive, left, 0), jnp.where(positive, 0, left)
    total, on_free, on_fixed, overlap, largest = reduce_each(
        sums=[solution, free * free, fixed * fixed, free * image],
        maxima=[jnp.abs(left)],
    )
    releases = on_fixed > on_free
    overlap = jnp.where(releases | is_cut, 0, overlap / curvature)
    conjugate = left - overlap * direction
    direction = jnp.where(positive ^ releases, conjugate, 0)
    return _Problem(linear, solution, left, direction, largest / (1 + total))


def _left_to_reduce(gradient: jax.Array, positive: jax.Array) -> jax.Array:
    """All of the gradient on positive `y`, on the others what would raise them.

    The residual is made of it, and its product with a step is the gradient's.
    """
    return jnp.where(positive, gradient, jnp.minimum(gradient, 0))


def _keep(
    _cosines: jax.Array, _linear: jax.Array, found: NonnegativeMinimum
) -> NonnegativeMinimum:
    return found


def _pivot(
    cosines: jax.Array, linear: jax.Array, found: NonnegativeMinimum
) -> NonnegativeMinimum:
    """Solves the open problems by pivoting; returns the better of both answers."""
    is_open = _is_open(found.residual)[..., None]
    exact = minimise_by_pivots(cosines, jnp.where(is_open, linear, 0))
    compare = (
        _better if linear.ndim == 1 else jax.vmap(_better, in_axes=(None, 0, 0, 0))
    )
    return compare(cosines, linear, exact, found)


def _better(
    cosines: jax.Array, linear: jax.Array, exact: jax.Array, found: NonnegativeMinimum
) -> NonnegativeMinimum:
    left = _left_to_reduce(linear + dot(cosines, exact), exact > 0)
    total, largest = reduce_each(sums=[exact], maxima=[jnp.abs(left)])
    residual = largest / (1 + total)
    is_better = residual < found.residual
    return NonnegativeMinimum(
        solution=jnp.where(is_better, exact, found.solution),
        residual=jnp.where(is_better, residual, found.residual),
    )
