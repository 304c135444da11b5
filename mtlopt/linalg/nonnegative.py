"""Quadratic programs over non-negative vectors, many at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.products import dot


class NonnegativeMinimum(NamedTuple):
    """Where conjugate gradients stopped.

    Attributes:
      solution: `y`, `[problems, tasks]`.
      residual: The largest violation of the optimality conditions, relative to
        `1 + sum_i y_i`, `[problems]`.
    """

    solution: jax.Array
    residual: jax.Array


class _State(NamedTuple):
    cosines: jax.Array  # C, [tasks, tasks]
    linear: jax.Array  # q, [problems, tasks]
    solution: jax.Array  # y, likewise
    gradient: jax.Array  # C y + q
    direction: jax.Array  # the next step is along its negative
    residual: jax.Array  # [problems]
    steps: jax.Array  # int32: how many so far


def minimise_nonnegative(cosines: jax.Array, linear: jax.Array) -> NonnegativeMinimum:
    r"""Minimises quadratic functions with one matrix over non-negative vectors.

    .. math:: \min_{y \ge 0} \tfrac12 y^T C y + q^T y

    By conjugate gradients on the positive `y`: a step that would leave `y >= 0` is cut
    there and starts afresh, and zeros are released once the gradient on them outweighs
    the rest. Each step is two products `[problems, tasks] x [tasks, tasks]`. A problem
    stops when its optimality conditions hold to `rounding`, all stop after `10 tasks`
    steps: `residual` tells. A problem without a minimum (`C z = 0` and `q'z < 0` for
    some `z >= 0`) stops far out on such a ray, once that dominates. NaN ends at once.

    Args:
      cosines: `C`, positive semidefinite, diagonal 1 or 0, `[tasks, tasks]`.
      linear: `q`, of size 1, `[problems, tasks]`.

    Returns:
      The solutions and their residuals.

    References:
      Dostál, *Optimal Quadratic Programming Algorithms*, 2009, chapter 5
      (proportioning), with projected conjugate steps.
    """
    solution = jnp.zeros_like(linear)
    free, fixed, residual = violations(linear, solution)
    state = jax.lax.while_loop(
        _unfinished,
        _step,
        _State(
            cosines,
            linear,
            solution,
            linear,
            free + fixed,
            residual,
            jnp.zeros([], jnp.int32),
        ),
    )
    return NonnegativeMinimum(state.solution, state.residual)


def rounding(array: jax.Array) -> float:
    """Residual that is rounding: of sums whose terms add up to 1 in size."""
    return 4 * float(jnp.finfo(array.dtype).eps)


def violations(
    gradient: jax.Array, solution: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what of the gradient is left to reduce, and the residual.

    That is all of it on positive `y`, and on the others what would raise them.
    """
    positive = solution > 0
    free = jnp.where(positive, gradient, 0)
    fixed = jnp.where(positive, 0, jnp.minimum(gradient, 0))
    largest = jnp.max(jnp.abs(free + fixed), axis=1)
    return free, fixed, largest / (1 + jnp.sum(solution, axis=1))


def _unfinished(state: _State) -> jax.Array:
    limit = 10 * state.cosines.shape[0]
    return (state.steps < limit) & jnp.any(state.residual > rounding(state.linear))


def _step(state: _State) -> _State:
    """One projected step of conjugate gradients; problems that are solved stay."""
    cosines, linear, solution, gradient, direction, residual, steps = state
    image = dot(direction, cosines)
    # Never so flat that rounding alone gives a long step.
    flat = jnp.finfo(linear.dtype).eps * _inner(direction, direction)
    curvature = jnp.maximum(_inner(direction, image), flat)
    length = safe_divide(_inner(gradient, direction), curvature)
    is_open = (residual > rounding(linear))[:, None]
    moved = solution - jnp.where(is_open, length, 0) * direction
    solution = jnp.maximum(moved, 0)
    gradient = dot(solution, cosines) + linear
    free, fixed, residual = violations(gradient, solution)

    is_cut = jnp.any(moved < 0, axis=1, keepdims=True)
    overlap = jnp.where(is_cut, 0, safe_divide(_inner(free, image), curvature))
    conjugate = free - overlap * jnp.where(solution > 0, direction, 0)
    releases = _inner(fixed, fixed) > _inner(free, free)
    direction = jnp.where(releases, fixed, conjugate)
    return _State(cosines, linear, solution, gradient, direction, residual, steps + 1)


def _inner(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.sum(left * right, axis=1, keepdims=True)
