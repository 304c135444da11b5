"""Nash-MTL: the bargaining game of the tasks (Navon et al., ICML 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_task_vector, check_range, preference_argument
from mtlopt.aggregators.by_weights import aggregate_with_state
from mtlopt.common.task_weights import TaskWeightsState
from mtlopt.linalg.bargaining import bargain
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import Gramian
from mtlopt.rows.protocol import Leaves, Rows
from mtlopt.task_grads import TaskGrads


def nash_mtl_weights(
    gramian: Gramian, present: jax.Array | None = None, preference: Any = None
) -> jax.Array:
    r"""Weights of Nash-MTL: the Nash bargaining solution.

    .. math:: G w = p / w, \quad w > 0

    Not clipped: the direction `sum_i w_i g_i` has length `sqrt(sum_i p_i)`, without a
    preference `sqrt(T)`, whatever the gradients are, and `w_i` is inverse to the length
    of `g_i`. Exact (see `bargain`),
    where the authors' code, LibMTL and TorchJD run a few steps of a scheme that fails
    silently away from unit scale, and depend on the weights of the call before.

    There is no solution if zero is in the convex hull of the gradients: then the tasks
    whose gradients cancel get large, bounded weights, contribute next to nothing, and
    the others bargain orthogonally to them. A zero row gets weight zero. Opposed rows
    cancel; duplicates share; one task gets `1 / |g|`. NaN in, NaN out.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.
      preference: `p`, `[tasks]`, not negative, used as it is; None for ones. A task
        with zero gets weight zero.

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
    if preference is not None:
        preference = as_task_vector("preference", preference, len(gramian))
    return bargain(gramian, 1.0, present, preference).weights


def nash_mtl(
    num_tasks: int, max_norm: Any = 1.0, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the direction on which the tasks, bargaining, agree.

    .. math:: d = \sum_i w_i s_i g_i, \qquad \langle s_i g_i, d \rangle = p_i / w_i > 0

    `d` maximises the product of the tasks' gains, each to its power `p_i`, over a ball:
    it decreases every loss to first order where any direction does, and scaling a loss
    does not change it. Its length is the root of `sum_i p_i`, by default `sqrt(T)`,
    then clipped to `max_norm`, as the authors do: with the default always 1, however
    small the gradients are, so a schedule has to end the training. Only where zero is
    in the convex hull of the gradients it is shorter: the tasks that cancel contribute
    what rounding leaves of zero, up to a few hundredths of `sqrt(T)` in float32, in a
    direction that changes with the scale of the gradients. A task with a zero gradient
    is left out. On T equal gradients g it returns `g / |g|`, and `sqrt(T) g / |g|`
    without clipping.

    Costs one backward pass per task; `every(10, nash_mtl(T))` reuses the weights and
    costs one in all on nine updates of ten.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      max_norm: the length that the shared update is clipped to; None or 0 for no
        clipping.
      preference: `p`, `[tasks]` or by name, not negative, used as it is: the bargaining
        powers of the tasks. None for ones. A task with zero is left out.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `max_norm` is negative, or `preference` is not one number for each
        task, is negative, or is zero for all.

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
      clipping as in the authors' code, which also reuses weights for up to 50 updates.
      With powers it is the asymmetric solution of Kalai, *Nonsymmetric Nash solutions
      and replications of 2-person bargaining*, International Journal of Game Theory 6,
      1977.
    """
    check_range("max_norm", max_norm)
    read = preference_argument(preference, num_tasks)
    clips = max_norm is not None and not (
        isinstance(max_norm, int | float) and max_norm == 0
    )

    def weigh(
        grads: TaskGrads, rows: Rows, state: TaskWeightsState, **_: Any
    ) -> tuple[jax.Array, TaskWeightsState]:
        gramian = rows.scaled_gramian(grads.present)
        return nash_mtl_weights(gramian, grads.present, read(grads.tasks)), state

    def clipping(direction: Leaves) -> jax.Array:
        wide = [leaf.astype(solver_dtype([leaf])) for leaf in direction]
        length = jnp.asarray(optax.tree.norm(wide))
        limit = jnp.asarray(max_norm, length.dtype)
        # Compared so that NaN stays NaN.
        return jnp.where(length <= limit, jnp.ones_like(length), limit / length)

    return aggregate_with_state(
        "nash_mtl",
        num_tasks,
        lambda: TaskWeightsState.uniform(num_tasks),
        weigh,
        factor_of=clipping if clips else None,
    )
