"""Trimmed mean: an average without the extremes (Yin et al., ICML 2018)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_int, check_num_tasks
from mtlopt.common.task_weights import TaskWeightsState
from mtlopt.grad import check_task_grads
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import safe_divide
from mtlopt.partition import check_params
from mtlopt.rows.arithmetic import sum_entries
from mtlopt.rows.protocol import Leaves


def trim_entries(
    values: jax.Array, trim: int = 1, present: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the `trimmed_mean` of a leaf `[tasks, ...]`, and the entries' weights.

    The weights have the leaf's shape; equal values share their weight. NaN gives NaN.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> mean, weights = jax.jit(trim_entries)(jnp.array([[9.0], [1.0], [3.0], [4.0]]))
      >>> print(mean, weights[:, 0])
      [3.5] [0.  0.  0.5 0.5]
    """
    num_tasks = values.shape[0]
    column = (num_tasks,) + (1,) * (values.ndim - 1)
    there = jnp.ones(num_tasks, bool) if present is None else jnp.asarray(present)
    count = jnp.sum(there, dtype=jnp.int32)
    lost = jnp.clip((count - 1) // 2, 0, trim)
    values = values.astype(solver_dtype([values]))
    values = jnp.where(there.reshape(column), values, jnp.inf)
    ordered = jnp.sort(values, axis=0)
    last = count - 1 - lost
    place = jnp.arange(num_tasks, dtype=jnp.int32).reshape(column)
    total = jnp.sum(ordered, axis=0, where=(place >= lost) & (place <= last))
    left = jnp.maximum(count - 2 * lost, 1).astype(values.dtype)
    # The sort puts NaN last, where trimming would drop it without a trace.
    mean = jnp.where(jnp.isnan(ordered[-1]), ordered[-1], total / left)

    low, high = ordered[lost][None], ordered[last][None]
    kept = there.reshape(column) & (values >= low) & (values <= high)
    kept = kept.astype(values.dtype)
    return mean, safe_divide(kept, jnp.sum(kept, axis=0, keepdims=True))


def average_entries(weights: Leaves, num_tasks: int) -> jax.Array:
    """Returns each task's mean weight, `[tasks]`, over the entries of all leaves."""
    total = jnp.zeros(num_tasks)
    for leaf in weights:
        total += sum_entries(leaf).astype(total.dtype)
    return total / max(sum(leaf.size for leaf in weights) // num_tasks, 1)


def trimmed_mean(
    num_tasks: int, trim: int = 1
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the task gradients without the extremes, entry by entry.

    .. math:: d_k = \frac{1}{T - 2 b} \sum_{i = b + 1}^{T - b} g_{(i) k}

    Here `g_(1)k <= ... <= g_(T)k` are the sorted entries `k` of the task gradients. The
    method was made for distributed workers, `b` of which may send any vector. With
    tasks, it damps outliers and may conflict with them. In general `d` is not a linear
    combination of the gradients, and it depends on the choice of coordinates.
    `task_weights` gives each task's weight averaged over all entries. A zero gradient
    counts like any other. If few tasks are present, fewer values are dropped, so that
    one or two remain. Averages are in float32 or wider. NaN stays NaN; infinities may
    be dropped. Streaming and microbatches in latent space are not supported.

    Args:
      num_tasks: number of tasks T, at least `2 trim + 1`.
      trim: `b`, number of values dropped at each end, an int; `beta T` in the paper.

    Raises:
      ValueError: if there are too few tasks, or `trim` is negative.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> rows = jnp.array([[9.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
      >>> aggregator = mtlopt.trimmed_mean(3)
      >>> grads, state = mtlopt.TaskGrads.from_rows(rows), aggregator.init(jnp.zeros(2))
      >>> print(jax.jit(aggregator.update)(grads, state)[0])
      [3. 1.]

    References:
      Yin et al., *Byzantine-Robust Distributed Learning*, ICML 2018, definition 2.
    """
    check_num_tasks(num_tasks)
    trim = as_int("trim", trim, low=0)
    if num_tasks < 2 * trim + 1:
        raise ValueError(
            f"`num_tasks` must be at least 2 trim + 1 = {2 * trim + 1} for the trimmed "
            f"mean, so that a value is left, got {num_tasks}."
        )

    def init_fn(params: Any) -> TaskWeightsState:
        check_params(params)
        return TaskWeightsState.uniform(num_tasks)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, TaskWeightsState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "trimmed_mean")
        rows = grads.rows()
        leaves = rows.leaves()
        trimmed = [trim_entries(leaf, trim, grads.present) for leaf in leaves]
        direction = [
            mean.astype(leaf.dtype)
            for (mean, _), leaf in zip(trimmed, leaves, strict=True)
        ]
        weights = average_entries([weights for _, weights in trimmed], num_tasks)
        state = TaskWeightsState(weights.astype(state.task_weights.dtype))
        return grads.updates(rows.pull(direction)), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
