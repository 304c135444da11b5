"""STCH: smooth Chebyshev scalarization of losses and log-losses (Lin et al., 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import (
    as_int,
    check_num_tasks,
    check_positive,
    preference_argument,
    task_argument,
)
from mtlopt.common.task_weights import everyone
from mtlopt.grad import check_task_grads
from mtlopt.linalg.normalise import safe_divide
from mtlopt.linalg.reductions import reduce_each
from mtlopt.weightings.by_losses import (
    above_reference,
    only_there,
    preference_of,
    weight_by_losses,
)
from mtlopt.weightings.log import log_weights


def _shares(values: jax.Array, mu: Any, there: jax.Array) -> jax.Array:
    """Returns the softmax of `values / mu` over the present tasks."""
    values = only_there(values, there)
    (largest,) = reduce_each(maxima=[values])
    # The largest value is subtracted first, so that no quotient by a small `mu`
    # overflows. A comparison finds it, because a large value less itself is not always
    # zero: in a fused multiply-add, the product is not rounded.
    below = jnp.minimum((values - largest) / mu, 0)
    return jnp.where(there, jax.nn.softmax(jnp.where(values == largest, 0, below)), 0)


def stch_weights(
    losses: jax.Array,
    mu: Any = 1.0,
    preference: Any = None,
    reference: Any = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the weights `w` `[tasks]` of `weight_by_stch`; `p` for a single task.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(stch_weights(jnp.array([1.0, 1.0])))
      [0.25 0.25]
    """
    losses = jnp.asarray(losses)
    there = everyone(len(losses), present)
    preference = preference_of(losses, preference, present)
    values = preference * above_reference(losses, reference, present)
    return preference * _shares(values, mu, there)


