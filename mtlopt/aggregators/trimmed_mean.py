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
from mtlopt.rows.arithmetic import sum_entries
from mtlopt.rows.protocol import Leaves


def trim_entries(
    values: jax.Array, trim: int = 1, present: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Averages each entry over the tasks without the extremes.

    Args:
      values: one leaf of the rows, `[tasks, ...]`.
      trim: how many of the largest and of the smallest values are dropped.
      present: tasks that take part, bool `[tasks]`; None for all. Of too few, as many
        are dropped as leave one or two.

    Returns:
      The average, `[...]`, NaN where a value is; and each task's weight in it,
      `[tasks, ...]`, where equal values share.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> rows = jnp.array([[9.0], [1.0], [3.0], [4.0]])
      >>> mean, weights = jax.jit(trim_entries)(rows)
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
    # The sort puts NaN last, where it would be dropped unseen.
    mean = jnp.where(jnp.isnan(ordered[-1]), ordered[-1], total / left)

    low, high = ordered[lost][None], ordered[last][None]
    kept = there.reshape(column) & (values >= low) & (values <= high)
    kept = kept.astype(values.dtype)
    return mean, safe_divide(kept, jnp.sum(kept, axis=0, keepdims=True))


def average_entries(weights: Leaves, num_tasks: int) -> jax.Array:
    """Averages weights of single entries, leaves `[tasks, ...]`, to `[tasks]`."""
    total = jnp.zeros(num_tasks)
    for leaf in weights:
        total += sum_entries(leaf).astype(total.dtype)
    return total / max(sum(leaf.size for leaf in weights) // num_tasks, 1)


def trimmed_mean(
    num_tasks: int, trim: int = 1
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the task gradients without the extremes, entry by entry.

    .. math:: d_k = \frac{1}{T - 2 b} \sum_{i = b + 1}^{T - b} g_{(i) k}

    with `g_(1)k <= ... <= g_(T)k` the sorted entries of the task gradients scaled by
    the weightings. Made for workers of which `b` may send anything; as a method for
    several tasks it damps the outlying ones, and may conflict with them. The result is
    no combination of the gradients and depends on the coordinates. On T equal gradients
    g it returns g. A zero gradient counts like any other. With absent tasks the
    extremes of the present ones are dropped, and of too few as many as leave one or
    two. Entries are averaged in float32 or wider; a NaN stays visible, infinities may
    be dropped. Not available with streaming rows, nor in latent space with several
    microbatches: it needs the rows. Costs one backward pass per task.

    It acts on shared leaves only; heads keep their own task's gradient. `task_weights`
    is each task's weight, averaged over the entries.

    Args:
      num_tasks: number of tasks T, at least `2 trim + 1`.
      trim: `b`, how many of the largest and of the smallest values are dropped, a
        Python int. The paper's `b` is a fraction `beta` of T.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if there are too few tasks, or `trim` is negative.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt
      >>> rows = jnp.array([[9.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
      >>> grads = mtlopt.TaskGrads.from_rows(rows)
      >>> aggregator = mtlopt.trimmed_mean(3)
      >>> update = jax.jit(aggregator.update)
      >>> print(update(grads, aggregator.init(jnp.zeros(2)))[0])
      [3. 1.]

    References:
      Yin, Chen, Ramchandran and Bartlett, *Byzantine-Robust Distributed Learning:
      Towards Optimal Statistical Rates*, ICML 2018, definition 2.
    """
    check_num_tasks(num_tasks)
    trim = as_int("trim", trim, low=0)
    if num_tasks < 2 * trim + 1:
        raise ValueError(
            f"`num_tasks` must be at least 2 trim + 1 = {2 * trim + 1} for the trimmed "
            f"mean, so that a value is left, got {num_tasks}."
        )

    def init_fn(params: Any) -> TaskWeightsState:
        del params
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
