"""Skips updates from batches with numbers that are not finite."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_transform
from mtlopt.grad import check_no_grad
from mtlopt.task_grads import TaskGrads

PyTree = Any


class SkipNotFiniteState(NamedTuple):
    """State of `skip_not_finite`.

    Attributes:
      inner_state: state of the chain inside, from the last update that was not skipped.
      num_skipped: number of skipped updates, int32.
      num_left_out: number of tasks that were left out, summed over all updates, int32.
    """

    inner_state: Any
    num_skipped: jax.Array
    num_left_out: jax.Array


def skip_not_finite(
    inner: optax.GradientTransformation,
    *,
    per_task: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Skips an update that is not finite, and leaves the state as it was.

    Weightings that learn from losses, and aggregators that remember gradients, keep the
    NaN of one bad batch and return it from then on. `optax.apply_if_finite` after the
    aggregator protects only the parameters, so put this wrapper around the whole chain.
    An update is skipped if it has a number that is not finite, or if a finite number in
    the state would become NaN or infinite. A skipped update is zero, and the state
    stays as it was, bit for bit.

    With `per_task`, a task is left out of the update if its loss, its row (shared
    gradient) or its head's gradient is not finite; the other tasks still move. This
    check computes the rows, see `TaskGrads.leave_out_not_finite`. If the method works
    in latent space, put `in_latent_space` around this wrapper, which then checks only
    the latent's rows, at no cost. The transforms inside get a matching `active`: if
    `per_label` is among them, the head of a left-out task does not move. If no task is
    left, the whole update is skipped.

    If an update is skipped, the step functions leave the model's state unchanged as
    well. With `mtlopt.nnx`, that state still changes, because the oracle writes it
    before the update.

    Args:
      inner: a transform that returns updates of parameters: a chain of weightings, an
        aggregator and an optimizer. You may omit the optimizer, or pass only the
        optimizer.
      per_task: whether single tasks are left out; `inner` must then begin with a
        weighting or an aggregator.

    Returns:
      A transform with the same input and output as `inner`. Its state counts skipped
      updates. If `num_skipped` grows at every step, the parameters themselves are not
      finite, or the learning rate is too high.

    Raises:
      TypeError: at the update, if `inner` has weightings but no aggregator, or if the
        input is not a `TaskGrads` although `per_task` is True.

    Examples:
      >>> import mtlopt
      >>> params = {"trunk": jnp.ones(2)}
      >>> oracle = mtlopt.task_grad(
      ...     lambda params, x: jnp.stack([params["trunk"] @ x, params["trunk"] @ x]),
      ...     "shared",
      ...     tasks=("a", "b"),
      ... )
      >>> tx = skip_not_finite(
      ...     optax.chain(mtlopt.weight_by_uncertainty(2), mtlopt.sum_tasks(2))
      ... )
      >>> state = tx.init(params)
      >>> for x in (jnp.ones(2), jnp.full(2, jnp.nan), jnp.ones(2)):
      ...     updates, state = tx.update(oracle(params, x), state, params)
      >>> bool(jnp.isfinite(updates["trunk"]).all()), int(state.num_skipped)
      (True, 1)
    """
    inner = as_transform("inner", inner)

    def init_fn(params: PyTree) -> SkipNotFiniteState:
        counts = [jnp.zeros([], jnp.int32) for _ in range(2)]
        return SkipNotFiniteState(inner.init(params), *counts)

    def update_fn(
        updates: Any, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, SkipNotFiniteState]:
        check_no_grad(updates, "skip_not_finite")
        spoilt, left_out = [], 0
        if per_task:
            there = _present(updates)
            updates = updates.leave_out_not_finite()
            active = extra_args.get("active") or {}
            extra_args["active"] = active | {
                label: flag & active.get(label, True)
                for label, flag in updates.active.items()
            }
            left_out = jnp.sum(there & ~updates.present, dtype=jnp.int32)
            spoilt = [jnp.any(there) & ~jnp.any(updates.present)]
        old = state.inner_state
        moved, new = inner.update(updates, old, params, **extra_args)
        if isinstance(moved, TaskGrads):
            raise TypeError(
                "`inner` must return updates of the parameters, got TaskGrads. Chain "
                "an aggregator after the weightings, inside `skip_not_finite`."
            )
        spoilt += [jnp.any(~finite(leaf)) for leaf in jax.tree.leaves(moved)]
        spoilt += [
            # A value that starts at infinity, such as the lowest loss so far, may stay
            # there.
            jnp.any(finite(before) & ~finite(after))
            for before, after in zip(
                jax.tree.leaves(old), jax.tree.leaves(new), strict=True
            )
        ]
        skip = jnp.any(jnp.stack(spoilt)) if spoilt else jnp.asarray(False)
        moved = jax.tree.map(lambda leaf: jnp.where(skip, 0, leaf), moved)
        kept = jax.tree.map(lambda b, a: jnp.where(skip, b, a), old, new)
        return moved, SkipNotFiniteState(
            kept, state.num_skipped + skip, state.num_left_out + left_out
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _present(updates: Any) -> jax.Array:
    """Returns which tasks are present, or raises unless there are tasks."""
    if not isinstance(updates, TaskGrads):
        raise TypeError(
            "`per_task` must be False for a transform without weightings or an "
            f"aggregator, got True and updates of type {type(updates).__name__}."
        )
    if updates.present is None:
        return jnp.ones(updates.num_tasks, bool)
    return updates.present


def finite(leaf: Any) -> jax.Array:
    """Returns which numbers of a leaf are finite: integers and keys always are."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.isfinite(leaf)
    return jnp.ones(jnp.shape(leaf), bool)
