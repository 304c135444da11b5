"""States of the line searches: the fields they share, and the fields of each."""

from typing import Any, NamedTuple

import jax


class LineSearchState(NamedTuple):
    """State of `backtracking`.

    Attributes:
      count: number of steps so far, int32; a schedule of the upper bound gets this
        number.
      step_size: step size of the last step.
      trials: number of step sizes that the last step tried, int32; 0 if the direction
        was not a descent direction for every task.
      decrease: the smallest decrease of any present task's loss in the step; 0 if no
        trial was accepted.
      hit_floor: whether no trial was accepted; if so, the step size is the floor.
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
      step_size: as in `LineSearchState`.
      trials: as in `LineSearchState`, but the trials move the latent.
      trial_decrease: the smallest decrease of any present loss in the accepted trial,
        on the latent as the trial moved it. The encoder's step moves the latent
        differently, so a loss may be higher after the step than before it.
      hit_floor: as in `LineSearchState`.
      direction_state: as in `LineSearchState`.
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
      step_size: step size of the last step; 0 if no check was passed.
      trials: number of step sizes tried on the latent, int32.
      trial_decrease: as in `FastLineSearchState`, but along the direction of the step.
      hit_floor: whether no check was passed; if so, the update is zero.
      direction_state: state of the direction finder.
      decrease: the smallest measured decrease of any present task's loss; 0 if no check
        was passed.
      checks: number of forward passes of the whole network at moved parameters, int32.
      descends: `[tasks]` bool, whether the encoder's own direction lowers the task's
        loss to first order; true for absent tasks.
      fell_back: whether the step comes from the search over the parameters, because the
        search on the latent gained nothing.
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
