"""Quadratic programs over non-negative vectors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.implicit import solve_among
from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.pivots import minimise_by_pivots
from mtlopt.linalg.products import diagonal, dot
from mtlopt.linalg.reductions import reduce_each


class NonnegativeMinimum(NamedTuple):
    """The minimum of a quadratic program over non-negative vectors.

    Attributes:
      solution: `y`, `[tasks]`.
      residual: The largest violation of the optimality conditions, relative to
        `1 + sum_i y_i`, a scalar.
    """

    solution: jax.Array
    residual: jax.Array


class LeastDistance(NamedTuple):
    """The result of `least_distance`: the vector `sum_i coefficients_i u_i / slack`.

    Attributes:
      coefficients: `y`, `[tasks]`, not negative.
      slack: A scalar, not negative; zero up to rounding if no vector satisfies the
        bounds.
    """

    coefficients: jax.Array
    slack: jax.Array


class _State(NamedTuple):
    solution: jax.Array  # y, [tasks]
    left: jax.Array  # the part of C y + q that can still be reduced, [tasks]
    direction: jax.Array  # the next step is along its negative, [tasks]
    residual: jax.Array  # scalar
    steps: jax.Array  # int32: number of steps so far


# The optimality conditions hold up to this many eps, relative to `1 + sum_i y_i`.
_TOLERANCE = 4
# For nearly dependent rows, the number of steps is about the square root of the
# condition number. No condition number in float32 needs more steps than this. In
# float64 the limit is a multiple of the number of tasks, and then pivots replace the
# steps.
_MAX_STEPS, _MAX_STEPS_A_TASK = 10_000, 10
# The norm of the matrix is at most `tasks`, so a step along the gradient may be up to
# `2 / tasks`. A step a little shorter is safe from rounding.
_PUSH = 1.9


@jax.custom_jvp
@jax.jit
def minimise_nonnegative(matrix: jax.Array, linear: jax.Array) -> NonnegativeMinimum:
    r"""Minimises a quadratic function over non-negative vectors.

    .. math:: \min_{y \ge 0} \tfrac12 y^T C y + q^T y

    Conjugate gradients run on the positive `y`. A step that would leave `y >= 0` ends
    at the first zero, and a short projected step along the gradient follows. Then
    conjugate gradients restart. Entries that are zero may become positive once their
    part of the gradient exceeds the rest of the gradient. Each step costs two products
    of `C` with a vector. The method ends when the optimality conditions hold up to
    rounding, and immediately for NaN. Two tasks have a closed form.

    For nearly dependent rows, the number of steps is about the square root of the
    condition number. In float32 this is a few hundred, because float32 cannot represent
    condition numbers that need more steps. The limit is 10,000 steps. In float64,
    `minimise_by_pivots` solves the problems that are still unsolved after `10 tasks`
    steps.

    There must be a minimum, for example because `q` is in the range of `C`. For
    constraints that may have no solution, see `least_distance`. The solution is
    differentiable if no `y_i` and its gradient are both zero. If the rows are linearly
    dependent, only their combination `sum_i y_i u_i` is differentiable.

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
    if len(linear) == 2:
        return _minimum(matrix, linear, _minimise_pair(matrix, linear))
    found = _minimise_by_gradients(matrix, linear)
    if linear.dtype != jnp.float64:
        return found
    # If all conditions hold, nothing is left to do, and one pivot detects this.
    eps = jnp.finfo(linear.dtype).eps
    unsolved = jnp.where(found.residual > _TOLERANCE * eps, linear, 0)
    other = _minimum(matrix, linear, minimise_by_pivots(matrix, unsolved))
    is_better = other.residual < found.residual
    return jax.tree.map(lambda a, b: jnp.where(is_better, a, b), other, found)


@minimise_nonnegative.defjvp
def _(primals: Any, tangents: Any) -> tuple[NonnegativeMinimum, NonnegativeMinimum]:
    """`C_FF dy_F = -(dC y + dq)_F` on the set F of positive `y`; others stay zero."""
    (matrix, _), (turned, pushed) = primals, tangents
    found = minimise_nonnegative(*primals)
    right = -(dot(turned, found.solution) + pushed)
    moved = solve_among(matrix, found.solution > 0, right)
    return found, NonnegativeMinimum(moved, jnp.zeros_like(found.residual))


