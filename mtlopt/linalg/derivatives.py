"""Values without a derivative, or with a first derivative only."""

from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.linalg.unit_rows import Rotated


def constant(rotated: Rotated | None) -> Rotated | None:
    """Returns the products of the rotated rows without their derivative."""
    if rotated is None or isinstance(rotated, jax.tree_util.Partial):
        return jax.lax.stop_gradient(rotated)
    return lambda basis: jax.lax.stop_gradient(rotated(basis))


@jax.custom_jvp
def first_only(primal: jax.Array) -> jax.Array:
    """Returns a zero to add to a first derivative; differentiating the sum raises."""
    return jnp.zeros([], primal.dtype)


@first_only.defjvp
def _(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise NotImplementedError(
        "task weights have first derivatives only. In one of the two derivatives, make "
        "the weights constant with jax.lax.stop_gradient."
    )
