"""Aggregators whose direction is a weighted sum of the task gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import Reader, check_num_tasks
from mtlopt.common.reuse import Reuse, slow_in_branches
from mtlopt.common.task_weights import TaskWeightsState
from mtlopt.grad import check_task_grads
from mtlopt.partition import check_params
from mtlopt.rows.protocol import Leaves


def aggregate_by_weights(
    name: str, num_tasks: int, weights: Callable[..., jax.Array], **arguments: Reader
) -> optax.GradientTransformationExtraArgs:
    """Builds an aggregator without memory from `weights(rows, present, **vectors)`.

    `weights` gets each of the `arguments` as a vector `[tasks]`; see `task_argument`.
    """

    def weigh(grads: Any, rows: Any, state: Any, **_: Any) -> tuple[jax.Array, Any]:
        vectors = {name: read(grads.tasks) for name, read in arguments.items()}
        return weights(rows, grads.present, **vectors), state

    return aggregate_with_state(
        name, num_tasks, lambda: TaskWeightsState.uniform(num_tasks), weigh
    )


def aggregate_with_state(
    name: str,
    num_tasks: int,
    initial: Callable[[], Any],
    weigh: Callable[..., tuple[jax.Array, Any]],
    factor_of: Callable[[Leaves], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Builds an aggregator from a function that weights the rows and keeps a state.

    `weigh(grads, rows, state, params=params, **extra_args)` returns weights `[tasks]`
    and the next state; `update` sets `task_weights`. `initial()` returns the first
    state. If `factor_of` is given, `factor_of(direction)` multiplies the direction.
    """
    check_num_tasks(num_tasks)

    def init_fn(params: Any) -> Any:
        check_params(params)
        return initial()

    def update_fn(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        reuse: Reuse | None = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        grads = check_task_grads(updates, num_tasks, params, state, name)

        def compute() -> tuple[jax.Array, tuple[Any, Leaves]]:
            rows = grads.rows()
            found, new = weigh(grads, rows, state, params=params, **extra_args)
            return found, (new, rows.combine(found))

        def keep(weights: jax.Array) -> tuple[Any, Leaves]:
            return state, grads.rows().combine(weights)

        if reuse is None:
            weights, (new_state, direction) = compute()
        elif not slow_in_branches(grads):
            weights, (new_state, direction) = reuse.weigh(compute, keep)
        else:  # the sum made in the branch is not read, so it is not computed
            weights, (new_state, _) = reuse.weigh(compute, keep)
            direction = grads.rows().combine(weights)
        if factor_of is not None:
            factor = factor_of(direction)
            direction = [leaf * factor.astype(leaf.dtype) for leaf in direction]
            weights = factor.astype(weights.dtype) * weights
        used = weights.astype(jnp.result_type(state.task_weights))
        return grads.updates(direction), new_state._replace(task_weights=used)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
