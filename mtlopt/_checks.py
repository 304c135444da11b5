"""Argument checks: one wording for every error of the library.

Only Python numbers are compared: arrays and tracers pass, so that
`optax.inject_hyperparams` can inject every non-structural argument.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_int(value: Any) -> bool:
    """Whether a value is an int of Python or NumPy; a bool is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_int(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Returns an int as one of Python, or raises unless it is in its range.

    Args:
      name: of the argument.
      value: of Python or NumPy.
      low: the least, 0 or 1.
      high: the greatest; None for any.
    """
    if is_int(value) and low <= value and (high is None or value <= high):
        return operator.index(value)
    wanted = "a positive int" if low else "an int that is not negative"
    wanted = wanted if high is None else f"an int from {low} to {high}"
    raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")


def check_num_tasks(num_tasks: int) -> None:
    """Raises unless `num_tasks` is a positive int of Python or NumPy."""
    if not is_int(num_tasks):
        raise TypeError(f"`num_tasks` must be an int, got {type(num_tasks).__name__}.")
    if num_tasks < 1:
        raise ValueError(f"`num_tasks` must be at least 1, got {num_tasks}.")


def check_state_tasks(name: str, found: Any, num_tasks: int) -> None:
    """Raises if the state of a transform has been made for other tasks.

    Args:
      name: of the transform.
      found: number of tasks of its state.
      num_tasks: number of tasks that the transform was built for.
    """
    if found != num_tasks:
        raise ValueError(
            f"`state` must be that of `{name}` for {num_tasks} tasks, got one for "
            f"{found}. Make it by `init` of the transform whose `update` takes it; a "
            "checkpoint of another number of tasks does not fit."
        )


def check_positive(name: str, value: Any) -> None:
    """Raises if `value` is a Python number that is not positive."""
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"`{name}` must be positive, got {value}.")


def check_fraction(name: str, value: Any) -> None:
    """Raises if `value` is a Python number that is not between 0 and 1."""
    if isinstance(value, int | float) and not 0 < value < 1:
        raise ValueError(f"`{name}` must be between 0 and 1, got {value}.")


def check_range(name: str, value: Any, below: float = math.inf) -> None:
    """Raises if `value` is a Python number that is negative or not below `below`."""
    if isinstance(value, int | float) and not 0 <= value < below:
        limit = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"`{name}` must be at least 0{limit}, got {value}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}, got {value!r}.")


def as_task_vector(name: str, value: Any, num_tasks: int) -> jax.Array:
    """Returns `value` as a [tasks] array, or raises naming the argument."""
    if isinstance(value, Mapping):
        raise TypeError(f"`{name}` must be an array [tasks], got a mapping.")
    vector = jnp.asarray(value)
    if vector.shape != (num_tasks,):
        raise ValueError(
            f"`{name}` must have one entry per task, shape ({num_tasks},), "
            f"got shape {vector.shape}."
        )
    return vector


def as_mask(name: str, value: Any, tasks: Sequence[str]) -> Any:
    """Returns `value` as bool [tasks]; a NumPy array stays one, known at trace time.

    It may be a mapping from the names of all tasks.
    """
    num_tasks = len(tasks)
    if isinstance(value, Mapping):
        if set(value) != set(tasks):
            raise ValueError(
                f"`{name}` must have the keys {tuple(tasks)}, got {tuple(value)}."
            )
        value = jnp.stack([jnp.asarray(value[task]) for task in tasks])
    if isinstance(value, np.ndarray) and value.shape == (num_tasks,):
        return value.astype(bool)
    return as_task_vector(name, value, num_tasks).astype(bool)


def as_key(key: Any) -> jax.Array:
    """Returns a typed PRNG key from a seed, which may be traced, or a key."""
    if isinstance(key, int):
        return jax.random.key(key)
    if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"`key` must be an int or a typed key (jax.random.key), got {key.dtype}."
        )
    return key