def weight_by_stch(
    num_tasks: int, mu: Any = 1.0, preference: Any = None, reference: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Minimises a smooth maximum of the weighted losses: STCH.

    .. math:: S = \mu \log \sum_i \exp \big( p_i (L_i - z_i) / \mu \big), \qquad
        w_i = p_i \, \mathrm{softmax}_i \big( p (L - z) / \mu \big)

    `S` exceeds the largest `p_i (L_i - z_i)` by at most `mu log T`. A small `mu` gives
    `weight_by_chebyshev`, and a large `mu` gives fixed weights `p / T`. `mu` has the
    unit of the weighted losses: 1 is small for losses of 1,000. For equal gradients `g`
    and the default `p`, `sum_tasks` gives `g / T`.

    Args:
      num_tasks: number of tasks T.
      mu: softness, positive. The paper uses values from 0.01 to 1.
      preference: `p`, `[tasks]` or by name, at least 0, used as given; `1/T` if None.
      reference: `z`, lower bounds of the losses, `[tasks]` or by name; zero if None.

    Raises:
      ValueError: if an argument is out of range or does not fit the tasks.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_stch(2, mu=0.5, preference=jnp.ones(2))
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=[1.0, 2.0])
      >>> _, state = weighting.update(grads, weighting.init(jnp.zeros(2)))
      >>> print(*state.task_weights)  # doctest: +NUMBER
      0.119 0.881

    References:
      Lin et al., *Smooth Tchebycheff Scalarization*, ICML 2024.
    """
    check_positive("mu", mu)

    def weights(
        losses: jax.Array, present: jax.Array | None, preference: Any, reference: Any
    ) -> jax.Array:
        return stch_weights(losses, mu, preference, reference, present)

    return weight_by_losses(
        "weight_by_stch",
        num_tasks,
        weights,
        preference=preference_argument(preference, num_tasks),
        reference=task_argument("reference", reference, num_tasks),
    )


class WeightByLogStchState(NamedTuple):
    """State of `weight_by_log_stch`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
      count: number of updates so far, int32.
      nadir: `[tasks]`, mean of the losses averaged so far.
      seen: `[tasks]`, how many losses of each task are averaged in `nadir`.
    """

    task_weights: jax.Array
    count: jax.Array
    nadir: jax.Array
    seen: jax.Array


def log_stch_weights(
    losses: jax.Array, nadir: Any, mu: Any = 1.0, present: jax.Array | None = None
) -> jax.Array:
    """Returns the weights `w` `[tasks]` of `weight_by_log_stch` after the warm-up.

    `nadir` is the `n` of `weight_by_log_stch`, `[tasks]`. A loss or a nadir of zero
    gives weight zero, and a negative loss gives NaN. A single task has weight `1 / L`.

    Examples:
      >>> import jax.numpy as jnp
      >>> losses, nadir = jnp.array([2.0, 6.0]), jnp.array([2.0, 2.0])
      >>> print(*log_stch_weights(losses, nadir, mu=0.5))  # doctest: +NUMBER
      0.1 0.3
    """
    losses = jnp.asarray(losses)
    nadir = jnp.asarray(nadir, losses.dtype)
    there = everyone(len(losses), present)
    ratio_known = there & (losses != 0) & (nadir != 0)
    logs = jnp.log(jnp.where(ratio_known, losses, 1))
    logs -= jnp.log(jnp.where(ratio_known, nadir, 1))
    shares = _shares(logs, mu, ratio_known)
    number = jnp.sum(there, dtype=losses.dtype)
    return jnp.where(ratio_known, safe_divide(number * shares, losses), 0)


def weight_by_log_stch(
    num_tasks: int, mu: Any = 1.0, warmup_steps: int = 1, nadir_steps: int | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Minimises a smooth maximum of log-losses, relative to a warm-up: STCH.

    .. math:: S = T \mu \log \sum_i \Big( \frac{L_i}{n_i} \Big)^{1/\mu}, \qquad
        w_i = \frac{T}{L_i} \mathrm{softmax}_i \Big( \frac{\log (L_i / n_i)}{\mu} \Big)

    The nadir `n_i` is the mean loss over the warm-up, or over its last `nadir_steps`
    updates. During the warm-up `S = sum_i log L_i`. The task whose loss has fallen
    least counts most. `mu` has no unit: a constant factor of a loss changes nothing.
    For T equal gradients g and equal losses `L`, `sum_tasks` gives `T g / L`. A task
    that is absent in all updates that `n_i` averages takes its next loss as its nadir.

    Args:
      num_tasks: number of tasks T.
      mu: softness, positive.
      warmup_steps: number of updates before the nadir is known, a Python int.
      nadir_steps: how many of the last warm-up updates are averaged; None for all.

    Raises:
      ValueError: if `mu` or a number of steps is out of range.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> weighting = mtlopt.weight_by_log_stch(2)
      >>> state = weighting.init(jnp.zeros(2))
      >>> for losses in ([4.0, 100.0], [1.0, 75.0]):
      ...     grads = mtlopt.TaskGrads.from_rows(jnp.eye(2), losses=losses)
      ...     grads, state = weighting.update(grads, state)
      >>> print(state.nadir, state.task_weights)
      [  4. 100.] [0.5  0.02]

    References:
      Lin et al., *Smooth Tchebycheff Scalarization*, ICML 2024, as in their code.
    """
    check_num_tasks(num_tasks)
    check_positive("mu", mu)
    warmup_steps = as_int("warmup_steps", warmup_steps)
    averaged = warmup_steps  # the last ones of the warm-up
    if nadir_steps is not None:
        averaged = as_int("nadir_steps", nadir_steps, high=warmup_steps)

    def init_fn(params: Any) -> WeightByLogStchState:
        del params
        # Separate arrays, because the caller may donate the state.
        return WeightByLogStchState(
            jnp.ones(num_tasks),
            jnp.zeros([], jnp.int32),
            jnp.zeros(num_tasks),
            jnp.zeros(num_tasks),
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, WeightByLogStchState]:
        del extra_args
        grads = check_task_grads(
            updates, num_tasks, params, state, "weight_by_log_stch"
        )
        losses = grads.losses.astype(state.nadir.dtype)
        there = everyone(len(losses), grads.present)
        warm = state.count < warmup_steps
        measured = there & jnp.where(
            warm, state.count >= warmup_steps - averaged, state.seen == 0
        )
        seen = state.seen + measured.astype(losses.dtype)
        nadir = jnp.where(
            measured,
            state.nadir + safe_divide(losses - state.nadir, seen),
            state.nadir,
        )
        weights = jnp.where(
            warm,
            log_weights(losses, there),
            log_stch_weights(losses, nadir, mu, there),
        )
        return grads.scale_by(weights), WeightByLogStchState(
            weights, jnp.asarray(optax.safe_increment(state.count)), nadir, seen
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
