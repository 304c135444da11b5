"""Quadratic programs over non-negative vectors, solved by pivoting (active sets)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.products import diagonal, dot
from mtlopt.linalg.reductions import argmax_and_sums

_ROUNDING = 4  # in eps: the ridge, and the largest slack that counts as zero
_MAX_PIVOTS_A_TASK = 10  # about one is usual


class _State(NamedTuple):
    tableau: jax.Array  # [tasks, tasks + 1]: C swept on `passive`, and rhs
    passive: jax.Array  # bool [tasks]: the swept set, with positive y
    entering: jax.Array  # int32: the task that enters, or -1
    is_done: jax.Array  # bool
    pivots: jax.Array  # int32: number of pivots so far


def minimise_by_pivots(matrix: jax.Array, linear: jax.Array) -> jax.Array:
    r"""Minimises a quadratic function over non-negative vectors.

    .. math:: \min_{y \ge 0} \tfrac12 y^T C y + q^T y

    In each pivot, one task enters the set of positive `y`, or a task that blocks it
    leaves the set. Each pivot is one sweep of a `[tasks, tasks + 1]` tableau. A ridge
    as small as a rounding error makes every set of rows independent in the tableau, so
    that no pivot is zero. Finally, iterative refinement solves for the `y` of the final
    set without the ridge, with the inverse from the tableau. The method ends after at
    most `10 tasks + 10` pivots, and immediately for NaN.

    Args:
      matrix: `C`, positive semidefinite, entries of size 1, `[tasks, tasks]`.
      linear: `q`, of size 1, `[tasks]`.

    Returns:
      The solution `y`, `[tasks]`.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(jnp.round(minimise_by_pivots(jnp.eye(2), jnp.array([-3.0, 1.0])), 4))
      [3. 0.]

    References:
      Lawson and Hanson, *Solving Least Squares Problems*, 1974, chapter 23; van de
      Panne and Whinston, 1964 (one pivot per step).
    """
    num_tasks = len(linear)
    ridge = (
        _ROUNDING * jnp.finfo(matrix.dtype).eps * jnp.eye(num_tasks, dtype=matrix.dtype)
    )
    state = _State(
        tableau=jnp.concatenate([matrix + ridge, -linear[:, None]], axis=1),
        passive=jnp.zeros(num_tasks, bool),
        entering=jnp.full([], -1, jnp.int32),
        is_done=jnp.array(False),
        pivots=jnp.zeros([], jnp.int32),
    )
    state = jax.lax.while_loop(_unfinished, _pivot, state)
    passive = state.passive
    minus_inverse, solution = state.tableau[:, :-1], state.tableau[:, -1]
    solution = jnp.where(passive, solution, 0)
    for _ in range(2):
        missed = jnp.where(passive, linear + dot(matrix, solution), 0)
        solution += jnp.where(passive, dot(minus_inverse, missed), 0)
    return jnp.maximum(solution, 0)


def _unfinished(state: _State) -> jax.Array:
    most = _MAX_PIVOTS_A_TASK * (len(state.passive) + 1)
    return ~state.is_done & (state.pivots < most)


def _pivot(state: _State) -> _State:
    """Makes the entering task passive, or releases the task that blocks it."""
    tableau, passive, entering, _, pivots = state
    eps = jnp.finfo(tableau.dtype).eps
    tasks = jnp.arange(len(passive), dtype=jnp.int32)

    # The solution on the passive set and the slack -q - Cy off it.
    right = tableau[:, -1]
    slack = jnp.where(passive, -jnp.inf, right)
    most, newcomer, _, size = argmax_and_sums(
        slack, slack, sums=[jnp.where(passive, jnp.abs(right), 0)]
    )
    is_fresh = entering < 0
    is_optimal = is_fresh & ~(most > _ROUNDING * eps * (1 + size))
    entering = jnp.where(is_fresh, newcomer, entering)

    # The `y` of the entering task grows from zero, and the `y` of passive tasks change
    # along -column. This ends when the entering task is stationary or a passive task
    # reaches zero.
    is_entering = tasks == entering
    row = pick_row(tableau, is_entering)
    column = row[: len(passive)]
    blocks = jnp.where(passive & (column > 0), -safe_divide(right, column), -jnp.inf)
    nearest, blocking, pivot, curvature, length = argmax_and_sums(
        blocks,
        diagonal(tableau),
        sums=[jnp.where(is_entering, column, 0), jnp.where(passive, column**2, 0)],
    )
    is_flat = ~(curvature > eps * (1 + length))
    stationary = jnp.where(is_flat, jnp.inf, safe_divide(row[-1], curvature))
    enters = stationary <= -nearest
    stops = is_optimal | (is_flat & jnp.isinf(nearest))

    is_chosen = tasks == jnp.where(enters, entering, blocking)
    pivot = jnp.where(stops, 1, jnp.where(enters, curvature, pivot))
    return _State(
        tableau=jnp.where(stops, tableau, sweep(tableau, is_chosen, pivot, ~enters)),
        passive=passive ^ (is_chosen & ~stops),
        entering=jnp.where(enters | stops, -1, entering),
        is_done=stops,
        pivots=pivots + 1,
    )


def pick_row(tableau: jax.Array, is_chosen: jax.Array) -> jax.Array:
    """Computes the chosen row as a product: a gather would add kernels for indices."""
    return dot(is_chosen.astype(tableau.dtype), tableau)


def sweep(
    tableau: jax.Array, is_chosen: jax.Array, pivot: jax.Array, inside: jax.Array
) -> jax.Array:
    """Solves for the chosen task with a principal pivot; undoes the pivot if `inside`.

    If F is the swept set and N are the other tasks, the tableau of [C, a] is
    [[-C_FF^-1, C_FF^-1 C_FN, y_F], [C_NF C_FF^-1, C_NN - C_NF C_FF^-1 C_FN, a_N - C_NF
    y_F]]. `a` may have several columns.

    Args:
      tableau: `[tasks, tasks + columns]`.
      is_chosen: true for one task, bool `[tasks]`.
      pivot: the diagonal entry of this task.
      inside: whether this task is in F.

    Returns:
      The tableau with the task in F, or out of it.
    """
    num_tasks, num_columns = tableau.shape
    is_column = jnp.pad(is_chosen, (0, num_columns - num_tasks))
    sign = jnp.where(inside, 1, -1).astype(tableau.dtype)
    row = jnp.where(is_column, sign, pick_row(tableau, is_chosen))
    # Computed as (a b) / c and not as a (b / c), so that a symmetric matrix stays
    # symmetric to the last digit, and the row equals the column.
    change = row[:num_tasks, None] * row[None] / pivot
    return jnp.where(is_chosen[:, None] | is_column[None], 0, tableau) - change
