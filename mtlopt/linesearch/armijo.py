"""Shrinking a step until every task's loss has fallen enough."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt._checks import check_fraction, check_positive

Evaluate = Callable[[jax.Array], jax.Array]


class Found(NamedTuple):
    """Result of a search.

    Attributes:
      step_size: the accepted step size; below the floor if no trial was accepted.
      trials: number of step sizes tried, int32.
      accepted: whether the last trial was accepted.
      decrease: the smallest decrease of any present loss; 0 if no trial was accepted.
      gained: whether any present loss fell.
    """

    step_size: jax.Array
    trials: jax.Array
    accepted: jax.Array
    decrease: jax.Array
    gained: jax.Array


class Search(NamedTuple):
    """The rule for the step sizes that a line search tries.

    Attributes:
      beta: fraction of the first-order decrease that each loss must reach.
      shrink: factor from one trial step size to the next.
      upper: the first step size to try, a number or a schedule of the step count.
      floor: the smallest step size to try.
      warm_start: whether the first trial is the last step size divided by `shrink`, if
        that is below `upper`. In the first step, and after a step without an accepted
        trial, the first trial is `upper` nevertheless.
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

    def initial(self, direction_state: Any) -> dict[str, Any]:
        """Returns the initial values of the fields that all states share."""
        return {
            "count": jnp.zeros([], jnp.int32),
            "step_size": jnp.asarray(self._upper(jnp.zeros([], jnp.int32)), float),
            "trials": jnp.zeros([], jnp.int32),
            "hit_floor": jnp.array(False),
            "direction_state": direction_state,
        }

    def after(
        self, state: Any, found: Found, otherwise: Any, direction_state: Any
    ) -> dict[str, Any]:
        """Returns the fields that all states share, after a step.

        Args:
          state: state before the step.
          found: result of the search.
          otherwise: the step size to store if no trial was accepted.
          direction_state: state of the direction finder.
        """
        return {
            "count": state.count + 1,
            "step_size": jnp.where(found.accepted, found.step_size, otherwise),
            "trials": found.trials,
            "hit_floor": ~found.accepted,
            "direction_state": direction_state,
        }

    def bounds(self, state: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the upper bound of the step size, and the floor.

        Args:
          state: state of the line search before the step.
        """
        dtype = state.step_size.dtype
        upper = jnp.asarray(self._upper(state.count), dtype)
        return upper, jnp.minimum(jnp.asarray(self.floor, dtype), upper)

    def first(self, state: Any, upper: jax.Array, fresh: Any = False) -> jax.Array:
        """Returns the first trial of a step.

        Args:
          state: state of the line search before the step.
          upper: the upper bound.
          fresh: bool, whether to ignore the last step size. Before the first step, or
            if no trial was accepted, the last step size is always ignored.
        """
        if not self.warm_start:
            return upper
        last = (state.step_size / self.shrink).astype(upper.dtype)
        fresh = fresh | state.hit_floor | (state.count == 0)
        return jnp.where(fresh, upper, jnp.minimum(upper, last))

    def _upper(self, count: jax.Array) -> Any:
        return self.upper(count) if callable(self.upper) else self.upper

    def armijo(
        self,
        evaluate: Evaluate,
        slopes: jax.Array,
        first: jax.Array,
        floor: jax.Array,
        present: jax.Array | None,
    ) -> Found:
        """Finds the first trial after which every present loss has fallen enough.

        Args:
          evaluate: function from a step size to the losses `[tasks]` after this step.
            The losses before the step also come from this function, at step size zero,
            because the losses of another program may differ in their last digits. Near
            the end of a descent, such a difference is larger than the decrease of a
            step.
          slopes: `[tasks]`, the decrease of each loss for a unit step, to first order.
          first: the first trial; a number below `floor` means no trial.
          floor: the smallest trial.
          present: the tasks that count; None means all.
        """
        losses = evaluate(jnp.zeros_like(first))
        wanted = jnp.asarray(self.beta, losses.dtype) * slopes.astype(losses.dtype)
        return self.shrink_until(evaluate, losses, wanted, first, floor, present)

    def shrink_until(
        self,
        evaluate: Evaluate,
        losses: jax.Array,
        wanted: jax.Array,
        first: jax.Array,
        floor: jax.Array,
        present: jax.Array | None,
    ) -> Found:
        """Finds the first trial that lowers each present loss by `step_size * wanted`.

        Args:
          evaluate: as in `armijo`.
          losses: `[tasks]`, the losses before the step.
          wanted: `[tasks]`, how much a unit step must lower each loss.
          first: the first trial; a number below `floor` means no trial.
          floor: the smallest trial.
          present: the tasks that count; None means all.
        """
        counted = jnp.ones(losses.shape, bool) if present is None else present

        def unfinished(trial: _Trial) -> jax.Array:
            return ~trial.accepted & (trial.step_size >= floor)

        def attempt(trial: _Trial) -> _Trial:
            step_size = trial.step_size.astype(losses.dtype)
            after = evaluate(trial.step_size).astype(losses.dtype)
            # NaN and infinity fail, and so does a fall to minus infinity.
            fits = jnp.isfinite(after) & (after <= losses - step_size * wanted)
            accepted = jnp.all(fits | ~counted)
            smaller = (trial.step_size * self.shrink).astype(first.dtype)
            return _Trial(
                jnp.where(accepted, trial.step_size, smaller),
                trial.number + 1,
                after,
                accepted,
            )

        start = _Trial(first, jnp.zeros([], jnp.int32), losses, jnp.array(False))
        end = jax.lax.while_loop(unfinished, attempt, start)
        fallen = losses - end.losses
        least = jnp.min(fallen, where=counted, initial=jnp.inf)
        return Found(
            step_size=end.step_size,
            trials=end.number,
            accepted=end.accepted,
            decrease=jnp.where(end.accepted & jnp.isfinite(least), least, 0),
            gained=end.accepted & jnp.any(counted & (fallen > 0)),
        )


class _Trial(NamedTuple):
    step_size: jax.Array
    number: jax.Array
    losses: jax.Array
    accepted: jax.Array
