"""GradDrop: picking one sign for every entry (Chen et al., NeurIPS 2020)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_key, as_task_vector, check_num_tasks
from mtlopt.aggregators.trimmed_mean import average_entries
from mtlopt.linalg.gramian import solver_dtype
from mtlopt.linalg.normalise import safe_divide
from mtlopt.task_grads import check_task_grads


class GraddropState(NamedTuple):
    """State of `graddrop`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update, averaged over the entries.
      key: PRNG key of the draws to come.
    """

    task_weights: jax.Array
    key: jax.Array


def drop_signs(
    values: jax.Array,
    uniform: jax.Array,
    leak: jax.Array | None = None,
    present: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sums each entry over the tasks that have the sign that was drawn for it.

    NaN and infinite values give NaN.

    Args:
      values: one leaf of the rows, `[tasks, ...]`.
      uniform: a number from [0, 1) for every entry, `[...]`: the positive sign is
        picked where it is below the positive sign purity.
      leak: which part of the values with the other sign passes, `[tasks]`; None for
        nothing.
      present: tasks that take part, bool `[tasks]`; None for all.

    Returns:
      The sum, `[...]`, and each value's weight in it, `[tasks, ...]`.

    Examples:
      >>> import jax.numpy as jnp
      >>> values = jnp.array([[3.0, 1.0], [-1.0, 2.0]])
      >>> for uniform in (0.7, 0.8):
      ...     print(drop_signs(values, jnp.full(2, uniform))[0])
      [3. 3.]
      [-1.  3.]
    """
    num_tasks = values.shape[0]
    column = (num_tasks,) + (1,) * (values.ndim - 1)
    values = values.astype(solver_dtype([values]))
    if present is not None:
        values = jnp.where(jnp.reshape(present, column), values, 0)
    size = jnp.sum(jnp.abs(values), axis=0)
    purity = (1 + safe_divide(jnp.sum(values, axis=0), size)) / 2
    sign = jnp.where(purity > uniform.astype(values.dtype), 1, -1).astype(values.dtype)
    weights = (values * sign >= 0).astype(values.dtype)
    if leak is not None:
        leak = leak.astype(values.dtype).reshape(column)
        weights = leak + (1 - leak) * weights
    if present is not None:
        weights = jnp.where(jnp.reshape(present, column), weights, 0)
    # Under jit the product with a 0 is a select, which would drop a NaN.
    finite = jnp.all(jnp.isfinite(values), axis=0)
    return jnp.where(finite, jnp.sum(weights * values, axis=0), jnp.nan), weights


def graddrop(
    num_tasks: int, leak: Any = None, key: int | jax.Array = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Picks one sign at random for every entry and drops the others: GradDrop.

    .. math:: d_k = \sum_i \big( \ell_i + (1 - \ell_i) M_{ik} \big) g_{ik}, \qquad
        P_k = \frac12 \Big( 1 + \frac{\sum_i g_{ik}}{\sum_i |g_{ik}|} \Big)

    with the task gradients scaled by the weightings. Entry `k` keeps its positive
    values with probability `P_k` and its negative ones otherwise: `M_ik` is 1 for the
    values with that sign. Values that agree all pass: on T equal gradients g it returns
    T g. The mean over the draws is `d_k = (a_k^2 - b_k^2) / (a_k + b_k)` for sums `a_k`
    and `-b_k` of the two signs, which is the summed gradient. No guarantee for a single
    draw: it may conflict with any task, and is no combination of the gradients. It is
    zero only where all gradients are. A zero gradient changes nothing. Not
    differentiable. Not available with streaming rows, nor in latent space with several
    microbatches: it needs the rows.

    This is TorchJD's form, lines 10 to 15 of Algorithm 1, on the rows themselves:
    those of the shared parameters, for one backward pass per task, or with
    `in_latent_space(graddrop(T))` those of the latent, for one altogether, where every
    sample's entries draw for themselves. The paper (and LibMTL) draws once for all
    samples of a batch, from latent gradients that are multiplied by the sign of the
    activation and summed over the batch; that form is not implemented.

    It acts on shared leaves only; heads keep their own task's gradient.

    Args:
      num_tasks: number of tasks T.
      leak: `l` `[tasks]`, from 0 to 1: which part of a task's dropped entries passes
        after all; ones give the summed gradient. None for zeros.
      key: seed or key of the draws.

    Returns:
      An aggregator: `TaskGrads` in, an update with the structure of the parameters out.

    Raises:
      ValueError: if `leak` has not one entry per task.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt
      >>> rows = jnp.array([[3.0, 1.0, 0.0], [1.0, 2.0, -1.0]])
      >>> grads = mtlopt.TaskGrads.from_rows(rows)
      >>> aggregator = mtlopt.graddrop(2)
      >>> print(aggregator.update(grads, aggregator.init(jnp.zeros(3)))[0])
      [ 4.  3. -1.]

    References:
      Chen et al., *Just Pick a Sign: Optimizing Deep Multitask Models with Gradient
      Sign Dropout*, NeurIPS 2020, equation 1 and Algorithm 1 with `f(P) = P`.
    """
    check_num_tasks(num_tasks)
    first_key = as_key(key)
    leaks = None if leak is None else as_task_vector("leak", leak, num_tasks)

    def init_fn(params: Any) -> GraddropState:
        del params
        return GraddropState(jnp.ones(num_tasks, float), jnp.copy(first_key))

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, GraddropState]:
        del extra_args
        grads = check_task_grads(updates, num_tasks, params)
        rows = grads.rows()
        leaves = rows.leaves()
        key, *draws = jax.random.split(state.key, 1 + len(leaves))
        direction, passed = [], []
        for leaf, draw in zip(leaves, draws, strict=True):
            uniform = jax.random.uniform(draw, leaf.shape[1:], solver_dtype([leaf]))
            total, weights = drop_signs(leaf, uniform, leaks, grads.present)
            direction.append(total.astype(leaf.dtype))
            passed.append(weights)
        weights = average_entries(passed, num_tasks)
        state = GraddropState(weights.astype(state.task_weights.dtype), key)
        return grads.updates(rows.pull(direction)), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
