"""How `every` and an aggregator agree on the weights of one update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mtlopt.task_grads import TaskGrads


@dataclasses.dataclass
class Reuse:
    """The keyword `reuse` of an aggregator's update: whether to compute new weights.

    An aggregator whose direction is a weighted sum of the task gradients gets its
    weights from `weigh`. Other aggregators do not accept this keyword.

    Attributes:
      kept: `[tasks]`, the most recently computed weights.
      is_due: whether to compute new weights, a bool scalar.
      used: `[tasks]`, the weights of this update; None until `weigh` is called.
    """

    kept: jax.Array
    is_due: jax.Array
    used: jax.Array | None = None

    def weigh(
        self,
        compute: Callable[[], tuple[jax.Array, Any]],
        keep: Callable[[jax.Array], Any],
    ) -> tuple[jax.Array, Any]:
        """Returns new or kept weights, and a second value that belongs to them.

        Both functions are traced as branches, and only one of them runs. Rows that a
        branch computes must not be used outside of it.

        Args:
          compute: returns new weights and a second value, such as the next state.
          keep: returns the second value for kept weights.
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
    """Returns whether a backward pass should stay out of the branches of a program.

    On a CPU, XLA runs `lax` convolutions several times slower inside a branch than
    outside.
    """
    return jax.default_backend() == "cpu" and grads.linear.convolves()
