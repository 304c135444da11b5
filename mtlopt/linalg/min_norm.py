"""The point of smallest norm in the convex hull of the task gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.nonnegative import minimise_nonnegative, rounding
from mtlopt.linalg.normalise import nan_unless_finite, normalise, safe_divide
from mtlopt.linalg.products import dot


class MinNormPoint(NamedTuple):
    """The min-norm point of the convex hull of the rows.

    Attributes:
      weights: `w`, `[tasks]`, non-negative, summing to 1, zero for absent tasks.
      norm: `|sum_i w_i g_i|`, a scalar; zero at a Pareto-stationary point.
      residual: The largest relative violation of the optimality conditions,
        `(|d|^2 - <g_i, d>) / (|g_i| |d|)` over tasks, or `|d| / min_i |g_i|` where
        that is smaller, a scalar.
    """

    weights: jax.Array
    norm: jax.Array
    residual: jax.Array


class _State(NamedTuple):
    tableau: jax.Array  # [tasks, tasks + 1]: the cosines swept on `passive`, and rhs
    eligible: jax.Array  # bool [tasks]: rows that are there and not zero
    passive: jax.Array  # bool [tasks]: the swept set, with positive coefficients
    entering: jax.Array  # int32: the task on its way in, or -1
    unbounded: jax.Array  # bool: the entering ray never ends, so zero is in the hull
    done: jax.Array  # bool
    pivots: jax.Array  # int32: how many so far


def min_norm_point(
    gramian: jax.Array, present: jax.Array | None = None
) -> MinNormPoint:
    r"""Finds the exact min-norm point of the convex hull of the task gradients.

    .. math:: \min_w w^T G w \quad \text{subject to} \quad w \ge 0, \; 1^T w = 1

    With `w` proportional to `y_i / |g_i|`, cosines `C` and `a_i = min_j |g_j| / |g_i|`
    the optimality conditions are those of

    .. math:: \min_{y \ge 0} \tfrac12 y^T C y - a^T y

    which has a solution unless zero is in the hull, and then a ray `C z = 0, z >= 0`
    along which it falls for ever: `w` follows from either. No row scale enters the
    conditioning. Solved by conjugate gradients (`minimise_nonnegative`) until these
    conditions hold to rounding, relative to the coefficients; what is still open at
    their limit, of nearly dependent rows, by an active-set method (one task enters,
    others leave as it blocks them), each pivot one sweep of a `[tasks, tasks + 1]`
    tableau, and iterative refinement on the final active set, whose inverse the tableau
    holds. That ends after `10 tasks + 10` pivots at the latest.

    Feasible by construction. A Gramian shows `|d|` only down to `sqrt(eps)` times the
    rows (3e-4 in float32): below that `norm` is rounding, but `d` itself is brought to
    `eps`, by steps that see `C y` and not its square.

    Zero rows share all the weight. If zero is in the hull, `d` is zero to rounding
    and the weights are one of the possible choices.
    NaN or infinity in gives NaN out and ends at once. Not reverse-differentiable
    (`while_loop`; JAX raises).

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights, the norm and the optimality residual.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> point = min_norm_point(jnp.array([[1.0, -1.0], [-1.0, 4.0]]))
      >>> print(jnp.round(point.weights, 4), jnp.round(point.norm, 4))
      [0.7143 0.2857] 0.6547

    References:
      Désidéri, C. R. Math. 350, 2012; Sener and Koltun, *Multi-Task Learning as
      Multi-Objective Optimization*, NeurIPS 2018, equation 3. Active set: Lawson and
      Hanson, *Solving Least Squares Problems*, 1974, chapter 23; van de Panne and
      Whinston, 1964 (one pivot a step).
    """
    cosines, norms = normalise(gramian, present)
    eligible = norms > 0
    smallest = jnp.min(norms, where=eligible, initial=jnp.inf)
    target = jnp.where(eligible, safe_divide(smallest, norms), 0)  # a
    solution = _minimise(cosines, target, eligible)  # y

    scaled = solution * target  # proportional to w
    total = jnp.sum(scaled)
    weights = safe_divide(scaled, total)
    gradient = dot(cosines, solution)
    # |d| in units of the smallest norm, and <u_i, d> likewise.
    relative_norm = jnp.sqrt(jnp.maximum(dot(solution, gradient), 0))
    relative_norm = safe_divide(relative_norm, total)
    slack = relative_norm * target - safe_divide(
        safe_divide(gradient, total), relative_norm
    )
    residual = jnp.max(jnp.where(eligible, slack, 0), initial=0)
    residual = jnp.minimum(residual, relative_norm)

    zero = norms == 0
    if present is not None:
        zero &= present
    any_zero = jnp.any(zero)
    zero = zero.astype(norms.dtype)
    shared = zero / jnp.maximum(jnp.sum(zero), 1)
    point = MinNormPoint(
        weights=jnp.where(any_zero, shared, weights),
        norm=jnp.where(any_zero, 0, relative_norm * smallest),
        residual=jnp.where(any_zero, 0, residual),
    )
    return jax.tree.map(lambda x: nan_unless_finite(x, cosines), point)


def _minimise(cosines: jax.Array, target: jax.Array, eligible: jax.Array) -> jax.Array:
    """By conjugate gradients, and by pivots where these do not come to an end."""
    found = minimise_nonnegative(cosines, -target[None])
    stuck = found.residual[0] > rounding(target)
    return jax.lax.cond(
        stuck, _pivot_and_settle, _keep, cosines, target, eligible, found.solution[0]
    )


def _keep(*arguments: jax.Array) -> jax.Array:
    return arguments[-1]


def _pivot_and_settle(
    cosines: jax.Array, target: jax.Array, eligible: jax.Array, _: jax.Array
) -> jax.Array:
    solution = jnp.maximum(minimise_by_pivots(cosines, target, eligible), 0)
    return _settle(cosines, target, solution)


def minimise_by_pivots(
    cosines: jax.Array, target: jax.Array, eligible: jax.Array
) -> jax.Array:
    """Minimises y'Cy/2 - a'y over y >= 0, or finds z >= 0 with Cz = 0 and a'z > 0."""
    num_tasks = target.shape[0]
    no_task = jnp.full([], -1, jnp.int32)
    state = jax.lax.while_loop(
        _unfinished,
        _pivot,
        _State(
            tableau=jnp.concatenate([cosines, target[:, None]], axis=1),
            eligible=eligible,
            passive=jnp.zeros_like(eligible),
            entering=no_task,
            unbounded=jnp.array(False),
            done=jnp.array(False),
            pivots=jnp.zeros_like(no_task),
        ),
    )
    # Either C_FF y_F = a_F, or the ray C_FF z_F = -C_Fj, z_j = 1.
    passive, unbounded, entering = state.passive, state.unbounded, state.entering
    swept = jnp.where(unbounded, -state.tableau[:, entering], state.tableau[:, -1])
    right = jnp.where(unbounded, -cosines[:, entering], target)
    right = jnp.where(passive, right, 0)
    both = passive[:, None] & passive
    matrix = jnp.where(both, cosines, 0)
    inverse = jnp.where(both, -state.tableau[:, :-1], 0)
    solution = jnp.where(passive, swept, 0)
    for _ in range(2):  # refinement: the tableau holds the inverse to some digits
        solution += dot(inverse, right - dot(matrix, solution))
    ray = unbounded & (jnp.arange(num_tasks) == entering)
    return jnp.where(passive, solution, ray.astype(cosines.dtype))


