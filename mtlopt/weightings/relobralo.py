"""ReLoBRaLo: relative losses, with a random lookback (Bischof and Kraus, 2021)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_key, check_num_tasks, check_positive, check_range
from mtlopt.common.task_weights import everyone
from mtlopt.grad import check_task_grads
from mtlopt.linalg.normalise import safe_divide
from mtlopt.weightings.by_losses import only_there


class WeightByRelobraloState(NamedTuple):
    """State of `weight_by_relobralo`.

    Attributes:
      task_weights: `[tasks]`, the moving average of weights that was used last.
      initial: `[tasks]`, each task's first loss.
      last: `[tasks]`, each task's last loss.
      count: `[tasks]` int32, how many losses each task has had.
      key: PRNG key of the next lookbacks.
    """

    task_weights: jax.Array
    initial: jax.Array
    last: jax.Array
    count: jax.Array
    key: jax.Array


def relobralo_weights(
    losses: jax.Array,
    reference: jax.Array,
    temperature: Any = 0.1,
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the weights `b[s]` `[tasks]` of `weight_by_relobralo`.

    The weights sum to the number of present tasks. `reference` are the losses `L[s]` of
    step s, `[tasks]`. A loss whose reference is zero counts as unchanged.

    Examples:
      >>> import jax.numpy as jnp
      >>> losses, last = jnp.array([1.0, 5.0]), jnp.array([2.0, 5.0])
      >>> weights = relobralo_weights(losses, last, temperature=0.5 / jnp.log(3.0))
      >>> print(*weights)  # doctest: +NUMBER
      0.5 1.5
    """
    there = everyone(len(losses), present)
    # A loss that was zero has no ratio: it counts as unchanged.
    ratio = jnp.where(reference == 0, 1, safe_divide(losses, reference))
    shares = jax.nn.softmax(only_there(ratio / temperature, there))
    return jnp.where(there, jnp.sum(there, dtype=shares.dtype) * shares, 0)


def weight_by_relobralo(
    num_tasks: int,
    temperature: Any = 0.1,
    *,
    decay: Any = 0.999,
    keep: Any = 0.999,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Favours losses that fell least since the last step and since the first step.

    .. math:: w \leftarrow \alpha \, (\rho w + (1 - \rho) \, b[0])
        + (1 - \alpha) \, b[t-1], \qquad
        b_i[s] = T \, \mathrm{softmax}_i \frac{L_j[t]}{\tau L_j[s]}

    `rho` is drawn for every update: 1 with probability `keep`, otherwise 0. A 0 is a
    random lookback: the progress since the first loss replaces the average. The first
    update uses weights of 1, and the second uses `b[t-1]` without an average. Weights
    are positive and sum to T. Ratios have no unit. If a loss is not finite, no weight
    moves. Losses must not be negative. `L_i[0]` is the first loss of task i.

    Args:
      num_tasks: number of tasks T.
      temperature: `tau`, positive; a large value gives equal weights.
      decay: `alpha`, at least 0 and below 1.
      keep: probability that there is no lookback, from 0 to 1.
      key: seed or key of the lookbacks.

    Raises:
      ValueError: if an argument is out of range.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_relobralo(2, temperature=1.0)
      >>> state = weighting.init(jnp.zeros(2))
      >>> for losses in ([4.0, 4.0], [2.0, 4.0]):
      ...     grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=losses)
      ...     grads, state = weighting.update(grads, state)
      >>> print(*state.task_weights)  # doctest: +NUMBER
      0.755 1.245

    References:
      Bischof and Kraus, *Multi-Objective Loss Balancing for Physics-Informed Deep
      Learning*, arXiv:2110.09813; the second update follows the authors' code.
    """
    check_num_tasks(num_tasks)
    check_positive("temperature", temperature)
    check_range("decay", decay, 1)
    if isinstance(keep, int | float) and not 0 <= keep <= 1:
        raise ValueError(f"`keep` must be between 0 and 1, got {keep}.")
    first_key = as_key(key)

    def init_fn(params: Any) -> WeightByRelobraloState:
        del params
        return WeightByRelobraloState(
            jnp.ones(num_tasks),
            jnp.zeros(num_tasks),
            jnp.zeros(num_tasks),
            jnp.zeros(num_tasks, jnp.int32),
            jnp.copy(first_key),
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WeightByRelobraloState]:
        del extra_args
        grads = check_task_grads(
            updates, num_tasks, params, state, "weight_by_relobralo"
        )
        weights = state.task_weights
        there = everyone(num_tasks, grads.present)
        losses = jnp.where(there, grads.losses.astype(weights.dtype), 0)
        is_first = there & (state.count == 0)
        initial = jnp.where(is_first, losses, state.initial)
        last = jnp.where(is_first, losses, state.last)

        next_key, draw_key = jax.random.split(state.key)
        from_last, from_first = (
            relobralo_weights(losses, before, temperature, there)
            for before in (last, initial)
        )
        looks_back = jax.random.uniform(draw_key, dtype=weights.dtype) >= keep
        history = jnp.where(looks_back, from_first, weights)
        # A task's second loss is the first that has a ratio.
        alpha = jnp.where(state.count == 1, 0, decay)
        moved = alpha * history + (1 - alpha) * from_last
        moves = there & ~is_first & jnp.isfinite(moved)
        weights = jnp.where(moves, moved, weights).astype(weights.dtype)
        return grads.scale_by(weights), WeightByRelobraloState(
            task_weights=weights,
            initial=initial,
            last=jnp.where(there, losses, last),
            count=jnp.where(there, optax.safe_increment(state.count), state.count),
            key=next_key,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
