"""The point of the rows' convex hull that lies furthest along a direction."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import nan_unless_finite, safe_divide
from mtlopt.linalg.products import dot

_ROUNDING = 16  # in eps, relative to the terms: a smaller violation counts as none
_FLAT = 64  # in eps, relative to the largest: a smaller coefficient counts as zero
_MAX_PIVOTS_A_TASK = 10  # about one is usual


class _Program(NamedTuple):
    rows: jax.Array  # [2 tasks + 1, tasks]: `rows @ x >= right`, the last with `=`
    right: jax.Array  # [2 tasks + 1]
    along: jax.Array  # [tasks]
    bound: jax.Array  # bool [tasks]: entries of x that must stay zero


class _State(NamedTuple):
    active: jax.Array  # int32 [tasks]: the rows that hold with equality
    is_done: jax.Array  # bool
    pivots: jax.Array  # int32: number of pivots so far


@jax.jit
def furthest_in_hull(
    cosines: jax.Array,
    lengths: jax.Array,
    along: jax.Array,
    bounds: jax.Array,
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Finds the point of the rows' convex hull furthest along `p`, within bounds.

    .. math:: \max_{\beta \ge 0, \, 1^T \beta = 1} \langle p, d \rangle
        \quad \text{subject to} \quad \langle u_j, d \rangle \ge b_j, \qquad
        d = \sum_i \beta_i g_i

    Here `u_j` are the unit rows and `p` is the direction. The bounds are not positive,
    so the min-norm point of the hull satisfies them all, and there is always a
    solution. The dual simplex method starts at the row that is furthest along `p`,
    which is best if no bound is violated. Each pivot makes the most violated bound
    hold, so the number of pivots is about the number of bounds that hold with equality.
    The method ends after at most `10 tasks + 10` pivots. Each pivot solves from scratch
    the equations of the bounds that hold with equality, in the variables
    `x_i = beta_i |g_i|`. So the condition number of these equations does not depend on
    the norms of the rows, and no rounding error is passed on. Two tasks have a closed
    form.

    If there are several solutions, the result is a vertex. Zero rows count like any
    other row. NaN in the input gives NaN, without iterations. The weights are
    differentiable if the set of bounds that hold with equality does not change.

    Args:
      cosines: `C`, cosines of the rows, with a diagonal of ones or zeros,
        `[tasks, tasks]`.
      lengths: `|g|`, `[tasks]`; the largest is about 1.
      along: inner products `<u_i, p>`, zero for zero rows, `[tasks]`.
      bounds: `b`, `[tasks]`, not positive; `-inf` for no bound.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `beta`, `[tasks]`, not negative and summing to one; zeros if no task
      is present.

    Examples:
      >>> import jax.numpy as jnp
      >>> cosines = jnp.array([[1.0, -0.5], [-0.5, 1.0]])
      >>> along, bounds = jnp.array([1.0, -0.5]), jnp.array([0.0, 0.0])
      >>> weights = furthest_in_hull(cosines, jnp.ones(2), along, bounds)
      >>> [round(float(weight), 4) for weight in weights]
      [0.6667, 0.3333]

    References:
      Lemke, *The dual method of solving the linear programming problem*, Naval Research
      Logistics Quarterly 1, 1954.
    """
    there = jnp.ones(lengths.shape, bool) if present is None else present
    shortest = jnp.min(jnp.where(lengths > 0, lengths, jnp.inf))
    shortest = jax.lax.stop_gradient(jnp.where(jnp.isinf(shortest), 1, shortest))
    units = jnp.where(lengths > 0, lengths, shortest)
    gains = jnp.where(there, along * lengths, -jnp.inf)
    if len(lengths) == 2:
        scaled = _solve_pair(cosines[0, 1], units, gains, bounds)
    else:
        rates = shortest / units
        program = _Program(
            rows=jnp.concatenate(
                [jnp.eye(len(rates), dtype=rates.dtype), cosines, rates[None]]
            ),
            right=jnp.concatenate([jnp.zeros_like(bounds), bounds, shortest[None]]),
            along=along,
            bound=~there,
        )
        scaled = _solve(program, jnp.argmax(gains).astype(jnp.int32))
    weights = jnp.where(there, jnp.maximum(scaled, 0) / units, 0)
    weights = safe_divide(weights, jnp.sum(weights))
    return nan_unless_finite(weights, cosines + along[None])


