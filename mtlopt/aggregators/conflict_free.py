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
    """Returns the weights `[tasks]` of `conflict_free`, which defines the symbols.

    Weights may be negative. If the gradients are linearly independent, `d` has positive
    cosines with all of them, in the ratios of `p`. Otherwise `x` is the least-squares
    solution, `d` may conflict with a task, and the factor before `x / |x|` may be
    negative. If `p` is orthogonal to the range of `U`, as for opposed gradients, `d` is
    zero. For `T` equal gradients `g`, `d` is `T g`; every duplicate counts. A zero
    gradient gets weight zero, and a single task has weight 1. The weights are
    differentiable if the rank of `U` does not change.

    Examples:
      >>> import jax.numpy as jnp
      >>> weights = conflict_free_weights(jnp.diag(jnp.array([9.0, 1.0])))
      >>> print(*weights)  # doctest: +NUMBER
      0.6667 2.0
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
    r"""Takes the direction with equal cosines to all task gradients: ConFIG.

    .. math:: d = \Big( \sum_i \langle g_i, \hat{x} \rangle \Big) \hat{x}, \qquad
        \hat{x} = x / |x|, \qquad x = U^+ p

    `U^+` is the pseudo-inverse of the matrix `U` of unit gradients. If the gradients
    are linearly independent, `d` conflicts with no task. Relative to the gradients'
    norms, all losses then fall at the same rate, or at rates in the ratios of `p`. The
    scales of the losses change only the length of `d`, which is linear in the scales.

    Args:
      num_tasks: number of tasks T.
      preference: `p`, at least 0 and of any scale, `[tasks]` or by name; ones if None.

    Raises:
      ValueError: if `preference` does not fit the tasks, is negative, or is all zero.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
      >>> aggregator = mtlopt.conflict_free(2)
      >>> updates, _ = jax.jit(aggregator.update)(grads, aggregator.init(jnp.zeros(2)))
      >>> print(*updates)  # doctest: +NUMBER
      2.0 2.0

    References:
      Liu, Chu and Thuerey, *ConFIG*, arXiv 2408.11104, 2024, equation 2.
    """

    def weights(rows: Rows, present: jax.Array | None, preference: Any) -> jax.Array:
        gramian = rows.scaled_gramian(present)
        return _weights(gramian, preference, present, rows.rotated())

    read = preference_argument(preference, num_tasks)
    return aggregate_by_weights("conflict_free", num_tasks, weights, preference=read)
