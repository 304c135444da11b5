"""A pytree leaf on which the arithmetic of an ordinary optimizer raises.

A PRNG key takes part in no arithmetic, but passes through `jit`, `vmap`, `scan` and
`cond` like an array. This kind of key draws no numbers; its name is the message that
the user reads in JAX's error.
"""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend import random


def _no_randomness(*args: Any, **kwargs: Any) -> NoReturn:
    del args, kwargs
    raise TypeError("the guard of a mtlopt.TaskGrads draws no random numbers.")


_IMPL = random.define_prng_impl(
    key_shape=(1,),
    seed=_no_randomness,
    split=_no_randomness,
    random_bits=_no_randomness,
    fold_in=_no_randomness,
    name="mtlopt_guard",
    tag="mtlopt.TaskGrads: chain an aggregator before this transform",
)


def make_guard() -> jax.Array:
    """Returns the leaf: a matrix, because some transforms pass over vectors."""
    return jax.random.wrap_key_data(jnp.zeros((1, 1, 1), jnp.uint32), impl=_IMPL)
