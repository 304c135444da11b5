"""The direction in a ball that maximises the smallest inner product with the rows."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.implicit import solve_among
from mtlopt.linalg.normalise import (
    Gramian,
    nan_unless_finite,
    normalise,
    safe_divide,
    safe_root,
)
from mtlopt.linalg.pivots import pick_row, sweep
from mtlopt.linalg.products import diagonal, dot
from mtlopt.linalg.reductions import argmax_and_sums, reduce_each

# In eps, relative to the sizes of their terms. A row depends on others if its part
# orthogonal to them is shorter than the first number. A mean is zero if its square is
# below the second number. A row that replaces another row needs a part along that row
# above the third number.
_DEPENDENT, _NO_MEAN, _EXCHANGED = 4, 64, 32
_MAX_PIVOTS_A_TASK = 10  # about one is usual


class MaxMinDirection(NamedTuple):
    """The best direction in the ball.

    Attributes:
      weights: `[tasks]`, zero for absent tasks. The direction is `sum_i weights_i g_i`.
      residual: The largest violation of the optimality conditions, relative to
        `|g_i| |g_0|`, a scalar.
    """

    weights: jax.Array
    residual: jax.Array


class _Problem(NamedTuple):
    cosines: jax.Array  # C, [tasks, tasks]
    rates: jax.Array  # a, [tasks]: the shortest norm / each norm; 0 for zero rows
    mean: jax.Array  # e, [tasks]: the mean divided by its length is sum_i e_i u_i
    radius: jax.Array  # c, scalar


class _Limits(NamedTuple):
    lowest: jax.Array  # scalar: the level of the mean
    highest: jax.Array  # scalar: the largest level allowed
    eligible: jax.Array  # bool [tasks]: rows that are there and not zero


class _State(NamedTuple):
    tableau: jax.Array  # [tasks, tasks + 2]: cosines swept on `passive`, and two rhs
    eligible: jax.Array  # bool [tasks]: rows that are there and not zero
    rates: jax.Array  # [tasks]: right-hand side is level * rates - offsets
    offsets: jax.Array  # [tasks]
    passive: jax.Array  # bool [tasks]: the swept set of tight constraints
    entering: jax.Array  # int32: the constraint that enters, or -1
    level: jax.Array  # scalar: lower bound of all inner products so far
    highest: jax.Array  # scalar: the largest level allowed
    radius: jax.Array  # scalar
    done: jax.Array  # bool
    pivots: jax.Array  # int32


def max_min_direction(
    gramian: Gramian, radius: Any, present: jax.Array | None = None
) -> MaxMinDirection:
    r"""Maximises the smallest inner product with the rows in a ball around their mean.

    .. math:: \max_d \min_i \langle g_i, d \rangle
        \quad \text{subject to} \quad |d - g_0| \le c |g_0|

    Here `g_0` is the mean row. For a level `mu`, the point nearest to `g_0` with
    `<g_i, d> >= mu` for all `i` is `g_0 + |g_0| sum_i y_i u_i`, where `u_i` are the
    unit rows. With their cosines `C` and `a_i = <u_i, g_0> / |g_0|`,

    .. math:: y = \mathrm{argmin}_{y \ge 0} \tfrac12 y^T C y
        - \sum_i (\mu |g_0|^{-1} |g_i|^{-1} - a_i) y_i

    `y` is piecewise linear in `mu`, and zero for the lowest `mu`. So the method raises
    `mu` from one kink to the next until `|sum_i y_i u_i| = c`. Each kink takes one
    sweep (pivot) of a `[tasks, tasks + 2]` tableau. The method is exact. It takes at
    most `10 tasks + 10` pivots, and usually about one pivot for each constraint that
    becomes tight. The condition number of the problem does not depend on the norms of
    the rows. Iterative refinement solves the last linear piece of the path `y(mu)`
    again.

    If the largest possible `mu` is zero and is reached before the edge of the ball,
    many directions are equally good, and the result is the one nearest to `g_0`. So if
    a row is zero, the direction only needs to have no negative inner product with the
    other rows. The result is then `g_0` if no inner product with `g_0` is negative. If
    the mean gradient `g_0` is zero up to rounding of `G`, it has no direction, and the
    result is `g_0`. A single row gives `(1 + c) g`, and so do equal rows. Rows that are
    dependent up to 4 eps count as dependent. NaN in the input gives NaN, without
    iterations.

    Two tasks have a closed form. The weights are differentiable if the set of tight
    constraints does not change; the residual is not differentiable.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      radius: `c`, relative to `|g_0|`, not negative, a scalar.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero and are
        not part of the mean.

    Returns:
      The weights of the direction and the optimality residual.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> direction = max_min_direction(jnp.diag(jnp.array([4.0, 1.0])), 0.5)
      >>> print(jnp.round(direction.weights, 4))
      [0.5  1.059]

    References:
      Liu et al., *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS
      2021, equation 2; the authors solve the dual problem approximately. For the kinks:
      Efron et al., *Least Angle Regression*, Annals of Statistics 32, 2004.
    """
    cosines, norms = normalise(gramian, present)
    dtype = norms.dtype
    eps = jnp.finfo(dtype).eps
    there = jnp.ones_like(norms, bool) if present is None else jnp.asarray(present)
    eligible = norms > 0
    count, num_zero, largest, smallest = reduce_each(
        sums=[there.astype(dtype), (there & ~eligible).astype(dtype)],
        maxima=[norms, jnp.where(eligible, -norms, -jnp.inf)],
    )
    count = jnp.maximum(count, 1)

    # The mean row, in units of the largest norm.
    lengths = safe_divide(norms, largest) / count
    products = dot(cosines, lengths)  # <u_i, g_0>
    rates = jnp.where(eligible, safe_divide(-smallest, norms), 0)
    square, size, lowest = reduce_each(
        sums=[lengths * products, lengths * lengths],
        maxima=[jnp.where(eligible, -safe_divide(products, rates), -jnp.inf)],
    )
    has_mean = square > _NO_MEAN * eps * size
    mean = jnp.sqrt(jnp.where(has_mean, square, 1))
    radius = jnp.where(has_mean, jnp.asarray(radius, dtype), 0)
    lowest = jnp.where(largest > 0, -lowest / mean, 0)
    highest = jnp.where(num_zero > 0, 0, jnp.inf).astype(dtype)
    problem = _Problem(cosines, rates, lengths / mean, radius)
    solution, level = _solve(problem, _Limits(lowest, highest, eligible))

    reached = dot(cosines, solution + problem.mean)
    slack = reached - jnp.minimum(level, highest) * rates  # <u_i, d> - mu / |g_i|
    slack = jnp.where(solution > 0, jnp.abs(slack), -slack)
    residual = jnp.max(jnp.where(eligible & (radius > 0), slack, 0), initial=0)

    extra = mean * safe_divide(solution, safe_divide(norms, largest))
    weights = jnp.where(there, 1 / count + extra, 0)
    found = MaxMinDirection(weights, jax.lax.stop_gradient(residual))
    return jax.tree.map(lambda x: nan_unless_finite(x, square), found)


@jax.custom_jvp
def _solve(problem: _Problem, limits: _Limits) -> tuple[jax.Array, jax.Array]:
    """Raises the level to the edge of the ball; returns `y` and the level."""
    if len(problem.rates) == 2:
        return _solve_pair(problem, limits)
    cosines, rates, mean, radius = problem
    offsets = dot(cosines, mean)
    state = _State(
        tableau=jnp.concatenate([cosines, rates[:, None], offsets[:, None]], axis=1),
        eligible=limits.eligible,
        rates=rates,
        offsets=offsets,
        passive=jnp.zeros_like(limits.eligible),
        entering=jnp.full([], -1, jnp.int32),
        level=limits.lowest,
        highest=limits.highest,
        radius=radius,
        done=(limits.lowest >= limits.highest) | ~(radius > 0),
        pivots=jnp.zeros([], jnp.int32),
    )
    state = jax.lax.while_loop(_unfinished, _pivot, state)
    return _refine(cosines, state), state.level


@_solve.defjvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    r"""Differentiates `C y = \mu a - C e` of the tight constraints and `y' C y = c^2`.

    Before the edge of the ball, the level is zero and stays zero.
    """
    problem, limits = primals
    solution, level = _solve(problem, limits)

    def missed(problem: _Problem) -> tuple[jax.Array, jax.Array]:
        cosines, rates, mean, radius = problem
        tight = dot(cosines, solution + mean) - level * rates
        return tight, dot(solution, dot(cosines, solution)) - radius**2

    (_, excess), (tight, edge) = jax.jvp(missed, (problem,), (tangents[0],))
    among = functools.partial(solve_among, problem.cosines, solution > 0)
    stays, rises = among(tight), among(problem.rates)  # dy = rise * rises - stays
    along = 2 * dot(problem.cosines, solution)
    rise = safe_divide(dot(along, stays) - edge, dot(along, rises))
    # Rounding of `y' C y` is well below the root of eps.
    is_inside = excess < -jnp.sqrt(jnp.finfo(level.dtype).eps) * problem.radius**2
    rise = jnp.where(is_inside | (level >= limits.highest), 0, rise)
    return (solution, level), (rise * rises - stays, rise)


def _solve_pair(problem: _Problem, limits: _Limits) -> tuple[jax.Array, jax.Array]:
    r"""Solves for two tasks: both constraints are tight, or only the worse task's is.

    One direction has the same inner product with both rows. In units of `|g_0|`, the
    component of `g_0` along this direction is `p`, and the best point along it is
    `p + sqrt(p^2 + c^2 - 1)` away from zero. With `a` and `e` of `_Problem`,

    .. math:: y = \frac{a^T e}{\alpha} \Big( 1 + \frac{\sqrt{p^2 + c^2 - 1}}{p} \Big)
        \mathrm{adj}(C) \, a - e, \quad \alpha = a^T \mathrm{adj}(C) \, a, \quad
        p^2 = (a^T e)^2 \det C / \alpha

    The formula holds if both `y_i` are positive. Otherwise `y_i = c` for the task with
    the lower level.
    """
    cosines, rates, mean, radius = problem
    eps, cosine = jnp.finfo(rates.dtype).eps, cosines[0, 1]
    offsets, difference = dot(cosines, mean), rates - rates[::-1]
    # If rows are nearly equal, differences are taken first, so that no digits are lost.
    apart = 1 - cosine
    determinant = apart * (1 + cosine)
    near, far = difference + apart * rates[::-1], rates - cosine * rates[::-1]
    adjoint = jnp.where(2 * cosine > 1, near, far)
    alpha = difference[0] ** 2 + 2 * rates[0] * rates[1] * apart
    along = dot(rates, mean)
    square = along**2 * safe_divide(determinant, alpha)
    left = radius**2 * square + (radius - 1) * (radius + 1) * (1 - square)
    step = safe_divide(safe_root(left), safe_root(square))
    both = safe_divide(along, alpha) * (1 + step) * adjoint - mean
    is_free = determinant > 2 * _DEPENDENT * eps
    has_both = is_free & (radius > 0) & (left >= 0) & (both[0] > 0) & (both[1] > 0)
    level = safe_divide(along, alpha) * (1 + step) * determinant

    # With opposed rows the limit is the point at which the direction is zero.
    limit = jnp.where(is_free | (cosine > 0), jnp.inf, -offsets)
    alone = jnp.maximum(jnp.minimum(radius, limit), 0)
    alone = jnp.where(limits.highest > 0, alone, 0)
    levels = jnp.where(limits.eligible, safe_divide(alone + offsets, rates), jnp.inf)
    is_worse = levels <= levels[::-1]  # both, if they are equal, so that they share
    alone = jnp.where(is_worse & limits.eligible, alone, 0)
    return (
        jnp.where(has_both, both, alone / jnp.where(is_worse[::-1], 2, 1)),
        jnp.where(has_both, level, jnp.minimum(jnp.min(levels), limits.highest)),
    )


def _unfinished(state: _State) -> jax.Array:
    return ~state.done & (state.pivots < _MAX_PIVOTS_A_TASK * (len(state.passive) + 1))


def _pivot(state: _State) -> _State:
    """Raises the level to the next kink, and sweeps the constraint of that kink.

    The function is at module level and has no closures, so that a second call outside
    of `jit` does not compile again.
    """
    tableau, eligible, _, _, passive, entering, level, *_ = state
    eps = jnp.finfo(tableau.dtype).eps
    tasks = jnp.arange(len(passive), dtype=jnp.int32)
    fresh = entering < 0

    # Up to the kink, y = level * slope - base on the passive set. For constraints
    # outside of this set, this number tells how far they are from being satisfied.
    slope, base = tableau[:, -2], tableau[:, -1]
    edge, size = _edge(state, slope, base)
    turns = jnp.where(passive, slope < 0, eligible & (slope > _DEPENDENT * eps * size))
    kinks = jnp.where(turns, jnp.maximum(safe_divide(base, slope), level), jnp.inf)
    kink, next_kink, was_passive = argmax_and_sums(-kinks, passive)
    kink = jnp.minimum(-kink, state.highest)
    ends = fresh & (jnp.minimum(edge, kink) >= jnp.minimum(edge, state.highest))
    level = jnp.where(fresh, jnp.minimum(edge, kink), level)

    leaves = fresh & was_passive
    entering = jnp.where(fresh, next_kink, entering)
    # A constraint that depends linearly on the passive constraints replaces one of
    # them. If it cannot, no direction reaches a higher level.
    is_entering = tasks == entering
    row = pick_row(tableau, is_entering)
    column = row[: len(passive)]
    curvature, length = reduce_each(
        sums=[jnp.where(is_entering, column, 0), jnp.where(passive, column**2, 0)]
    )
    length = 1 + length
    falls = passive & (column > _EXCHANGED * eps * length)
    blocks = jnp.where(falls, -safe_divide(level * slope - base, column), -jnp.inf)
    nearest, blocking, pivot = argmax_and_sums(blocks, diagonal(tableau))
    # At its own kink a constraint is satisfied exactly. Rounding must not make others
    # leave.
    missing = level * row[-2] - row[-1]
    is_rounding = missing <= _DEPENDENT * eps * (1 + jnp.abs(level) * size)
    stationary = safe_divide(jnp.where(is_rounding, 0, missing), curvature)
    enters = (curvature > _DEPENDENT * eps * length) & (stationary <= -nearest)
    stuck = ~leaves & ~enters & jnp.isinf(nearest)

    moves = leaves | enters
    is_chosen = tasks == jnp.where(moves, entering, blocking)
    pivot = jnp.where(moves, curvature, pivot)
    stop = ends | stuck
    pivot = jnp.where(stop, 1, pivot)
    swept = sweep(tableau, is_chosen, pivot, inside=leaves | ~enters)
    return state._replace(
        tableau=jnp.where(stop, tableau, swept),
        passive=passive ^ (is_chosen & ~stop),
        entering=jnp.where(moves, -1, entering),
        level=level,
        done=stop,
        pivots=state.pivots + 1,
    )


def _edge(
    state: _State, slope: jax.Array, base: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the level at the edge of the ball or at a zero direction, ignoring kinks.

    The second result is the size of the slope, `sum_i |slope_i|`.
    """
    passive, level = state.passive, state.level
    slope = jnp.where(passive, slope, 0)
    solution = jnp.where(passive, level * slope - base, 0)
    inner, half, bend, along, size, slope_size = reduce_each(
        sums=[
            solution * (level * state.rates - state.offsets),
            solution * state.rates,
            slope * state.rates,
            solution * state.offsets,
            solution * jnp.abs(state.offsets),
            jnp.abs(slope),
        ]
    )
    missing = jnp.maximum(state.radius**2 - inner, 0)
    half, bend = jnp.maximum(half, 0), jnp.maximum(bend, 0)
    root = half + jnp.sqrt(half**2 + bend * missing)
    edge = level + jnp.where(root > 0, safe_divide(missing, root), jnp.inf)
    # |d|^2 / |g_0|^2. If the direction is zero, it is stationary and the path ends.
    # Because of rounding, exchanges of dependent constraints would not detect this.
    square = 1 + along + level * half
    eps = jnp.finfo(level.dtype).eps
    return jnp.where(square <= _DEPENDENT * eps * (1 + size), level, edge), slope_size


def _refine(cosines: jax.Array, state: _State) -> jax.Array:
    """Solves for `y` on the last piece again, because the tableau's inverse is rounded.

    One solve is enough; more solves gain nothing.
    """
    _, _, rates, offsets, passive, _, level, *_ = state
    slope, base = state.tableau[:, -2], state.tableau[:, -1]
    solution = jnp.where(passive, level * slope - base, 0)
    missed = dot(cosines, solution) - (level * rates - offsets)
    minus_inverse = state.tableau[:, :-2]
    solution += dot(minus_inverse, jnp.where(passive, missed, 0))
    return jnp.where(passive, jnp.maximum(solution, 0), 0)
