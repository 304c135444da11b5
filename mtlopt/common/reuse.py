"""How `every` and an aggregator agree on the weights of one update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass
class Reuse:
    """The keyword `reuse` of an aggregator's update: whether to compute its weights.

    An aggregator whose direction is weights times rows asks for them by `weigh`, and
    combines the gradients outside, by one backward pass. Others do not know the
    keyword.

    Attributes:
      kept: `[tasks]`, the weights of the last computation.
      is_due: whether to compute new ones, a bool scalar.
      used: `[tasks]`, weights of this update; None until `weigh` was called.
    """

    kept: jax.Array
    is_due: jax.Array
    used: jax.Array | None = None

    def weigh(
        self, compute: Callable[[], tuple[jax.Array, Any]], state: Any
    ) -> tuple[jax.Array, Any]:
        """Returns new weights and the next state, or the weights that were kept.

        Args:
          compute: makes the new ones; traced as a branch, which runs if they are due.
            Rows that it asks for must not be used outside.
          state: before the update; it stays if the weights are reused.
        """

        def renew() -> tuple[jax.Array, Any]:
            weights, state = compute()
            return weights.astype(self.kept.dtype), state

        weights, state = jax.lax.cond(self.is_due, renew, lambda: (self.kept, state))
        self.used = weights
        return weights, state
