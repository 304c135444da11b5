"""The pace of a run: the learning rate falls on plateaus, until the run stops.

All functions are for one run, and work under `jit` and `vmap`, so that each run has its
own pace.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.lab.best import Best, keep_best, no_best

PyTree = Any


class Pace(NamedTuple):
    """The progress of a run."""

    best: Best  # the epoch with the lowest loss so far; its score is the loss times -1
    plateau: Any  # state of `optax.contrib.reduce_on_plateau`
    epochs: jax.Array  # that are trained


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a run waits for a lower loss."""

    stop: int  # epochs without a lower loss after which the run stops
    plateau: int  # epochs without a lower loss after which the rate falls
    factor: float  # by which the learning rate falls
    min_delta: float  # the smallest fall of the loss that ends a plateau

    def start(self, model: tuple[PyTree, PyTree]) -> Pace:
        """Returns the pace before the first epoch, for parameters and model state."""
        plateau = self._plateau().init(model[0])
        return Pace(no_best(model), plateau, jnp.zeros([], jnp.int32))

    def after(self, pace: Pace, model: PyTree, loss: jax.Array) -> Pace:
        """Returns the pace after an epoch, given its model and validation loss."""
        _, plateau = self._plateau().update((), pace.plateau, value=loss)
        epochs = pace.epochs + 1
        return Pace(keep_best(pace.best, model, -loss, epochs), plateau, epochs)

    def goes_on(self, pace: Pace) -> jax.Array:
        """Returns whether the run still learns, bool `[]`."""
        return pace.epochs - pace.best.epoch < self.stop

    def _plateau(self) -> optax.GradientTransformationExtraArgs:
        return optax.contrib.reduce_on_plateau(
            factor=self.factor, patience=self.plateau, rtol=0.0, atol=self.min_delta
        )
