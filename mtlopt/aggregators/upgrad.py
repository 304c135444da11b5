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
    r"""Weights of UPGrad: each gradient projected on the dual cone, then combined.

    .. math:: \alpha = \sum_i v_i, \qquad
        v_i = \mathrm{argmin}_{v \ge w_i e_i} v^T G v

    All tasks' problems are solved at once, to rounding (see `project_dual_cone`): no
    regularisation, which costs others the guarantee once gradient norms differ by 30
    or more. A zero row keeps its preference as weight. Opposed rows leave nothing of
    their common line, so two opposed gradients give zero; of duplicates the split of
    the weights is arbitrary, the direction is not. NaN in, NaN out.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      preference: `w`, `[tasks]`, non-negative, used as it is. `None` means one over
        the number of present tasks for each of them.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights `alpha`, `[tasks]`, each at least the preference.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> print(upgrad_weights(gramian, jnp.ones(2)))
      [2.   1.25]

    References:
      Quinton and Rey, *Jacobian Descent for Multi-Objective Optimization*,
      arXiv:2406.16232, equation 3 and proposition 1.
    """
    weights = mean_weights(len(gramian), preference, present)
    # A problem a task: what is projected is that task's gradient alone.
    own = jnp.where(jnp.eye(len(weights), dtype=bool), weights, 0)
    return jnp.sum(project_dual_cone(gramian, own, present).weights, axis=0)


def upgrad(
    num_tasks: int, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Projects every task gradient on the cone that conflicts with none: UPGrad.

    .. math:: d = \sum_i w_i \, \pi(s_i g_i), \qquad
        \pi(x) = \mathrm{argmin}_{y : \langle g_j, y \rangle \ge 0 \, \forall j} |y - x|

    `-d` increases no loss to first order, whatever the ratio of the gradients' norms;
    in float32 to a cosine of -1e-4. `d` is linear in the scale of each gradient: small
    gradients stay small and still are not opposed. It is zero exactly where positive
    weights make the gradients cancel (unlike `mgda`, one zero gradient stops nothing).
    Without conflicts it is the weighted mean; with two tasks and preference (1, 1) it
    is PCGrad. On T equal gradients g it returns g, and with one task `w g`. Costs one
    backward pass per task.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      preference: `w`, `[tasks]` or by name, not negative, used as it is; None for 1/T.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `preference` is not one number for each task, is negative, or is
        zero for all.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [-1.0, 1.0]]))
      >>> aggregator = mtlopt.upgrad(2)
      >>> updates, _ = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> [round(float(value), 3) for value in updates]
      [0.25, 0.75]

    References:
      Quinton and Rey, *Jacobian Descent for Multi-Objective Optimization*,
      arXiv:2406.16232, equation 3. TorchJD and LibMTL add 1e-4 of the trace to the
      diagonal of the Gramian and replace small Gramians by zero; this is the exact
      value.
    """

    def weights(rows: Rows, present: Any, preference: Any) -> jax.Array:
        return upgrad_weights(rows.scaled_gramian(present), preference, present)

    read = preference_argument(preference, num_tasks)
    return aggregate_by_weights("upgrad", num_tasks, weights, preference=read)
