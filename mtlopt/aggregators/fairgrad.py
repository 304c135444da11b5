"""FairGrad: alpha-fair resource allocation (Ban & Ji, ICML 2024)."""

from typing import Any

import jax
import optax

from mtlopt._checks import as_task_vector, check_positive, preference_argument
from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.linalg.bargaining import bargain
from mtlopt.linalg.normalise import Gramian
from mtlopt.rows.protocol import Rows


def fairgrad_weights(
    gramian: Gramian,
    alpha: Any = 1.0,
    present: jax.Array | None = None,
    preference: Any = None,
) -> jax.Array:
    r"""Weights of FairGrad: the alpha-fair solution.

    .. math:: G w = (w / p)^{-1/\alpha}, \quad w > 0

    The first-order gains `G w` maximise the sum of `p gain^(1-alpha) / (1-alpha)`.
    Exact (see `bargain`, also for rows whose hull holds zero, where there is no
    solution): a least-squares solver started from `1/T`, as in the authors' code and
    TorchJD, is off by factors at small gradients and unequal scales. `alpha = 1` is
    Nash-MTL without clipping. A zero row gets weight zero; opposed rows get large,
    bounded weights that cancel; duplicates share; one task gets
    `|g|^(-2 alpha / (1 + alpha))`. NaN in, NaN out.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      alpha: fairness, positive, a scalar. Large is nearer to equal gains.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.
      preference: `p`, `[tasks]`, not negative, used as it is; None for ones. A task
        with zero gets weight zero.

    Returns:
      The weights `w`, `[tasks]`, positive for present tasks with a gradient.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> weights = fairgrad_weights(jnp.diag(jnp.array([8.0, 1.0])), alpha=0.5)
      >>> print(jnp.round(weights, 4))
      [0.5 1. ]

    References:
      Ban and Ji, *Fair Resource Allocation in Multi-Task Learning*, ICML 2024,
      equation 7.
    """
    if preference is not None:
        preference = as_task_vector("preference", preference, len(gramian))
    return bargain(gramian, alpha, present, preference).weights


def fairgrad(
    num_tasks: int, alpha: Any = 1.0, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Shares the progress between the tasks with alpha-fairness.

    .. math:: d = \sum_i w_i s_i g_i, \qquad
        \langle g_i, d \rangle = (w_i / p_i)^{-1/\alpha} / s_i > 0

    `-d` decreases every loss to first order, where any direction does: unless zero is
    in the convex hull of the gradients. Then the tasks whose gradients cancel
    contribute what rounding leaves of zero, in a direction that changes with their
    scale, and the others share what is orthogonal to them.
    A task with a zero gradient is left out.

    Of degree `(1 - alpha) / (1 + alpha)` in the gradients: for `alpha = 1` the length
    does not depend on theirs. On T equal gradients g it returns
    `T^(1 / (1 + alpha)) |g|^(-2 alpha / (1 + alpha)) g`, for `alpha = 1` the square
    root of T times the unit vector. The authors' code multiplies the result by T and
    clips its length to 1; neither is done here. Costs one backward pass per task.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      alpha: fairness, positive; the paper's are 1 and 2. 1 is proportional fairness
        (Nash), large is nearer to equal gains. See `bargain` on values far from 1.
      preference: `p`, `[tasks]` or by name, not negative, used as it is: what a task's
        gain counts. None for ones. A task with zero is left out.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `alpha` is not positive, or `preference` is not one number for each
        task, is negative, or is zero for all.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[2.0, 0.0], [0.0, 0.5]]))
      >>> aggregator = mtlopt.fairgrad(2)
      >>> updates, state = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(updates, state.task_weights)
      [1. 1.] [0.5 2. ]

    References:
      Ban and Ji, *Fair Resource Allocation in Multi-Task Learning*, ICML 2024,
      Algorithm 1.
    """
    check_positive("alpha", alpha)

    def weights(rows: Rows, present: Any, preference: Any) -> jax.Array:
        return fairgrad_weights(
            rows.scaled_gramian(present), alpha, present, preference
        )

    read = preference_argument(preference, num_tasks)
    return aggregate_by_weights("fairgrad", num_tasks, weights, preference=read)
