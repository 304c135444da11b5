"""Any aggregator, run on the gradients of the latent instead of the parameters."""

from typing import Any

import optax

from mtlopt.task_grads import TaskGrads


def in_latent_space(
    aggregator: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Lets an aggregator look at the gradients of the latent.

    The aggregator sees the rows `dL_i / dz` of the latent `z` instead of those of the
    shared parameters, and its one direction is pulled back through the encoder:

    .. math:: d = J^\top A(G_z), \qquad J = \partial z / \partial \theta

    Leaves of `z` that no shared parameter moves (masks, inputs that `encode` passes on)
    are left out: the encoder's program shows which they are. It cannot tell entries of
    one leaf apart, as in `concatenate([h, x])`, so return two leaves.

    One backward pass whatever the number of tasks, where the parameter space needs one
    per task; the two agree where `J J^T` is a multiple of the identity. MGDA-UB is
    `in_latent_space(mgda(T))`, Z-aligned Aligned-MTL `in_latent_space(aligned_mtl(T))`.

    Elsewhere the encoder turns the latent's direction by `J J^T`, and what an
    aggregator guarantees holds for the latent only: with `mgda` the losses weighted as
    the direction is still fall to first order, but one of them may rise, and with
    `aligned_mtl` there is a problem on which all rise in every step (see there), both
    with `J` of full rank. `would_rise` tells which losses a direction raises.

    Args:
      aggregator: an aggregator of this library.

    Returns:
      An aggregator with the same state.

    Raises:
      TypeError: if `aggregator` is no transform.
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
    if not isinstance(aggregator, optax.GradientTransformation):
        raise TypeError(
            "`aggregator` must be a gradient transformation, got "
            f"{type(aggregator).__name__}. Build it first, as in mgda(2)."
        )
    inner = optax.with_extra_args_support(aggregator)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        if isinstance(updates, TaskGrads):
            updates = updates.in_latent_space()
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)