def _minimise_pair(matrix: jax.Array, linear: jax.Array) -> jax.Array:
    """Returns the minimum for two tasks: both `y_i` positive (Cramer's rule), or one.

    Both determinants are computed from differences, so that nearly dependent rows lose
    no digits.
    """
    squares, product = diagonal(matrix), matrix[0, 1]
    size, across = jnp.abs(product), jnp.sign(product) * linear[::-1]
    apart = squares - size
    determinant = apart[0] * apart[1] + size * (apart[0] + apart[1])
    both = -apart[::-1] * linear - size * (linear - across)
    has_both = (both[0] > 0) & (both[1] > 0) & (determinant > 0)

    alone = jnp.maximum(-safe_divide(linear, squares), 0)
    fall = -alone * linear
    is_best = fall >= fall[::-1]  # both, if they are equal, so that they share
    alone = jnp.where(is_best, alone, 0) / jnp.where(is_best[::-1], 2, 1)
    return jnp.where(has_both, both / jnp.where(has_both, determinant, 1), alone)


def _minimum(
    matrix: jax.Array, linear: jax.Array, solution: jax.Array
) -> NonnegativeMinimum:
    """Returns a solution with its residual."""
    left = _left_to_reduce(dot(matrix, solution) + linear, solution > 0)
    total, largest = reduce_each(sums=[solution], maxima=[jnp.abs(left)])
    return NonnegativeMinimum(solution, largest / (1 + total))


def _left_to_reduce(gradient: jax.Array, positive: jax.Array) -> jax.Array:
    """Returns the gradient; where `y` is zero, only the part that would raise `y`.

    The residual is computed from this vector. The inner product of this vector with a
    step equals the inner product of the gradient with the step.
    """
    return jnp.where(positive, gradient, jnp.minimum(gradient, 0))


def _minimise_by_gradients(matrix: jax.Array, linear: jax.Array) -> NonnegativeMinimum:
    eps, tiny = jnp.finfo(linear.dtype).eps, jnp.finfo(linear.dtype).tiny
    is_double = linear.dtype == jnp.float64
    most_steps = _MAX_STEPS_A_TASK * len(linear) if is_double else _MAX_STEPS

    def unfinished(state: _State) -> jax.Array:
        return (state.residual > _TOLERANCE * eps) & (state.steps < most_steps)

    def step(state: _State) -> _State:
        solution, left, direction, _, steps = state
        image = dot(matrix, direction)
        square, curvature, descent, minus_end = reduce_each(
            sums=[direction * direction, direction * image, direction * left],
            maxima=[
                jnp.where(direction > 0, -safe_divide(solution, direction), -jnp.inf)
            ],
        )
        # The curvature is never so small that rounding alone makes a step long.
        curvature = jnp.maximum(curvature, eps * square + tiny)
        length = descent / curvature
        is_cut = length > -minus_end
        length = jnp.minimum(length, -minus_end)
        push = jnp.where(is_cut, _PUSH / len(linear), 0)
        pushed = solution - length * direction
        pushed -= push * jnp.where(solution > 0, left - length * image, 0)
        solution = jnp.maximum(pushed, 0)

        positive = solution > 0
        left = _left_to_reduce(dot(matrix, solution) + linear, positive)
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

    left = _left_to_reduce(linear, jnp.zeros_like(linear, bool))
    state = _State(
        solution=jnp.zeros_like(linear),
        left=left,
        direction=left,
        residual=jnp.full([], jnp.inf, linear.dtype),
        steps=jnp.zeros([], jnp.int32),
    )
    state = jax.lax.while_loop(unfinished, step, state)
    return NonnegativeMinimum(state.solution, state.residual)


def least_distance(cosines: jax.Array, bounds: jax.Array) -> LeastDistance:
    r"""Finds the shortest vector whose inner products with unit rows are large enough.

    .. math:: \min_d |d|^2 \quad \text{subject to} \quad \langle u_i, d \rangle \ge b_i

    The vector is `d = sum_i y_i u_i / slack` with

    .. math:: y = \mathrm{argmin}_{y \ge 0}
        |\sum_i y_i u_i|^2 + (1 - T^{-1/2} \sum_i b_i y_i)^2

    This `y` exists even if no `d` satisfies the constraints. If the bounds contradict
    each other, then `sum_i y_i u_i = 0` and `slack = 0` up to rounding, which proves
    the contradiction.

    Args:
      cosines: `C`, cosines of the rows, diagonal 1 or 0, `[tasks, tasks]`.
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
    # With this square root, the term `b b'` costs no digits if T rows are nearly
    # orthogonal and `d` is as long as the square root.
    root = len(bounds) ** 0.5
    scaled = bounds / root
    solution, _ = minimise_nonnegative(
        cosines + scaled[:, None] * scaled[None], -scaled
    )
    return LeastDistance(solution, (1 - dot(scaled, solution)) / root)
