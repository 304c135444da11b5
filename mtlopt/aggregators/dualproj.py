"""DualProj: the mean gradient without its conflicts (Lopez-Paz & Ranzato, 2017)."""

from typing import Any

import jax
import optax

from mtlopt._checks import preference_argument
from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.common.task_weights import mean_weights
from mtlopt.linalg.dual_cone import project_dual_cone
from mtlopt.linalg.normalise import Gramian
from mtlopt.rows.protocol import Rows


def dualproj_weights(
    gramian: Gramian,
    preference: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Weights of DualProj: the mean gradient projected on the dual cone.

    .. math:: \alpha = \mathrm{argmin}_{v \ge w} v^T G v

    Solved to rounding, without regularisation (see `project_dual_cone`). A zero row
    keeps its preference as weight. Opposed rows leave nothing of their common line; of
    duplicates the split of the weights is arbitrary, the direction is not. NaN in, NaN
    out.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      preference: `w`, `[tasks]`, used as it is. `None` means one over the number of
        present tasks for each of them.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `alpha`, `[tasks]`, each at least the preference.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -2.0], [-2.0, 9.0]])
      >>> print(dualproj_weights(gramian, jnp.ones(2)))
      [2. 1.]

    References:
      Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning*, NeurIPS
      2017, equation 11, for the mean gradient.
    """
    weights = mean_weights(len(gramian), preference, present)
    return project_dual_cone(gramian, weights[None], present).weights[0]


def dualproj(
    num_tasks: int, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Projects the mean task gradient on the cone that conflicts with none.

    .. math:: d = \mathrm{argmin}_{y : \langle g_j, y \rangle \ge 0 \, \forall j}
        \Big| y - \sum_i w_i s_i g_i \Big|

    The update nearest to the mean that increases no loss to first order, whatever the
    ratio of the gradients' norms. Large gradients dominate it: unlike `upgrad`, it is
    not linear in the scale of a gradient. It is zero exactly where positive weights
    make the gradients cancel. Without conflicts it is the weighted mean; on T equal
    gradients g it returns g, and with one task `w g`. Costs one backward pass per task.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      preference: `w`, `[tasks]` or by name, not negative, used as it is; None for 1/T.
        A unit vector is GEM: the gradient of one task that harms none of the others.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `preference` is not one number for each task, is negative, or is
        zero for all.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[2.0, 1.0], [-6.0, 3.0]]))
      >>> aggregator = mtlopt.dualproj(2)
      >>> update = jax.jit(aggregator.update)
      >>> updates, state = update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(*updates)  # doctest: +NUMBER
      -1.2 2.4

    References:
      Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning*, NeurIPS
      2017, equation 11. TorchJD regularises the Gramian (see `upgrad`); this is the
      exact value.
    """

    def weights(rows: Rows, present: Any, preference: Any) -> jax.Array:
        return dualproj_weights(rows.scaled_gramian(present), preference, present)

    read = preference_argument(preference, num_tasks)
    return aggregate_by_weights("dualproj", num_tasks, weights, preference=read)
