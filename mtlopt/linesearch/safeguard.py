"""Checks of a step with the real losses, for a search with trials on the latent."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._jaxprs import remembered_leaves
from mtlopt.common.task_weights import task_weights
from mtlopt.labels import path_string
from mtlopt.linearization import PullbackLinearization
from mtlopt.linesearch.armijo import Found, Search
from mtlopt.linesearch.states import SafeLineSearchState
from mtlopt.linesearch.steps import params_after, step_update
from mtlopt.rows.protocol import Leaves
from mtlopt.slopes import Slopes
from mtlopt.task_grads import TaskGrads


class Direction(NamedTuple):
    """A direction, and the way in which trials on the latent follow it.

    Attributes:
      shared: direction of the shared leaves.
      head_grads: gradients of the heads' leaves.
      latent: direction of the latent in trials.
      slope: slopes of the losses along `latent` and `head_grads`.
      finder_state: state of the finder after it found the direction.
    """

    shared: Leaves
    head_grads: Leaves
    latent: Leaves
    slope: Slopes
    finder_state: Any


class _Checked(NamedTuple):
    """A step whose losses were checked, with both searches for its size."""

    shared: Leaves
    head_grads: Leaves
    finder_state: Any
    trial: Found
    check: Found


def safeguarded(
    search: Search,
    grads: TaskGrads,
    params: Any,
    state: SafeLineSearchState,
    trials: Callable[[Direction, jax.Array], Found],
    encoders: Direction,
    descends: jax.Array,
    over_parameters: Callable[[], Direction],
) -> tuple[Any, SafeLineSearchState]:
    """Takes the longest step that passes the trials and raises no present loss.

    Args:
      search: the rule for the step sizes to try.
      grads: gradients of the tasks.
      params: parameters at which the gradients were computed.
      state: state before the step.
      trials: function from a direction and the first step size to the result of the
        trials on the latent.
      encoders: the direction `J^T d_z` of the encoder; see `fast_backtracking`.
      descends: `[tasks]`, whether this direction lowers each loss to first order.
      over_parameters: function that finds another direction. It is traced as a branch,
        which runs if the encoder's direction gains nothing.

    Returns:
      The update, and the state after the step.
    """
    upper, floor = search.bounds(state)
    losses = grads.losses_at(params)

    def attempt(
        direction: Direction, first: jax.Array, descends: jax.Array
    ) -> tuple[Found, Found]:
        parts = direction.shared, direction.head_grads
        useful = descends & direction.slope.descends()
        trial = trials(direction, jnp.where(useful, first, 0))
        # If the latent allows no step, its trials say nothing about the parameters.
        start = jnp.where(trial.accepted, trial.step_size, first)
        check = search.shrink_until(
            lambda step: grads.losses_at(params_after(grads, params, *parts, step)),
            losses,
            jnp.zeros_like(losses),
            jnp.where(descends, start, 0),
            floor,
            grads.present,
        )
        return trial, check

    # A step from the fallback says nothing about one along the encoder's direction.
    first = search.first(state, upper, fresh=state.fell_back)
    trial, check = attempt(encoders, first, jnp.all(descends))

    def keep() -> _Checked:
        own = encoders
        return _Checked(own.shared, own.head_grads, own.finder_state, trial, check)

    def fall_back() -> _Checked:
        other = over_parameters()
        its_trial, its_check = attempt(other, upper, other.slope.descends())
        return _Checked(
            _like(encoders.shared, other.shared),
            _like(encoders.head_grads, other.head_grads),
            other.finder_state,
            its_trial._replace(trials=trial.trials + its_trial.trials),
            its_check._replace(trials=check.trials + its_check.trials),
        )

    # A step that is too short to change any loss also passes its check.
    step = jax.lax.cond(check.gained, keep, fall_back)
    state = SafeLineSearchState(
        count=state.count + 1,
        step_size=jnp.where(step.check.accepted, step.check.step_size, 0),
        trials=step.trial.trials,
        hit_floor=~step.check.accepted,
        direction_state=step.finder_state,
        trial_decrease=step.trial.decrease.astype(state.trial_decrease.dtype),
        decrease=step.check.decrease.astype(state.decrease.dtype),
        checks=step.check.trials,
        descends=descends,
        fell_back=~check.gained,
    )
    update = step_update(grads, step.shared, step.head_grads, state.step_size)
    # The update is zero even if the direction is not finite.
    return jax.tree.map(lambda u: jnp.where(step.check.accepted, u, 0), update), state


def _like(leaves: Leaves, values: Leaves) -> Leaves:
    pairs = zip(leaves, values, strict=True)
    return [value.astype(leaf.dtype) for leaf, value in pairs]


def num_tasks_of(direction_state: Any) -> int:
    """Returns the number of tasks that a direction finder was built for."""
    try:
        return task_weights(direction_state).shape[0]
    except ValueError as error:
        raise ValueError(
            "`direction` must keep `task_weights` in its state with `safeguard=True`, "
            "as all aggregators of mtlopt do: their length gives the number of tasks."
        ) from error


def check_forgets(
    finder: optax.GradientTransformationExtraArgs,
    grads: TaskGrads,
    state: Any,
    params: Any,
    extra_args: dict[str, Any],
) -> None:
    """Raises if a direction finder carries gradients from one step to the next.

    A finder runs on gradients of the latent and, in some steps, on gradients of the
    parameters. This check only traces the finder, on the rows of the shared leaves.
    """
    rows = [
        jax.ShapeDtypeStruct((grads.num_tasks, *jnp.shape(leaf)), jnp.result_type(leaf))
        for leaf in grads.partition.split(params)[0]
    ]

    def find(rows: Leaves, state: Any) -> tuple[Any, Any]:
        linear = PullbackLinearization(rows, has_latent=True)
        seen = dataclasses.replace(grads, linear=linear)
        return finder.update(seen, state, params, **extra_args)

    paths = [path_string(path) for path, _ in jax.tree.leaves_with_path(state)]
    for path, remembered in zip(
        paths, remembered_leaves(find, rows, state), strict=True
    ):
        if remembered:
            raise ValueError(
                "`direction` must not remember gradients with `safeguard=True`, got an "
                f"aggregator that keeps gradients in its state `{path}`. Gradients of "
                "the latent would mix with gradients of the parameters. Use an "
                "aggregator without memory, such as mgda or upgrad."
            )
