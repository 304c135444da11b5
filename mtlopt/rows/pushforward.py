"""The transpose of a pullback."""

from collections.abc import Callable

import jax

from mtlopt.rows.arithmetic import inner_products
from mtlopt.rows.protocol import Leaves


def pushforward(
    pull: Callable[[Leaves], Leaves], rows: Leaves
) -> Callable[[Leaves], Leaves]:
    """Returns the transpose of a pullback, from a shared to a latent direction.

    Args:
      pull: function from one latent cotangent to the shared leaves.
      rows: latent rows `[tasks, ...]`, for their shapes.
    """
    push = jax.linear_transpose(pull, [leaf[0] for leaf in rows])
    return lambda direction: push(direction)[0]


def along(
    pull: Callable[[Leaves], Leaves], rows: Leaves, direction: Leaves
) -> jax.Array:
    """Returns the inner products of pulled rows with a shared direction, `[tasks]`."""
    return inner_products(rows, pushforward(pull, rows)(direction))
