"""Raises if gradients of tasks are used as an update of parameters.

A pytree leaf on which the arithmetic of an ordinary optimizer raises: a PRNG key takes
part in no arithmetic, but passes through `jit`, `vmap`, `scan` and `cond` like an
array. This kind of key draws no numbers; its name is the message that the user reads in
JAX's error. JAX would make zeros like any key, for transforms that replace gradients
instead of computing with them; the shape of this one refuses. And a class whose name,
which JAX quotes if two structures differ, says what to do.
"""

import sys
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend import random

WHAT_TO_DO = "chain an aggregator before this transform"
_TAG = (
    f"mtlopt.TaskGrads: {WHAT_TO_DO}; in place of optax.contrib.sam take "
    "mtlopt.sharpness_aware(oracle)"
)


class SaysWhatToDo(type):
    """Metaclass of pytrees that are no update: their name says what to do."""

    what_to_do = ""

    def __repr__(cls) -> str:
        return f"<class 'mtlopt.{cls.__name__}': {cls.what_to_do}>"


# From the comparison to `full`: the comparison, `random_wrap`, and who calls it.
_CALLS_TO_FULL = 3


class _KeyShape(tuple[int, ...]):
    """Shape of a key's data, which JAX compares whenever it makes a key of some data.

    If it does so to fill an array, somebody asked for zeros. The stack is looked at,
    because nothing else tells: filling calls no function of a kind of key, the shape
    and dtype are those of every other key, and values are not known under `jit`. If
    another version of JAX fills in another way, zeros are not refused, and a test says
    so; all other arithmetic is.
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
                    f"{_TAG}. It would replace gradients of the tasks by zeros. Put "
                    "what does (optax.zero_nans, set_to_zero, conditionally_mask, "
                    "apply_if_finite) after the aggregator."
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
    """Returns the leaf: a matrix, because some transforms pass over vectors."""
    return jax.random.wrap_key_data(jnp.zeros((1, 1, 1), jnp.uint32), impl=_IMPL)
