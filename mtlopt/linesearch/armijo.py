"""Backtracking until every task meets Armijo's condition."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt._checks import check_fraction, check_positive


class LineSearchState(NamedTuple):
    """State of `backtracking` and `fast_backtracking`.

    Attributes:
      count: steps so far, int32: the argument of a schedule of the upper bound.
      step_size: of the last step.
      trials: step sizes tried in the last step, int32; none where the direction was not
        a descent direction of every task.
      decrease: by how much the accepted trial lowered each loss at least; 0 without.
      hit_floor: whether no trial was accepted, so that the step size is the floor.
      direction_state: state of the direction finder.
    """

    count: jax.Array
    step_size: jax.Array
    trials: jax.Array
    decrease: jax.Array
    hit_floor: jax.Array
    direction_state: Any


class Search(NamedTuple):
    """Which step sizes a line search tries.

    Attributes:
      beta: share of the linear decrease that is asked for.
      shrink: factor between two trials.
      upper: first trial, a number or a schedule of the step count.
      floor: smallest trial.
      warm_start: whether to begin one trial above the last step size instead.
    """

    beta: Any
    shrink: Any
    upper: Any
    floor: Any
    warm_start: bool

    def check(self) -> None:
        """Raises a `ValueError` if a number is out of its range."""
        check_fraction("beta", self.beta)
        check_fraction("shrink", self.shrink)
        check_positive("upper", self.upper)
        check_positive("floor", self.floor)
        known = isinstance(self.upper, int | float) and isinstance(
            self.floor, int | float
        )
        if known and self.floor > self.upper:
            raise ValueError(
                f"`floor` must be at most `upper`, {self.upper}, got {self.floor}."
            )

    def init(self, direction_state: Any) -> LineSearchState:
        """Returns the state before the first step."""
        return LineSearchState(
            count=jnp.zeros([], jnp.int32),
            step_size=jnp.asarray(self._upper(jnp.zeros([], jnp.int32)), float),
            trials=jnp.zeros([], jnp.int32),
            decrease=jnp.zeros([]),
            hit_floor=jnp.array(False),
            direction_state=direction_state,
        )

    def _upper(self, count: jax.Array) -> Any:
        return self.upper(count) if callable(self.upper) else self.upper

    def run(
        self,
        evaluate: Callable[[jax.Array], jax.Array],
        slopes: jax.Array,
        descends: jax.Array,
        state: LineSearchState,
        direction_state: Any,
        present: jax.Array | None,
    ) -> LineSearchState:
        """Finds the first trial that meets Armijo's condition for all present tasks.

        Args:
          evaluate: from a step size to the losses `[tasks]` after such a step. Those
            before it are at zero: from another program they may differ in the last
            digit, which near the end of a descent is more than it gains.
          slopes: by how much a unit step lowers them to first order, `[tasks]`.
          descends: whether the direction lowers all of them, bool.
          state: the state before.
          direction_state: to be put into the state after.
          present: the tasks that count; None for all.

        Returns:
          The state after, with the step size.
        """
        dtype = state.step_size.dtype
        losses = evaluate(jnp.zeros([], dtype))
        counted = jnp.ones_like(descends) if present is None else present
        wanted = jnp.asarray(self.beta, losses.dtype) * slopes.astype(losses.dtype)

        upper = jnp.asarray(self._upper(state.count), dtype)
        floor = jnp.minimum(jnp.asarray(self.floor, dtype), upper)

        def unfinished(trial: _Trial) -> jax.Array:
            return ~trial.accepted & (trial.step_size >= floor)

        def attempt(trial: _Trial) -> _Trial:
            step_size = trial.step_size.astype(losses.dtype)
            after = evaluate(trial.step_size).astype(losses.dtype)
            # NaN and infinity fail, also as a fall to minus infinity.
            fits = jnp.isfinite(after) & (after <= losses - step_size * wanted)
            accepted = jnp.all(fits | ~counted)
            smaller = (trial.step_size * self.shrink).astype(dtype)
            return _Trial(
                jnp.where(accepted, trial.step_size, smaller),
                trial.number + 1,
                after,
                accepted,
            )

        first = upper
        if self.warm_start:
            last = (state.step_size / self.shrink).astype(dtype)
            # After a step at the floor, or before any, there is nothing to go by.
            fresh = state.hit_floor | (state.count == 0)
            first = jnp.where(fresh, first, jnp.minimum(first, last))
        start = _Trial(
            jnp.where(descends, first, 0),
            jnp.zeros([], jnp.int32),
            losses,
            jnp.array(False),
        )
        end = jax.lax.while_loop(unfinished, attempt, start)
        lowered = jnp.min(losses - end.losses, where=counted, initial=jnp.inf)
        lowered = jnp.where(end.accepted & jnp.isfinite(lowered), lowered, 0)
        return LineSearchState(
            count=state.count + 1,
            step_size=jnp.where(end.accepted, end.step_size, floor),
            trials=end.number,
            decrease=lowered.astype(state.decrease.dtype),
            hit_floor=~end.accepted,
            direction_state=direction_state,
        )


class _Trial(NamedTuple):
    step_size: jax.Array
    number: jax.Array
    losses: jax.Array
    accepted: jax.Array
