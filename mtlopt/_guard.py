"""Raises an error if gradients of tasks are used as an update of parameters.

The guard is a pytree leaf on which the arithmetic of an ordinary optimizer raises an
error. It is a PRNG key: a key supports no arithmetic, but passes through `jit`, `vmap`,
`scan` and `cond` like an array. Keys of this kind draw no numbers, and their name is
the message that the user reads in JAX's error. If a transform replaces the gradients
with zeros, JAX could fill the guard with zero keys; the key shape defined here raises
an error instead. If two pytrees differ in structure, JAX's error quotes the names of
their classes, so a metaclass puts the advice into the name.
"""

import sys
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend import random

WHAT_TO_DO = "chain an aggregator before this transform"
_TAG = (
    f"mtlopt.TaskGrads: {WHAT_TO_DO}; instead of optax.contrib.sam, use "
    "mtlopt.sharpness_aware(oracle)"
)


class SaysWhatToDo(type):
    """Metaclass of pytrees that are not updates; their printed name gives advice."""

    what_to_do = ""

    def __repr__(cls) -> str:
        return f"<class 'mtlopt.{cls.__name__}': {cls.what_to_do}>"


# The calls are the comparison, `random_wrap`, and the caller of `random_wrap`.
_CALLS_TO_FULL = 3


class _KeyShape(tuple[int, ...]):
    """Shape of a key's data, which JAX compares whenever it makes a key from data.

    If JAX makes the key in order to fill an array, the user's transform asked for
    zeros. Only the call stack shows this, because filling calls no function of the
    key's implementation, all keys have the same shape and dtype, and values are unknown
    under `jit`. If a later version of JAX fills arrays in another way, zeros no longer
    raise an error, and a test reports this. All other arithmetic still raises an error.
    """

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        frame = sys._getframe(1)
        for _ in range(_CALLS_TO_FULL):
            if frame is not None and frame.f_code.co_name == "full":
                raise TypeError(
                    f"{_TAG}. The transform would replace gradients of the tasks with "
                    "zeros. Put transforms that do this (optax.zero_nans, set_to_zero, "
                    "conditionally_mask, apply_if_finite) after the aggregator."
                )
            frame = frame and frame.f_back
        return not self == other


def _no_randomness(*args: Any, **kwargs: Any) -> NoReturn:
    del args, kwargs
    raise TypeError("the guard of a mtlopt.TaskGrads draws no random numbers.")


_IMPL = random.define_prng_impl(
    key_shape=_KeyShape((1,)),
    seed=_no_randomness,
    split=_no_randomness,
    random_bits=_no_randomness,
    fold_in=_no_randomness,
    name="mtlopt_guard",
    tag=_TAG,
)


def make_guard() -> jax.Array:
    """Returns the guard as a matrix of keys, because some transforms skip vectors."""
    return jax.random.wrap_key_data(jnp.zeros((1, 1, 1), jnp.uint32), impl=_IMPL)
