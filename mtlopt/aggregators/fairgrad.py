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
    r"""Returns the weights `w` `[tasks]` of `fairgrad`.

    .. math:: G w = (w / p)^{-1/\alpha}, \quad w > 0

    `G w` are the first-order gains of the tasks. By equation 7 of the paper, they
    maximise the sum of `p gain^(1-alpha) / (1-alpha)` over the tasks. The weights are
    exact. A task with a zero gradient or preference gets weight zero. Opposed gradients
    get large, bounded weights and cancel. Duplicates get equal weights. A single task
    gets the weight `|g|^(-2 alpha / (1 + alpha))`, and T equal gradients `g` give the
    direction `T^(1 / (1 + alpha)) |g|^(-2 alpha / (1 + alpha)) g`.

    Examples:
      >>> import jax.numpy as jnp
      >>> weights = fairgrad_weights(jnp.diag(jnp.array([8.0, 1.0])), alpha=0.5)
      >>> print(*weights)  # doctest: +NUMBER
      0.5 1.0
    """
    if preference is not None:
        preference = as_task_vector("preference", preference, len(gramian))
    return bargain(gramian, alpha, present, preference).weights


def fairgrad(
    num_tasks: int, alpha: Any = 1.0, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Shares the progress between the tasks with alpha-fairness: FairGrad.

    .. math:: d = \sum_i w_i s_i g_i, \qquad
        \langle g_i, d \rangle = (w_i / p_i)^{-1/\alpha} / s_i > 0

    `-d` decreases every loss to first order, unless zero is in the gradients' convex
    hull. In that case, tasks whose gradients cancel contribute only a rounding error,
    whose direction changes with the gradients' scale. The other tasks share the
    directions orthogonal to the gradients that cancel. `d` is homogeneous of degree
    `(1 - alpha) / (1 + alpha)` in the gradients. For `alpha = 1` (unclipped Nash-MTL),
    `d` has the same length for gradients of any length.

    Args:
      num_tasks: number of tasks T.
      alpha: positive; larger values give more equal gains. The paper uses 1 and 2.
      preference: `p`, `[tasks]` or by name, at least 0, used as given; ones if None.

    Raises:
      ValueError: if an argument is out of range or does not fit the tasks.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[2.0, 0.0], [0.0, 0.5]]))
      >>> aggregator = mtlopt.fairgrad(2)
      >>> print(aggregator.update(grads, aggregator.init(jnp.zeros(2)))[0])
      [1. 1.]

    References:
      Ban and Ji, *Fair Resource Allocation in Multi-Task Learning*, ICML 2024.
    """
    check_positive("alpha", alpha)

    def weights(rows: Rows, present: Any, preference: Any) -> jax.Array:
        return fairgrad_weights(
            rows.scaled_gramian(present), alpha, present, preference
        )

    read = preference_argument(preference, num_tasks)
    return aggregate_by_weights("fairgrad", num_tasks, weights, preference=read)
