"""ConFIG: the same cosine with every task gradient (Liu et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_task_vector, preference_argument
from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.linalg.equiangular import equiangular_ray
from mtlopt.linalg.normalise import Gramian, normalise, safe_divide
from mtlopt.linalg.unit_rows import Rotated
from mtlopt.rows.protocol import Rows


def conflict_free_weights(
    gramian: Gramian,
    preference: jax.Array | None = None,
    *,
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Weights of ConFIG: equal cosines, and the length of all projections together.

    .. math:: d = \Big( \sum_i \langle g_i, \hat{x} \rangle \Big) \hat{x}, \qquad
        \hat{x} = x / |x|, \qquad x = U^+ p

    with the unit gradients as rows of `U`. If they are linearly independent, `d` has
    positive cosines with all of them, in the ratios of `p`: equal ones by default.
    Otherwise `x` is the least-squares solution, `d` may conflict with a task, and its
    length factor may be negative; where `p` is at right angles to the rows' space
    (opposed rows) `d` is zero. On `T` equal gradients `g` the direction is `T g`;
    duplicates count each. A zero row has weight zero. One task has weight 1. NaN in,
    NaN out. Differentiable where the rank does not change.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      preference: `p`, `[tasks]`; only its direction matters. `None` means equal.
      present: Tasks that take part, bool `[tasks]`; the others get weight zero.

    Returns:
      The weights, `[tasks]`. They may be negative.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> weights = conflict_free_weights(jnp.diag(jnp.array([9.0, 1.0])))
      >>> print(jnp.round(weights, 4))
      [0.6667 2.    ]

    References:
      Liu, Chu and Thuerey, *ConFIG: Towards Conflict-free Training of Physics Informed
      Neural Networks*, arXiv 2408.11104, 2024, equation 2.
    """
    return _weights(gramian, preference, present)


def _weights(
    gramian: Gramian,
    preference: Any,
    present: jax.Array | None,
    rotated: Rotated | None = None,
) -> jax.Array:
    cosines, norms = normalise(gramian, present)
    if preference is not None:
        preference = as_task_vector("preference", preference, len(norms))
    ray = equiangular_ray(cosines, norms, preference, rotated)
    return safe_divide(ray.coefficients * jnp.sum(norms * ray.cosines), norms)


def conflict_free(
    num_tasks: int, preference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Has the same cosine with every task gradient: ConFIG.

    .. math:: d = \Big( \sum_i \langle g_i, \hat{x} \rangle \Big) \hat{x}, \qquad
        \hat{x} = x / |x|, \qquad x = U^+ p

    with the task gradients scaled by the weightings, and their unit vectors as rows of
    `U`. If no task gradient is a combination of the others, `d` conflicts with no task
    and decreases all losses at the same rate relative to their gradients' norms; a
    preference `p` sets the ratios. Otherwise the cosines are so in the least-squares
    sense only, and `d` may conflict. The direction does not depend on the tasks' scales
    and the length is linear in them. On T equal gradients g it returns T g. A zero
    gradient is left out. Costs one backward pass per task.

    The weights act on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      preference: `p`, `[tasks]` or by name, not negative; only its direction matters.
        None for equal.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `preference` is not one number for each task, is negative, or is
        zero for all.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.conflict_free(2)
      >>> update = jax.jit(aggregator.update)
      >>> updates, _ = update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(jnp.round(updates, 4))
      [2. 2.]

    References:
      Liu, Chu and Thuerey, *ConFIG: Towards Conflict-free Training of Physics Informed
      Neural Networks*, arXiv 2408.11104, 2024, equation 2. Its code solves with
      `torch.linalg.lstsq`, which is wrong for missing rank on CPU; this is the
      pseudo-inverse, as in TorchJD, with the rank decided in the dtype's precision.
    """

    def weights(rows: Rows, present: jax.Array | None, preference: Any) -> jax.Array:
        gramian = rows.scaled_gramian(present)
        return _weights(gramian, preference, present, rows.rotated())

    read = preference_argument(preference, num_tasks)
    return aggregate_by_weights("conflict_free", num_tasks, weights, preference=read)
