"""How `every` and an aggregator agree on the weights of one update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mtlopt.task_grads import TaskGrads


@dataclasses.dataclass
class Reuse:
    """The keyword `reuse` of an aggregator's update: whether to compute its weights.

    An aggregator whose direction is weights times rows asks for them by `weigh`. Others
    do not know the keyword.

    Attributes:
      kept: `[tasks]`, the weights of the last computation.
      is_due: whether to compute new ones, a bool scalar.
      used: `[tasks]`, weights of this update; None until `weigh` was called.
    """

    kept: jax.Array
    is_due: jax.Array
    used: jax.Array | None = None

    def weigh(
        self,
        compute: Callable[[], tuple[jax.Array, Any]],
        keep: Callable[[jax.Array], Any],
    ) -> tuple[jax.Array, Any]:
        """Returns new weights, or those that were kept, and what comes with them.

        Both functions are traced as branches, of which one runs. Rows that they ask for
        must not be used outside.

        Args:
          compute: returns new weights, and the state after the update or the like.
          keep: returns the second of these for weights that are kept.
        """

        def renew() -> tuple[jax.Array, Any]:
            weights, rest = compute()
            return weights.astype(self.kept.dtype), rest

        weights, rest = jax.lax.cond(
            self.is_due, renew, lambda: (self.kept, keep(self.kept))
        )
        self.used = weights
        return weights, rest


def slow_in_branches(grads: TaskGrads) -> bool:
    """Whether a backward pass should not be in a branch of a program.

    On a CPU, XLA runs `lax` convolutions several times slower there.
    """
    return jax.default_backend() == "cpu" and grads.linear.convolves()
