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
    r"""Returns the weights `alpha` `[tasks]` of `dualproj`, at least the preference.

    .. math:: \alpha = \mathrm{argmin}_{v \ge w} v^T G v

    The result is exact up to rounding. A zero gradient keeps its preference as its
    weight. The direction is orthogonal to opposed gradients. Duplicates split their
    weight arbitrarily, but the direction is unique. By default, equal gradients `g`
    give the direction `g`. A single task gives `w g`.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(dualproj_weights(jnp.array([[1.0, -2.0], [-2.0, 9.0]]), jnp.ones(2)))
      [2. 1.]
    """
    weights = mean_weights(len(gramian), preference, present)
    return project_dual_cone(gramian, weights[None], present).weights[0]


def dualproj(
    num_tasks: int, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Projects the mean gradient onto the directions without conflicts: DualProj.

    .. math:: d = \mathrm{argmin}_{y : \langle g_j, y \rangle \ge 0 \, \forall j}
        \Big| y - \sum_i w_i s_i g_i \Big|

    Of all directions that increase no loss to first order, `d` is the nearest to the
    mean gradient, whatever the gradients' norms are. Large gradients dominate `d`.
    Unlike in `upgrad`, `d` is not linear in a gradient's scale. `d` is zero if and only
    if the gradients cancel with positive weights. Without conflicts, `d` is the mean.

    Args:
      num_tasks: number of tasks T.
      preference: `w`, `[tasks]` or by name, at least 0, used as given; `1/T` if None.
        A one-hot `w` gives GEM: one task's gradient changes so that it harms no other.

    Raises:
      ValueError: if `preference` does not fit the tasks, is negative, or is all zero.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[2.0, 1.0], [-6.0, 3.0]]))
      >>> aggregator = mtlopt.dualproj(2)
      >>> updates, _ = jax.jit(aggregator.update)(grads, aggregator.init(jnp.zeros(2)))
      >>> print(*updates)  # doctest: +NUMBER
      -1.2 2.4

    References:
      Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning*, NeurIPS
      2017, equation 11, applied to the mean gradient.
    """

    def weights(rows: Rows, present: Any, preference: Any) -> jax.Array:
        return dualproj_weights(rows.scaled_gramian(present), preference, present)

    read = preference_argument(preference, num_tasks)
    return aggregate_by_weights("dualproj", num_tasks, weights, preference=read)
