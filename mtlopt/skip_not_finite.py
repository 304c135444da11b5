"""Steps over batches whose numbers are not finite, state and all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt.task_grads import TaskGrads, check_no_grad

PyTree = Any


class SkipNotFiniteState(NamedTuple):
    """State of `skip_not_finite`.

    Attributes:
      inner_state: that of the chain inside, from the last update that was taken.
      num_skipped: number of updates that were not, int32.
    """

    inner_state: Any
    num_skipped: jax.Array


def skip_not_finite(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Takes no step, and forgets it, where its numbers are not finite.

    A weighting that learns from losses, and an aggregator that remembers gradients,
    keep the NaN of one bad batch and return it ever after. `optax.apply_if_finite`
    behind them protects the parameters only; this wrapper goes round the whole chain.
    Where an update has a number that is not finite, or the state gets one that it did
    not have, the update is zero and the state stays as it was, bit for bit: the batch
    might as well not have been there.

    Args:
      inner: a transform that returns updates of parameters: weightings, an aggregator
        and an optimizer, chained; the last may be missing, or come alone.

    Returns:
      A transform of the same input and output. Its state counts what was skipped; if
      `num_skipped` grows step by step, the parameters themselves are not finite or the
      learning rate is too high.

    Raises:
      TypeError: at the update, if `inner` has weightings but no aggregator.

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
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> SkipNotFiniteState:
        return SkipNotFiniteState(inner.init(params), jnp.zeros([], jnp.int32))

    def update_fn(
        updates: Any, state: Any, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, SkipNotFiniteState]:
        check_no_grad(updates, "skip_not_finite")
        old = state.inner_state
        moved, new = inner.update(updates, old, params, **extra_args)
        if isinstance(moved, TaskGrads):
            raise TypeError(
                "`inner` must end in updates of the parameters, got TaskGrads. Chain "
                "an aggregator behind the weightings, inside of `skip_not_finite`."
            )
        spoilt = [jnp.any(~_finite(leaf)) for leaf in jax.tree.leaves(moved)]
        spoilt += [
            # What starts from infinity, as the lowest loss so far, may stay there.
            jnp.any(_finite(before) & ~_finite(after))
            for before, after in zip(
                jax.tree.leaves(old), jax.tree.leaves(new), strict=True
            )
        ]
        skip = jnp.any(jnp.stack(spoilt)) if spoilt else jnp.asarray(False)
        moved = jax.tree.map(lambda leaf: jnp.where(skip, 0, leaf), moved)
        kept = jax.tree.map(lambda b, a: jnp.where(skip, b, a), old, new)
        return moved, SkipNotFiniteState(kept, state.num_skipped + skip)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _finite(leaf: Any) -> jax.Array:
    """Whether the numbers of a leaf are finite; counts and keys are."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.isfinite(leaf)
    return jnp.ones(jnp.shape(leaf), bool)
