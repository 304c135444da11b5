"""How `every` and an aggregator agree on the weights of one update."""

import dataclasses

import jax


@dataclasses.dataclass
class Reuse:
    """The keyword `reuse` of an aggregator's update: weights that go in or come out.

    An aggregator whose direction is weights times rows takes the weights that it is
    given in the place of its own, and says which it used. Others do not know the
    keyword and say nothing.

    Attributes:
      given: `[tasks]`, weights to use; None to compute them.
      used: `[tasks]`, weights of the rows, before anything shortens the direction; None
        until an aggregator says it.
    """

    given: jax.Array | None = None
    used: jax.Array | None = None
