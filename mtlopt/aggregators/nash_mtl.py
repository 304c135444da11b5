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
    r"""Returns the weights `w` `[tasks]` of `nash_mtl`, before the clipping.

    .. math:: G w = p / w, \quad w > 0

    The weights are exact. `w_i` is inversely proportional to the length of `g_i`. There
    is no solution if zero is in the convex hull of the gradients. In that case, tasks
    whose gradients cancel get large, bounded weights and contribute almost nothing. The
    other tasks bargain in the space orthogonal to these gradients. A task with a zero
    gradient or preference gets weight zero. Opposed gradients cancel, duplicates get
    equal weights, and a single task gets the weight `1 / |g|`.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(nash_mtl_weights(jnp.diag(jnp.array([4.0, 1.0]))))
      [0.5 1. ]
    """
    if preference is not None:
        preference = as_task_vector("preference", preference, len(gramian))
    return bargain(gramian, 1.0, present, preference).weights


def nash_mtl(
    num_tasks: int, max_norm: Any = 1.0, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the direction that the tasks agree on in a bargaining game: Nash-MTL.

    .. math:: d = \sum_i w_i s_i g_i, \qquad \langle s_i g_i, d \rangle = p_i / w_i > 0

    Among the vectors in a ball, `d` maximises the product of the tasks' gains
    `<s_i g_i, d>`, each raised to the power `p_i`. `-d` decreases every loss to first
    order if any direction does, and scaling a loss does not change `d`. The length of
    `d` is `sqrt(sum_i p_i)`, by default `sqrt(T)`, and is then clipped to `max_norm`.
    By default the final length is 1, however small the gradients are, so use a
    learning-rate schedule. `d` is shorter only if zero is in the convex hull of the
    gradients. In that case, tasks whose gradients cancel contribute only a rounding
    error. In float32, this error is at most a few hundredths of `sqrt(T)` long, and its
    direction depends on the scales of the losses.

    Args:
      num_tasks: number of tasks T.
      max_norm: length that the shared update is clipped to; None or 0 for no clipping.
      preference: bargaining powers `p`, `[tasks]` or by name, at least 0; ones if None.

    Raises:
      ValueError: if an argument is out of range or does not fit the tasks.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[2.0, 0.0], [0.0, 0.5]]))
      >>> aggregator = mtlopt.nash_mtl(2, max_norm=None)
      >>> print(aggregator.update(grads, aggregator.init(jnp.zeros(2)))[0])
      [1. 1.]

    References:
      Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, claim 3.1,
      algorithm 1; clipping is from the authors' code. For the powers: Kalai,
      *Nonsymmetric Nash solutions*, International Journal of Game Theory 6, 1977.
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
        # The order of the comparison keeps NaN as NaN.
        return jnp.where(length <= limit, jnp.ones_like(length), limit / length)

    return aggregate_with_state(
        "nash_mtl",
        num_tasks,
        lambda: TaskWeightsState.uniform(num_tasks),
        weigh,
        factor_of=clipping if clips else None,
    )
