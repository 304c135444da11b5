"""Any aggregator, run on the gradients of the latent instead of the parameters."""

from typing import Any

import optax

from mtlopt._checks import as_transform
from mtlopt.task_grads import TaskGrads


def in_latent_space(
    aggregator: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Runs an aggregator on the gradients of the latent.

    The latent `z` is the value that `encode` returns. The aggregator `A` gets `G_z`,
    whose rows are the tasks' gradients `dL_i / dz`, instead of the gradients of the
    shared parameters :math:`\theta`. Its direction is then pulled back through the
    encoder:

    .. math:: d = J^\top A(G_z), \qquad J = \partial z / \partial \theta

    Leaves of `z` that depend on no shared parameter, such as masks and inputs that
    `encode` passes on, are left out. mtlopt finds these leaves in the encoder's
    program. It cannot separate entries of one leaf, as in `concatenate([h, x])`, so
    return `h` and `x` as two leaves.

    An update costs one backward pass, whatever the number of tasks; in parameter space
    it costs one backward pass per task. Both spaces give the same update if `J J^T` is
    a multiple of the identity. MGDA-UB is `in_latent_space(mgda(T))`, and Z-aligned
    Aligned-MTL is `in_latent_space(aligned_mtl(T))`.

    For any other `J`, the encoder multiplies the latent's direction by `J J^T`, and a
    guarantee of the aggregator holds for the latent only. With `mgda`, the sum of the
    losses, weighted by MGDA's weights, still falls to first order, but a single loss
    may rise. With `aligned_mtl`, there is a problem on which all losses rise in every
    step (see `aligned_mtl`). Both effects are possible even if `J` has full rank.
    `would_rise` tells which losses a direction raises.

    Args:
      aggregator: an aggregator of this library.

    Returns:
      An aggregator with the same state.

    Raises:
      TypeError: if `aggregator` is not a transform.
      ValueError: at the first update, if the gradients come from a problem without
        `encode`, which has no latent common to all tasks.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> params = {"w": jnp.array([2.0]), "a": jnp.array(1.0), "b": jnp.array(3.0)}
      >>> oracle = mtlopt.task_grad(
      ...     {"a": lambda p, z: p["a"] * z[0], "b": lambda p, z: p["b"] * z[0]},
      ...     {"w": "shared", "a": "a", "b": "b"},
      ...     encode=lambda p: 5 * p["w"],
      ... )
      >>> aggregator = mtlopt.in_latent_space(mtlopt.mgda(2))
      >>> @jax.jit
      ... def step(params):
      ...     return aggregator.update(oracle(params), aggregator.init(params))
      >>> updates, state = step(params)
      >>> print(jnp.round(updates["w"], 4), jnp.round(state.task_weights, 4))
      [5.] [1. 0.]

    References:
      Sener and Koltun, Multi-task learning as multi-objective optimization, NeurIPS
      2018, section 3.3. Aligned-MTL (see `aligned_mtl`), definition 3.
    """
    inner = as_transform("aggregator", aggregator)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        if isinstance(updates, TaskGrads):
            updates = updates.in_latent_space()
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)