def _settle(cosines: jax.Array, target: jax.Array, solution: jax.Array) -> jax.Array:
    """Brings a point that is zero to within rounding of G closer to zero.

    An active set of nearly dependent rows hides |d| = sqrt(y'Cy) below sqrt(eps), but
    Cy itself is still seen: alternating projections on the null space of C (smoothed,
    on all tasks, so that it is well conditioned) and on y >= 0 reduce it. Any other
    point is returned as it is, and costs nothing (`cond`; a `select` under `vmap`).
    """
    solution = safe_divide(solution, jnp.max(solution))
    squared_norm = safe_divide(
        dot(solution, dot(cosines, solution)), dot(target, solution) ** 2
    )
    tiny = squared_norm < 16 * jnp.finfo(target.dtype).eps
    return jax.lax.cond(tiny, _alternate, _keep, cosines, target, solution)


def _alternate(cosines: jax.Array, target: jax.Array, solution: jax.Array) -> jax.Array:
    """Alternating projections; returns the start if they do not help."""

    def size(point):
        return safe_divide(jnp.linalg.norm(dot(cosines, point)), dot(target, point))

    values, vectors = jnp.linalg.eigh(cosines, symmetrize_input=False)
    smooth = dot(vectors * (values / (values + 0.1)), vectors.T)
    settled, _ = jax.lax.fori_loop(0, 32, _project, (solution, smooth))
    return jnp.where(size(settled) < size(solution), settled, solution)


