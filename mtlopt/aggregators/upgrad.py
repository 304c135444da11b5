"""UPGrad: no conflict with any task (Quinton & Rey, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import preference_argument
from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.common.task_weights import mean_weights
from mtlopt.linalg.dual_cone import project_dual_cone
from mtlopt.linalg.normalise import Gramian
from mtlopt.rows.protocol import Rows


def upgrad_weights(
    gramian: Gramian,
    preference: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Returns the weights `alpha` `[tasks]` of `upgrad`, at least the preference.

    .. math:: \alpha = \sum_i v_i, \qquad
        v_i = \mathrm{argmin}_{v \ge w_i e_i} v^T G v

    The result is exact up to rounding. A zero gradient keeps its preference as its
    weight. The direction is orthogonal to opposed gradients, so two opposed gradients
    give zero. Duplicates split their weight arbitrarily, but the direction is unique.
    By default, equal gradients `g` give the direction `g`. A single task gives `w g`.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(upgrad_weights(jnp.array([[1.0, -1.0], [-1.0, 4.0]]), jnp.ones(2)))
      [2.   1.25]
    """
    weights = mean_weights(len(gramian), preference, present)
    # One problem per task, which projects that task's gradient alone.
    own = jnp.where(jnp.eye(len(weights), dtype=bool), weights, 0)
    return jnp.sum(project_dual_cone(gramian, own, present).weights, axis=0)


def upgrad(
    num_tasks: int, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Projects all task gradients onto the directions without conflicts: UPGrad.

    .. math:: d = \sum_i w_i \, \pi(s_i g_i), \qquad
        \pi(x) = \mathrm{argmin}_{y : \langle g_j, y \rangle \ge 0 \, \forall j} |y - x|

    `-d` increases no loss to first order, whatever the gradients' norms are. (In
    float32, cosines down to -1e-4 can remain.) `d` is linear in the scale of each
    gradient, so a small gradient adds little to `d`, but `d` does not oppose it. `d` is
    zero exactly if the gradients cancel with positive weights; unlike in `mgda`, one
    zero gradient is not enough. Without conflicts, `d` is the mean gradient. For two
    tasks and `w = (1, 1)`, `d` is the update of PCGrad.

    Args:
      num_tasks: number of tasks T.
      preference: `w`, `[tasks]` or by name, at least 0, used as given; `1/T` if None.

    Raises:
      ValueError: if `preference` does not fit the tasks, is negative, or is all zero.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [-1.0, 1.0]]))
      >>> aggregator = mtlopt.upgrad(2)
      >>> updates, _ = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(*updates)  # doctest: +NUMBER
      0.25 0.75

    References:
      Quinton and Rey, *Jacobian Descent for Multi-Objective Optimization*,
      arXiv:2406.16232, equation 3 and proposition 1.
    """

    def weights(rows: Rows, present: Any, preference: Any) -> jax.Array:
        return upgrad_weights(rows.scaled_gramian(present), preference, present)

    read = preference_argument(preference, num_tasks)
    return aggregate_by_weights("upgrad", num_tasks, weights, preference=read)
