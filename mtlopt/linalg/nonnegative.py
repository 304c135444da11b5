"""Quadratic programs over non-negative vectors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.pivots import minimise_by_pivots
from mtlopt.linalg.products import dot
from mtlopt.linalg.reductions import reduce_each


class NonnegativeMinimum(NamedTuple):
    """The minimum.

    Attributes:
      solution: `y`, `[tasks]`.
      residual: The largest violation of the optimality conditions, relative to
        `1 + sum_i y_i`, a scalar.
    """

    solution: jax.Array
    residual: jax.Array


class LeastDistance(NamedTuple):
    """The shortest vector is `sum_i coefficients_i u_i / slack`.

    Attributes:
      coefficients: `y`, `[tasks]`, not negative.
      slack: A scalar, not negative; zero to rounding if there is no such vector.
    """

    coefficients: jax.Array
    slack: jax.Array


class _State(NamedTuple):
    solution: jax.Array  # y, [tasks]
    left: jax.Array  # what of C y + q is left to reduce, [tasks]
    direction: jax.Array  # the next step is along its negative, [tasks]
    residual: jax.Array  # scalar
    steps: jax.Array  # int32: how many so far


@jax.jit
def minimise_nonnegative(matrix: jax.Array, linear: jax.Array) -> NonnegativeMinimum:
    r"""Minimises a quadratic function over non-negative vectors.

    .. math:: \min_{y \ge 0} \tfrac12 y^T C y + q^T y

    By conjugate gradients on the positive `y`. A step that would leave `y >= 0` ends at
    the first zero and goes on with a short projected one along the gradient; after it
    the directions start afresh. Zeros are released once the gradient on them outweighs
    the rest. Each step is two products of `C` with a vector. Ends when the optimality
    conditions hold to rounding, at once for NaN.

    Nearly dependent rows take steps like the root of a condition number: some hundreds
    in float32, which has no larger conditions (at most 10,000). In float64 what is open
    after `10 tasks` steps is solved by `minimise_by_pivots`.

    There must be a minimum: `q` in the range of `C`, say. See `least_distance` for
    constraints that may have no solution.

    Args:
      matrix: `C`, positive semidefinite, entries of size 1, `[tasks, tasks]`.
      linear: `q`, of size 1, `[tasks]`.

    Returns:
      The solution and its residual.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = minimise_nonnegative(jnp.eye(2), jnp.array([-3.0, 1.0]))
      >>> print(found.solution)
      [3. 0.]

    References:
      Dostál, *Optimal Quadratic Programming Algorithms*, 2009, chapter 5 (MPRGP).
    """
    eps, tiny = jnp.finfo(linear.dtype).eps, jnp.finfo(linear.dtype).tiny
    is_double = linear.dtype == jnp.float64
    most_steps = 10 * len(linear) if is_double else 10_000

    def left_to_reduce(gradient: jax.Array, positive: jax.Array) -> jax.Array:
        """All of it on positive `y`, on the others what would raise them.

        The residual is made of it, and its product with a step is the gradient's.
        """
        return jnp.where(positive, gradient, jnp.minimum(gradient, 0))

    def unfinished(state: _State) -> jax.Array:
        return (state.residual > 4 * eps) & (state.steps < most_steps)

    def step(state: _State) -> _State:
        solution, left, direction, _, steps = state
        image = dot(matrix, direction)
        square, curvature, descent, minus_end = reduce_each(
            sums=[direction * direction, direction * image, direction * left],
            maxima=[
                jnp.where(direction > 0, -safe_divide(solution, direction), -jnp.inf)
            ],
        )
        # Never so flat that rounding alone gives a long step.
        curvature = jnp.maximum(curvature, eps * square + tiny)
        length = descent / curvature
        is_cut = length > -minus_end
        length = jnp.minimum(length, -minus_end)
        push = jnp.where(is_cut, 1.9 / len(linear), 0)  # below 2 / |C|
        pushed = solution - length * direction
        pushed -= push * jnp.where(solution > 0, left - length * image, 0)
        solution = jnp.maximum(pushed, 0)

        positive = solution > 0
        left = left_to_reduce(dot(matrix, solution) + linear, positive)
        free, fixed = jnp.where(positive, left, 0), jnp.where(positive, 0, left)
        total, on_free, on_fixed, overlap, largest = reduce_each(
            sums=[solution, free * free, fixed * fixed, free * image],
            maxima=[jnp.abs(left)],
        )
        releases = on_fixed > on_free
        overlap = jnp.where(releases | is_cut, 0, overlap / curvature)
        conjugate = left - overlap * direction
        direction = jnp.where(positive ^ releases, conjugate, 0)
        return _State(solution, left, direction, largest / (1 + total), steps + 1)

    left = left_to_reduce(linear, jnp.zeros_like(linear, bool))
    state = _State(
        solution=jnp.zeros_like(linear),
        left=left,
        direction=left,
        residual=jnp.full([], jnp.inf, linear.dtype),
        steps=jnp.zeros([], jnp.int32),
    )
    state = jax.lax.while_loop(unfinished, step, state)
    found = NonnegativeMinimum(state.solution, state.residual)
    if not is_double:
        return found

    # Nothing to do, and one pivot, where all is solved.
    unsolved = jnp.where(found.residual > 4 * eps, linear, 0)
    exact = minimise_by_pivots(matrix, unsolved)
    left = left_to_reduce(linear + dot(matrix, exact), exact > 0)
    total, largest = reduce_each(sums=[exact], maxima=[jnp.abs(left)])
    other = NonnegativeMinimum(exact, largest / (1 + total))
    is_better = other.residual < found.residual
    return jax.tree.map(lambda a, b: jnp.where(is_better, a, b), other, found)


def least_distance(cosines: jax.Array, bounds: jax.Array) -> LeastDistance:
    r"""Finds the shortest vector whose inner products with unit rows are large enough.

    .. math:: \min_d |d|^2 \quad \text{subject to} \quad \langle u_i, d \rangle \ge b_i

    It is `d = sum_i y_i u_i / slack` with

    .. math:: y = \mathrm{argmin}_{y \ge 0}
        |\sum_i y_i u_i|^2 + (1 - T^{-1/2} \sum_i b_i y_i)^2

    which is there even if no `d` is: for contradictory bounds `sum_i y_i u_i = 0` and
    `slack = 0`, to rounding, which proves that they are.

    Args:
      cosines: `C`, of the rows, diagonal 1 or 0, `[tasks, tasks]`.
      bounds: `b`, the largest of size 1, zero for zero rows, `[tasks]`.

    Returns:
      The coefficients and the slack.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = least_distance(jnp.eye(2), jnp.array([1.0, -1.0]))
      >>> print(jnp.round(found.coefficients / found.slack, 4))
      [1. 0.]

    References:
      Lawson and Hanson, *Solving Least Squares Problems*, 1974, chapter 23 (LDP).
    """
    # With this root no digit is lost to `b b'` where T rows are nearly orthogonal and
    # `d` is as long as it.
    root = len(bounds) ** 0.5
    scaled = bounds / root
    solution, _ = minimise_nonnegative(
        cosines + scaled[:, None] * scaled[None], -scaled
    )
    return LeastDistance(solution, (1 - dot(scaled, solution)) / root)
