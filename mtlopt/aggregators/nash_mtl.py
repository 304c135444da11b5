"""Nash-MTL: the bargaining game of the tasks (Navon et al., ICML 2022)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_int, check_num_tasks, check_range
from mtlopt.grad import check_task_grads
from mtlopt.linalg.bargaining import bargain
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import Gramian
from mtlopt.linalg.reductions import reduce_each
from mtlopt.rows.protocol import Leaves
from mtlopt.task_grads import TaskGrads


class NashMtlState(NamedTuple):
    """State of `nash_mtl`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update, clipping included.
      solution: `[tasks]`, the solution that is reused, not clipped.
      count: int32, updates since that; 0 where the next update solves again.
    """

    task_weights: jax.Array
    solution: jax.Array
    count: jax.Array


def nash_mtl_weights(gramian: Gramian, present: jax.Array | None = None) -> jax.Array:
    r"""Weights of Nash-MTL: the Nash bargaining solution.

    .. math:: G w = 1 / w, \quad w > 0

    Not clipped: the direction `sum_i w_i g_i` has length `sqrt(T)` whatever the
    gradients are, and `w_i` is inverse to the length of `g_i`. Exact (see `bargain`),
    where the authors' code, LibMTL and TorchJD run a few steps of a scheme that fails
    silently away from unit scale, and depend on the weights of the call before.

    There is no solution if zero is in the convex hull of the gradients: then the tasks
    whose gradients cancel get large, bounded weights, contribute next to nothing, and
    the others bargain orthogonally to them. A zero row gets weight zero. Opposed rows
    cancel; duplicates share; one task gets `1 / |g|`. NaN in, NaN out. Not
    reverse-differentiable.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `w`, `[tasks]`, positive for present tasks with a gradient.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(nash_mtl_weights(jnp.diag(jnp.array([4.0, 1.0]))))
      [0.5 1. ]

    References:
      Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, claim 3.1.
    """
    return bargain(gramian, 1.0, present).weights


def nash_mtl(
    num_tasks: int, update_every: int = 1, max_norm: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the direction on which the tasks, bargaining, agree.

    .. math:: d = \sum_i w_i s_i g_i, \qquad \langle s_i g_i, d \rangle = 1 / w_i > 0

    `d` maximises the product of the tasks' gains over a ball: it decreases every loss
    to first order where any direction does, and scaling a loss does not change it. Its
    length is `sqrt(T)`, then clipped to `max_norm`, as the authors do: with the default
    always 1, however small the gradients are, so a schedule has to end the training.
    Only where zero is in the convex hull of the gradients it is shorter: the tasks that
    cancel contribute what rounding leaves of zero, up to a few hundredths of `sqrt(T)`
    in float32, in a direction that changes with the scale of the gradients. A task with
    a zero gradient is left out. On T equal gradients g it returns `g / |g|`, and
    `sqrt(T) g / |g|` without clipping.

    Costs one backward pass per task on every `update_every`-th update, and one in all
    on the others, which reuse the weights. A task that is absent when the weights are
    computed has weight zero until they are computed again. An update that is not
    finite is not kept: the next one solves.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      update_every: number of updates that one solution serves, a Python int. The
        paper's is 1, and up to 50 where speed is studied.
      max_norm: the length that the shared update is clipped to; None or 0 for no
        clipping.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `update_every` is not a positive int or `max_norm` is negative.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[2.0, 0.0], [0.0, 0.5]]))
      >>> aggregator = mtlopt.nash_mtl(2, max_norm=None)
      >>> updates, state = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(updates, state.task_weights)
      [1. 1.] [0.5 2. ]

    References:
      Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, Algorithm 1;
      clipping and reuse as in the authors' code.
    """
    check_num_tasks(num_tasks)
    update_every = as_int("update_every", update_every)
    check_range("max_norm", max_norm)
    clips = max_norm is not None and not (
        isinstance(max_norm, int | float) and max_norm == 0
    )

    def init_fn(params: Any) -> NashMtlState:
        del params
        return NashMtlState(
            jnp.full(num_tasks, 1 / num_tasks, float),
            jnp.zeros(num_tasks, float),
            jnp.zeros([], jnp.int32),
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, NashMtlState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "nash_mtl")
        if update_every == 1:
            weights, direction = _solve(grads, state.solution)
        else:
            weights, direction = jax.lax.cond(
                state.count == 0, _solve, _reuse, grads, state.solution
            )
        factor = jnp.ones([], weights.dtype)
        if clips:
            length = _length(direction).astype(factor.dtype)
            limit = jnp.asarray(max_norm, factor.dtype)
            # Compared so that NaN stays NaN.
            factor = jnp.where(length <= limit, factor, limit / length)
            direction = [leaf * factor.astype(leaf.dtype) for leaf in direction]
        (zero,) = reduce_each(maxima=[0 * weights])  # or NaN
        is_finite = zero == 0
        keeps = is_finite & (state.count == 0)
        count = jnp.asarray(optax.safe_increment(state.count)) % update_every
        return grads.updates(direction), NashMtlState(
            task_weights=factor * weights,
            solution=jnp.where(keeps, weights, state.solution),
            count=jnp.where(is_finite, count, state.count),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _solve(grads: TaskGrads, solution: jax.Array) -> tuple[jax.Array, Leaves]:
    """New weights, and the direction from the rows that they were found with."""
    rows = grads.rows()
    weights = nash_mtl_weights(rows.scaled_gramian(grads.present), grads.present)
    return weights.astype(solution.dtype), rows.combine(weights)


def _reuse(grads: TaskGrads, solution: jax.Array) -> tuple[jax.Array, Leaves]:
    """Old weights, and the direction by a single pullback."""
    if grads.present is not None:
        solution = jnp.where(grads.present, solution, 0)
    return solution, grads.rows().combine(solution)


def _length(leaves: Leaves) -> jax.Array:
    wide = [leaf.astype(solver_dtype([leaf])) for leaf in leaves]
    return jnp.asarray(optax.tree.norm(wide))