def _solve_pair(
    cosine: jax.Array, units: jax.Array, gains: jax.Array, bounds: jax.Array
) -> jax.Array:
    """Returns `x` for two tasks: the better row, and the other if a bound needs it."""
    is_better = jnp.array([True, False]) ^ (gains[1] > gains[0])
    others = bounds[::-1]
    is_violated = cosine * units < others
    limit = jnp.where(is_violated, others, 0)
    # Both terms of each sum are positive, so nothing cancels.
    opposed = jnp.where(is_violated, -cosine, 0)
    own = (units[::-1] - limit) / (opposed + units[::-1] / units)
    other = (limit + opposed * own)[::-1]
    return jnp.where(
        is_better,
        jnp.where(is_violated, own, units),
        jnp.where(is_violated[::-1], other, 0),
    )


def _solve(program: _Program, first: jax.Array) -> jax.Array:
    """Returns `x`; the search starts at the vertex of one row."""
    num_tasks = len(program.along)
    tasks = jnp.arange(num_tasks, dtype=jnp.int32)
    fixed = jax.lax.stop_gradient(program)
    state = _State(
        active=jnp.where(tasks == first, 2 * num_tasks, tasks),
        is_done=jnp.array(False),
        pivots=jnp.zeros([], jnp.int32),
    )
    state = jax.lax.while_loop(_unfinished, lambda state: _pivot(fixed, state), state)
    return jnp.linalg.solve(program.rows[state.active], program.right[state.active])


def _unfinished(state: _State) -> jax.Array:
    most = _MAX_PIVOTS_A_TASK * (len(state.active) + 1)
    return ~state.is_done & (state.pivots < most)


def _pivot(program: _Program, state: _State) -> _State:
    """Makes the most violated bound hold, and releases another bound."""
    rows, right, along, bound = program
    active, _, pivots = state
    num_tasks, eps = len(along), jnp.finfo(along.dtype).eps
    factor = jax.scipy.linalg.lu_factor(rows[active])
    point = jax.scipy.linalg.lu_solve(factor, right[active])

    size = jnp.sum(jnp.abs(point))
    asked = jnp.where(jnp.isinf(right), 0, right)
    missing = (asked - dot(rows, point)) / (size + jnp.abs(asked))
    missing = jnp.where(jnp.isinf(right), -jnp.inf, missing).at[active].set(-jnp.inf)
    entering = jnp.argmax(missing).astype(jnp.int32)
    is_done = ~(missing[entering] > _ROUNDING * eps)

    # The multipliers of rows that hold with equality are not positive. They change
    # along `-shares` as the multiplier of the entering row falls from zero. The row
    # whose multiplier is the first to reach zero leaves.
    sides = jnp.stack([along, rows[entering]], axis=1)
    multipliers, shares = jax.scipy.linalg.lu_solve(factor, sides, trans=1).T
    may_leave = (active < 2 * num_tasks) & ~jnp.pad(bound, (0, num_tasks + 1))[active]
    may_leave &= shares > _FLAT * eps * jnp.max(jnp.abs(shares))
    falls = safe_divide(jnp.maximum(-multipliers, 0), shares)
    falls = jnp.where(may_leave, falls, jnp.inf)
    leaving = jnp.argmin(falls).astype(jnp.int32)
    is_done |= jnp.isinf(falls[leaving])
    swapped = active.at[leaving].set(entering)
    return _State(jnp.where(is_done, active, swapped), is_done, pivots + 1)
