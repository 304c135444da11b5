"""Weights that are computed on some updates and reused on the updates in between."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_int, as_transform
from mtlopt.common.reuse import Reuse
from mtlopt.common.task_weights import task_weights
from mtlopt.grad import check_task_grads
from mtlopt.task_grads import TaskGrads


class EveryState(NamedTuple):
    """State of `every`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update; zero for absent tasks.
      kept: `[tasks]`, the weights that were computed last, to be reused.
      count: int32, number of updates that used `kept`; 0 if the next update computes
        new weights.
      inner_state: state of the method that `every` wraps.
    """

    task_weights: jax.Array
    kept: jax.Array
    count: jax.Array
    inner_state: Any


def every(
    num_steps: int, inner: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    r"""Computes a method's weights on every k-th update and reuses them in between.

    .. math:: d_t = \sum_i w_i(\theta_{k \lfloor t / k \rfloor}) \, s_i g_i(\theta_t)

    Here :math:`g_i` is the gradient of loss `i`, and :math:`s_i` is the product of the
    factors from other weightings. If the method is an aggregator, `w` are the weights
    of the gradients; if it is a weighting, `w` are the weights of the losses. An update
    that reuses weights costs one backward pass, whatever the number of tasks. Gradients
    and losses always belong to the current batch; only the weights are old. So a
    guarantee of the method, for example that the update `d` conflicts with no task,
    holds only on every k-th update.

    The method runs on every k-th batch, and its state does not change in between: DWA
    counts only these updates, and GradVac averages only over these updates. `max_norm`
    of `nash_mtl` clips every update. A task that is absent when an aggregator computes
    the weights has weight zero until the next computation. A task that is absent on a
    later update has weight zero on that update. Weights that are not finite are not
    kept: the next update computes them again.

    `every` works inside and outside of `in_latent_space` and `leave_out`. `every` saves
    no time in two cases. Under `vmap`, both kinds of update run, and one result is
    discarded. With several microbatches, every update computes the gradients of all
    tasks.

    Args:
      num_steps: k, the number of updates that use the same weights, a Python int; 1
        gives the method itself.
      inner: an aggregator, or one or more weightings.

    Returns:
      A transform of the same kind as `inner`: an aggregator or a weighting.

    Raises:
      TypeError: if `inner` is not a transform, or if `num_steps` is a transform.
      ValueError: if `num_steps` is not a positive int, or if `inner` keeps no
        `task_weights`. At the update, if `inner` is a chain with an aggregator, or an
        aggregator that, like `graddrop` and `moco`, does not compute weights from a
        single batch.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> aggregator = mtlopt.every(2, mtlopt.mgda(2))
      >>> state, update = aggregator.init(jnp.zeros(2)), jax.jit(aggregator.update)
      >>> for size in (1.0, 3.0):
      ...     rows = jnp.array([[1.0, 0.0], [0.0, size]])
      ...     grads = mtlopt.TaskGrads.from_rows(rows)
      ...     updates, state = update(grads, state)
      ...     print([round(float(value), 3) for value in updates], state.count)
      [0.5, 0.5] 1
      [0.5, 1.5] 0

    References:
      Navon et al., *Multi-Task Learning as a Bargaining Game*, ICML 2022, section 3.3.
      The authors' study of speed reuses the weights of Nash-MTL for up to 50 updates.
    """
    if isinstance(num_steps, optax.GradientTransformation):
        raise TypeError(
            "`num_steps` must be a positive int, got a gradient transformation. The "
            "number of steps comes first, as in every(10, mgda(2))."
        )
    num_steps = as_int("num_steps", num_steps)
    inner = as_transform("inner", inner)

    def init_fn(params: Any) -> EveryState:
        inner_state = inner.init(params)
        try:
            weights = task_weights(inner_state)
        except ValueError as error:
            raise ValueError(
                "`inner` must keep `task_weights` in its state, as all weightings and "
                "aggregators of mtlopt do."
            ) from error
        # The copy has its own buffers, because the caller may donate the state.
        return EveryState(
            task_weights=jnp.copy(weights),
            kept=jnp.zeros_like(weights),
            count=jnp.zeros([], jnp.int32),
            inner_state=inner_state,
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, EveryState]:
        num_tasks = len(state.kept) if isinstance(state, EveryState) else 0
        grads = check_task_grads(updates, num_tasks, params, state, "every")

        def run(**reuse: Reuse) -> tuple[Any, Any]:
            return inner.update(grads, state.inner_state, params, **reuse, **extra_args)

        if num_steps == 1:
            update, inner_state = run()
            kept = used = task_weights(inner_state)
        else:
            is_due = state.count == 0
            reuse = Reuse(state.kept, is_due)
            update, inner_state = run(reuse=reuse)
            if isinstance(update, TaskGrads):
                # The update of this run is never read: XLA leaves it out.
                kept, inner_state = Reuse(state.kept, is_due).weigh(
                    lambda: _weights_and_state(run()), lambda _: state.inner_state
                )
                update, used = grads.scale_by(kept), kept
            else:
                kept, used = _check_used(reuse, inner_state), task_weights(inner_state)
        if grads.present is not None:
            used = jnp.where(grads.present, used, 0)
        is_finite = jnp.all(jnp.isfinite(kept))
        count = (state.count + 1) % num_steps
        return update, EveryState(
            task_weights=used,
            kept=jnp.where(is_finite, kept, state.kept),
            count=jnp.where(is_finite, count, state.count),
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _weights_and_state(result: tuple[Any, Any]) -> tuple[jax.Array, Any]:
    """Returns the factors by which a weighting scales the losses, and its state."""
    _, state = result
    return task_weights(state), state


def _check_used(reuse: Reuse, inner_state: Any) -> jax.Array:
    """Returns the weights that an aggregator used, or raises if it has none."""
    if type(inner_state) is tuple and len(inner_state) > 1:  # of a chain
        raise ValueError(
            "`inner` must be weightings only, or one aggregator alone, got a chain "
            "that has an aggregator and other transforms. Chain them outside of "
            "`every`, as in "
            "chain(weight_by_dwa(2), every(10, mgda(2)), optax.adam(1e-3)) or "
            "chain(every(10, weight_by_dwa(2)), sum_tasks(2), optax.adam(1e-3))."
        )
    if reuse.used is None:
        raise ValueError(
            "`inner` must be a weighting, or an aggregator that computes weights of "
            "the gradients. sum_tasks and mean_tasks compute no weights, graddrop and "
            "trimmed_mean choose entry by entry, and moco and balance_norms with "
            "labels remember gradients. Use such an aggregator without `every`."
        )
    return reuse.used