def _project(_: jax.Array, carry: tuple[jax.Array, jax.Array]):
    solution, smooth = carry
    return jnp.maximum(solution - dot(smooth, solution), 0), smooth


def _unfinished(state: _State) -> jax.Array:
    return ~state.done & (state.pivots < 10 * state.passive.shape[0] + 10)


def _pivot(state: _State) -> _State:
    """One pivot: the entering task becomes passive, or the task that blocks it leaves.

    Module-level and without closures, so that a second call outside `jit` does not
    compile again.
    """
    tableau, eligible, passive, entering, *_, pivots = state
    num_tasks = passive.shape[0]
    eps = jnp.finfo(tableau.dtype).eps

    # The solution on the passive set and the slack a - Cy off it.
    right = tableau[:, -1]
    size = 1 + jnp.sum(jnp.where(passive, jnp.abs(right), 0))
    slack = jnp.where(eligible & ~passive, right, -jnp.inf)
    fresh = entering < 0
    entering = jnp.where(fresh, jnp.argmax(slack).astype(jnp.int32), entering)
    optimal = fresh & ~(slack[entering] > 4 * eps * size)

    # The entering task grows from zero, the passive ones follow along -column, until
    # it is stationary itself or one of them reaches zero.
    column = tableau[:, entering]
    length = 1 + jnp.sum(jnp.where(passive, column**2, 0))
    curvature = column[entering]
    independent = curvature > eps * length
    stationary = jnp.where(
        independent, safe_divide(right[entering], curvature), jnp.inf
    )
    blocks = jnp.where(passive & (column > 0), safe_divide(right, column), jnp.inf)
    blocking = jnp.argmin(blocks).astype(jnp.int32)
    enters = stationary <= blocks[blocking]
    unbounded = ~optimal & ~independent & jnp.isinf(blocks[blocking])

    chosen = jnp.where(enters, entering, blocking)
    stop = optimal | unbounded
    return _State(
        tableau=jnp.where(stop, tableau, sweep(tableau, chosen, passive[chosen])),
        eligible=eligible,
        passive=passive ^ (~stop & (jnp.arange(num_tasks) == chosen)),
        entering=jnp.where(enters & ~unbounded, -1, entering),
        unbounded=unbounded,
        done=stop,
        pivots=pivots + 1,
    )


def sweep(tableau: jax.Array, index: jax.Array, inside: jax.Array) -> jax.Array:
    """Principal pivot: solves for `index` (or, if it is `inside`, undoes that).

    For F the swept set, the tableau of [C, a] is [[-C_FF^-1, C_FF^-1 C_FN, y_F],
    [C_NF C_FF^-1, C_NN - C_NF C_FF^-1 C_FN, a_N - C_NF y_F]]; `a` may be several
    columns.
    """
    num_tasks, num_columns = tableau.shape
    unit = jnp.arange(num_columns) == index
    value = tableau[index, index]
    # One rank-one update, right but for the pivot itself: (column - sign e) times row.
    # As a product of two columns and two rows, which XLA makes first; it would fuse
    # anything less into the update, and look for the pivot again at every entry.
    sign = jnp.where(inside, -1, 1).astype(tableau.dtype)
    row = (tableau[index] - sign * unit.astype(tableau.dtype)) / value
    here = unit[:num_tasks].astype(tableau.dtype)
    left = jnp.stack([tableau[:, index], here], axis=1)
    swept = tableau - dot(left, jnp.stack([row, -sign * row]))
    corner = jnp.reshape(-1 / value, (1, 1))
    return jax.lax.dynamic_update_slice(swept, corner, (index, index))
