"""States of the line searches: the same fields, and what each of them knows."""

from typing import Any, NamedTuple

import jax


class LineSearchState(NamedTuple):
    """State of `backtracking`.

    Attributes:
      count: steps so far, int32: the argument of a schedule of the upper bound.
      step_size: of the last step.
      trials: step sizes tried in the last step, int32; none if the direction was not a
        descent direction of every task.
      decrease: by how much the step lowered each present task's loss at least; 0 if no
        trial was accepted.
      hit_floor: whether no trial was accepted, so that the step size is the floor.
      direction_state: state of the direction finder.
    """

    count: jax.Array
    step_size: jax.Array
    trials: jax.Array
    decrease: jax.Array
    hit_floor: jax.Array
    direction_state: Any


class FastLineSearchState(NamedTuple):
    """State of `fast_backtracking`.

    Attributes:
      count: as in `LineSearchState`.
      step_size: likewise.
      trials: likewise; on the latent.
      trial_decrease: by how much the accepted trial lowered each present loss at least,
        on the latent as the trial moved it. The encoder moves it elsewhere, so a loss
        may be higher after the step than before it.
      hit_floor: as in `LineSearchState`.
      direction_state: likewise.
    """

    count: jax.Array
    step_size: jax.Array
    trials: jax.Array
    trial_decrease: jax.Array
    hit_floor: jax.Array
    direction_state: Any


class SafeLineSearchState(NamedTuple):
    """State of `fast_backtracking(..., safeguard=True)`.

    Attributes:
      count: as in `LineSearchState`.
      step_size: of the last step; 0 if no check was passed.
      trials: step sizes tried on the latent, int32.
      trial_decrease: as in `FastLineSearchState`, along the direction of the step.
      hit_floor: whether no check was passed, so that the update is zero.
      direction_state: state of the direction finder.
      decrease: by how much the step lowered each present task's loss at least, as
        measured; 0 if no check was passed.
      checks: forward passes of the whole network at moved parameters, int32.
      descends: `[tasks]` bool, whether the encoder's own direction lowers the task's
        loss to first order; true for absent tasks.
      fell_back: whether the step was looked for over the parameters instead.
    """

    count: jax.Array
    step_size: jax.Array
    trials: jax.Array
    trial_decrease: jax.Array
    hit_floor: jax.Array
    direction_state: Any
    decrease: jax.Array
    checks: jax.Array
    descends: jax.Array
    fell_back: jax.Array
