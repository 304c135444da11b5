"""How well latent gradients represent the gradients of the shared parameters."""

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.principal_axes import principal_axes
from mtlopt.task_grads import TaskGrads


def latent_spread(grads: TaskGrads) -> jax.Array:
    r"""Returns how unevenly the encoder passes on the latent gradients of the tasks.

    .. math:: \kappa = \sigma_{\max}(J^\top Q) \, / \, \sigma_{\min}(J^\top Q), \qquad
        J = \partial z / \partial \theta

    The columns of `Q` are an orthonormal basis of the span of the latent gradients.
    Methods in latent space (`in_latent_space`) assume that `J J^T` is a multiple of the
    identity, at least on this span. If that is true, the spread is 1, and the latent
    gradients have the same angles and ratios of lengths as the gradients of the shared
    parameters. Otherwise a ratio of lengths may be wrong by a factor as large as the
    spread. The spread is the dominance rate (see `dominance_rate`) that remains after
    Z-alignment (`aligned_mtl` in latent space). The function costs as much as an
    aggregator: one backward pass per task.

    Absent tasks are left out, and the lengths of the gradients do not matter. The
    spread is infinite if the encoder loses a direction of the span, and NaN if there is
    no gradient.

    Args:
      grads: gradients of the tasks, from a `task_grad` oracle with `encode`.

    Returns:
      A scalar of at least 1.

    Raises:
      TypeError: if `grads` is not a `TaskGrads`.
      ValueError: if `grads` is in latent space, or if there is no latent.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> oracle = mtlopt.task_grad(
      ...     {"a": lambda p, z: z[0], "b": lambda p, z: z[1]},
      ...     "shared",
      ...     encode=lambda p: jnp.array([3.0, 1.0]) * p["w"],
      ... )
      >>> print(mtlopt.latent_spread(oracle({"w": jnp.ones(2)})))
      3.0

    References:
      Aligned-MTL (see `aligned_mtl`), section 4.2, equation 8 and Table 2.
    """
    if not isinstance(grads, TaskGrads):
        raise TypeError(
            f"`grads` must be a mtlopt.TaskGrads, got {type(grads).__name__}. Compute "
            "it with mtlopt.task_grad."
        )
    if grads.in_latent:
        raise ValueError(
            "`grads` must hold gradients of the shared parameters, got gradients of "
            "the latent. Leave out `in_latent_space()`."
        )
    latent, present = grads.in_latent_space().rows(), grads.present
    unit = safe_divide(jnp.ones([]), latent.norms())
    axes = principal_axes(latent.gramian(unit), present)
    basis = unit[:, None] * axes.right * safe_divide(jnp.ones([]), axes.singular)
    passed = principal_axes(grads.rows().gramian(basis)).singular
    least = passed[axes.rank - 1]
    return passed[0] / least
