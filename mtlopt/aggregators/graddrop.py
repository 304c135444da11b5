"""GradDrop: picking one sign for every entry (Chen et al., NeurIPS 2020)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtlopt._checks import as_key, check_num_tasks, task_argument
from mtlopt.grad import check_task_grads
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import safe_divide
from mtlopt.partition import check_params
from mtlopt.rows.protocol import Leaves

_FEW_TASKS = 8  # a loop over at most this many tasks is unrolled


class GraddropState(NamedTuple):
    """State of `graddrop`: weights averaged over entries, and the next draw's key."""

    task_weights: jax.Array
    key: jax.Array


def drop_signs(
    rows: Leaves,
    uniform: Leaves,
    leak: jax.Array,
    present: jax.Array | None = None,
) -> tuple[Leaves, jax.Array]:
    """Sums each entry of `rows` over the tasks whose value has the drawn sign.

    `uniform` holds one number from [0, 1) per entry. The sign is positive if this
    number is below `P_k` (see `graddrop`). If a value has the opposite sign, only the
    fraction `leak` `[tasks]` of it is added. Returns the sums, and the weights of each
    task summed over the entries. NaN and infinite values give NaN.

    Examples:
      >>> import jax.numpy as jnp
      >>> rows = [jnp.array([[3.0, 1.0], [-1.0, 2.0]])]
      >>> print(*drop_signs(rows, [jnp.full(2, 0.8)], jnp.zeros(2)))
      [Array([-1.,  3.], dtype=float32)] [1. 2.]
    """
    num_tasks = len(leak)
    dtype = solver_dtype(rows or [leak])
    leak = leak.astype(dtype)
    present = jnp.ones(num_tasks, bool) if present is None else present
    # Task by task, because on a CPU a sum over the first axis of a large leaf takes 25
    # times as long.
    scan = functools.partial(jax.lax.scan, unroll=num_tasks <= _FEW_TASKS)

    def add(sums: Any, task: Any) -> Any:
        row, is_present = task
        row = [jnp.where(is_present, leaf.astype(dtype), 0) for leaf in row]
        positive, negative = sums
        positive = [a + jnp.maximum(b, 0) for a, b in zip(positive, row, strict=True)]
        negative = [a + jnp.minimum(b, 0) for a, b in zip(negative, row, strict=True)]
        return (positive, negative), None

    nothing = [jnp.zeros_like(leaf[0], dtype) for leaf in rows]  # sharded like the rows
    (positive, negative), _ = scan(add, (nothing, nothing), (rows, present))
    sizes = [a - b for a, b in zip(positive, negative, strict=True)]
    signs = [
        safe_divide(a, size) > draw.astype(dtype)
        for a, size, draw in zip(positive, sizes, uniform, strict=True)
    ]

    def weigh(totals: Leaves, task: Any) -> tuple[Leaves, jax.Array]:
        row, is_present, part = task
        sums, passed = [], jnp.zeros([], dtype)
        for total, leaf, is_positive in zip(totals, row, signs, strict=True):
            value = leaf.astype(dtype)
            passes = jnp.where(is_positive, value >= 0, value <= 0).astype(dtype)
            weight = jnp.where(is_present, part + (1 - part) * passes, 0)
            sums.append(total + jnp.where(is_present, weight * value, 0))
            passed += jnp.sum(weight)
        return sums, passed

    totals, weights = scan(weigh, nothing, (rows, present, leak))
    # Under jit a product with a 0 becomes a select, which drops a NaN.
    totals = [
        jnp.where(jnp.isfinite(size), total, 0 * size)
        for total, size in zip(totals, sizes, strict=True)
    ]
    return totals, weights


def graddrop(
    num_tasks: int, leak: Any = None, key: int | jax.Array = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps, in every entry, only the gradient values of one random sign: GradDrop.

    .. math:: d_k = \sum_i \big( \ell_i + (1 - \ell_i) M_{ik} \big) g_{ik}, \qquad
        P_k = \frac12 \Big( 1 + \frac{\sum_i g_{ik}}{\sum_i |g_{ik}|} \Big)

    With probability `P_k`, entry `k` keeps the positive values of the tasks, and
    otherwise the negative values. `M_ik` is 1 for the values that are kept. If all
    leaks are equal, `d` averaged over the draws is the summed gradient. A single `d`
    may conflict with any task, and in general is not a linear combination of the
    gradients. Without leaks, `d` is zero only if all gradients are. An entry keeps all
    its values if they have the same sign. GradDrop is not differentiable. It does not
    support streaming or, in latent space, several microbatches. In latent space, each
    sample has its own draw; in the paper, all samples share one draw.

    Args:
      num_tasks: number of tasks T.
      leak: `l`, the fraction (0 to 1) of each dropped value that is still added,
        `[tasks]` or by name. Ones give the summed gradient; None means 0 for all.
      key: seed or key of the draws.

    Raises:
      ValueError: if `leak` is not one number from 0 to 1 for each task.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> rows = jnp.array([[3.0, 1.0, 0.0], [1.0, 2.0, -1.0]])
      >>> aggregator = mtlopt.graddrop(2)
      >>> grads, state = mtlopt.TaskGrads.from_rows(rows), aggregator.init(jnp.zeros(3))
      >>> print(jax.jit(aggregator.update)(grads, state)[0])
      [ 4.  3. -1.]

    References:
      Chen et al., *Just Pick a Sign*, NeurIPS 2020, equation 1, algorithm 1.
    """
    check_num_tasks(num_tasks)
    first_key = as_key(key)
    leaks = np.zeros(num_tasks) if leak is None else leak
    read = task_argument("leak", leaks, num_tasks, low=0, high=1)

    def init_fn(params: Any) -> GraddropState:
        check_params(params)
        return GraddropState(jnp.ones(num_tasks, float), jnp.copy(first_key))

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, GraddropState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params, state, "graddrop")
        rows = grads.rows()
        leaves = rows.leaves()
        key, *draws = jax.random.split(state.key, 1 + len(leaves))
        uniform = [
            jax.random.uniform(draw, leaf.shape[1:], solver_dtype([leaf]))
            for leaf, draw in zip(leaves, draws, strict=True)
        ]
        totals, weights = drop_signs(leaves, uniform, read(grads.tasks), grads.present)
        direction = [a.astype(b.dtype) for a, b in zip(totals, leaves, strict=True)]
        weights /= max(sum(leaf.size for leaf in direction), 1)
        weights = weights.astype(state.task_weights.dtype)
        state = GraddropState(weights, key)
        return grads.updates(rows.pull(direction)), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
