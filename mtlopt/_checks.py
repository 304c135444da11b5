"""Checks arguments, so that all errors of the library have the same wording.

Limits are checked only for Python numbers, and for entries of task vectors whose values
are known. Tracers pass all checks, so `optax.inject_hyperparams` can inject every
argument that does not change the structure of the program.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

# Reads an argument with one entry per task, given the names of the tasks.
Reader = Callable[[Sequence[str]], Any]


def is_int(value: Any) -> bool:
    """Returns whether a value is a Python or NumPy int; a bool does not count."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_int(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Returns a Python int, or raises if the value is not an int or is out of range.

    Args:
      name: name of the argument.
      value: a Python or NumPy int.
      low: the least value allowed, 0 or 1.
      high: the greatest value allowed; None for no limit.
    """
    if is_int(value) and low <= value and (high is None or value <= high):
        return operator.index(value)
    wanted = "a positive int" if low else "an int that is not negative"
    wanted = wanted if high is None else f"an int from {low} to {high}"
    raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")


def check_num_tasks(num_tasks: int) -> None:
    """Raises unless `num_tasks` is a positive Python or NumPy int."""
    if not is_int(num_tasks):
        raise TypeError(f"`num_tasks` must be an int, got {type(num_tasks).__name__}.")
    if num_tasks < 1:
        raise ValueError(f"`num_tasks` must be at least 1, got {num_tasks}.")


def check_state_tasks(name: str, found: Any, num_tasks: int) -> None:
    """Raises if the state of a transform was made for another number of tasks.

    Args:
      name: name of the transform.
      found: number of tasks in its state.
      num_tasks: number of tasks that the transform was built for.
    """
    if found != num_tasks:
        raise ValueError(
            f"`state` must be the state of `{name}` for {num_tasks} tasks, got a state "
            f"for {found}. Pass the state from `init` of the same transform. A "
            "checkpoint for another number of tasks does not fit."
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
    """Returns `value` as a [tasks] array; an error names the argument."""
    if isinstance(value, Mapping):
        raise TypeError(
            f"`{name}` must be an array [tasks], got a mapping. The names of the tasks "
            "are not known here, so list the values in the order of the tasks."
        )
    vector = jnp.asarray(value)
    if vector.shape != (num_tasks,):
        raise ValueError(
            f"`{name}` must have one entry per task, shape ({num_tasks},), "
            f"got shape {vector.shape}."
        )
    return vector


def in_order(name: str, value: Mapping[str, Any], tasks: Sequence[str]) -> list[Any]:
    """Returns a mapping's values in task order; its keys must be the tasks."""
    if set(value) != set(tasks):
        raise ValueError(
            f"`{name}` must have the keys {tuple(tasks)}, the names of the tasks, got "
            f"{tuple(value)}."
        )
    return [value[task] for task in tasks]


def named_vector(name: str, value: Any, tasks: Sequence[str]) -> jax.Array:
    """Returns an array `[tasks]` from a vector or from a mapping by task name."""
    if isinstance(value, Mapping):
        value = in_order(name, value, tasks)
    return as_task_vector(name, value, len(tasks))


def task_argument(
    name: str,
    value: Any,
    num_tasks: int,
    low: float = -math.inf,
    high: float = math.inf,
) -> Reader:
    """Checks an argument with one entry per task, and returns a function that reads it.

    A function that builds a transform does not know the names of the tasks. So a
    mapping becomes a vector only at the update, when the gradients give the names.

    Args:
      name: name of the argument.
      value: a vector `[tasks]`, a mapping from task to number, or None.
      num_tasks: number of tasks.
      low: the least value that an entry may have.
      high: the greatest value that an entry may have.

    Returns:
      A function from the names of the tasks to the vector, or to None.
    """
    if value is None:
        return lambda _tasks: None
    if isinstance(value, Mapping):
        if len(value) != num_tasks or any(jnp.ndim(one) for one in value.values()):
            raise ValueError(
                f"`{name}` must have one number for each of {num_tasks} tasks, got "
                f"{dict(value)}."
            )
    else:
        as_task_vector(name, value, num_tasks)
    if high < math.inf:
        condition = f"between {low:g} and {high:g}"
    else:
        condition = "finite" if low == -math.inf else f"finite and at least {low:g}"
    for key, entry in _known_entries(value):
        if not (math.isfinite(entry) and low <= entry <= high):
            raise ValueError(f"`{name}[{key!r}]` must be {condition}, got {entry:g}.")
    return lambda tasks: named_vector(name, value, tasks)


def preference_argument(value: Any, num_tasks: int) -> Reader:
    """Checks a preference: no entry may be negative, and not all may be zero."""
    reader = task_argument("preference", value, num_tasks, low=0)
    if value is not None:
        entries = [entry for _, entry in _known_entries(value)]
        if len(entries) == num_tasks and not any(entries):
            raise ValueError("`preference` must have a positive entry, got zeros only.")
    return reader


def _known_entries(value: Any) -> Iterable[tuple[Any, float]]:
    """Returns the index or name and the number of each entry that is not a tracer."""
    if isinstance(value, Tracer):
        return []
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return []  # no single process holds all entries
    if isinstance(value, jax.Array):
        value = np.asarray(value)  # one copy instead of one per entry
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return [(key, float(one)) for key, one in pairs if not isinstance(one, Tracer)]


def by_task(tasks: Sequence[str], values: Any, axis: int = 0) -> dict[str, Any]:
    """Splits a pytree of arrays with a task axis into a mapping from task to entries.

    Entries of a NumPy array stay on the host.
    """
    for leaf in jax.tree.leaves(values):
        shape = jnp.shape(leaf)
        if not -len(shape) <= axis < len(shape) or shape[axis] != len(tasks):
            is_list = isinstance(values, list | tuple)
            hint = " Make one array of a list with jnp.asarray." if is_list else ""
            raise ValueError(
                f"`values` must have {len(tasks)} tasks along axis {axis}, got shape "
                f"{shape}.{hint}"
            )
    moved = jax.tree.map(
        lambda leaf: (np if isinstance(leaf, np.ndarray) else jnp).moveaxis(
            leaf, axis, 0
        ),
        values,
    )
    return {
        task: jax.tree.map(lambda leaf, i=i: leaf[i], moved)
        for i, task in enumerate(tasks)
    }


def as_mask(name: str, value: Any, tasks: Sequence[str]) -> Any:
    """Returns `value` as bool [tasks], in a NumPy array if known at trace time.

    Python bools and NumPy arrays are known at trace time. `value` may be a mapping by
    task name. Numbers raise an error: a weight or a count would be read as True.
    """
    num_tasks = len(tasks)
    if isinstance(value, Mapping):
        value = in_order(name, value, tasks)
    if isinstance(value, list | tuple):
        for task, flag in zip(tasks, value, strict=False):
            if isinstance(flag, str):
                raise TypeError(
                    f"`{name}` must have one bool per task, got {flag!r}. To choose "
                    "tasks by name, pass a mapping from task to bool."
                )
            if jnp.shape(flag):
                raise ValueError(
                    f"`{name}` must have one bool per task, got shape "
                    f"{jnp.shape(flag)} for task {task!r}. If this is a mask of "
                    "samples, pass mask.any()."
                )
        known = all(isinstance(flag, bool | np.bool) for flag in value)
        value = (np if known else jnp).asarray(value)
    if not isinstance(value, np.ndarray) or value.shape != (num_tasks,):
        value = as_task_vector(name, value, num_tasks)
    if value.dtype != bool:
        raise TypeError(
            f"`{name}` must be bool, got {value.dtype}. If it holds counts, pass x > 0."
        )
    return value


def task_mask(
    name: str, chosen: Sequence[str | int], tasks: Sequence[str]
) -> np.ndarray:
    """Returns a bool mask `[tasks]` of the tasks chosen by name or index."""
    members = np.zeros(len(tasks), bool)
    for task in chosen:
        if isinstance(task, str):
            check_choice(name, task, tasks)
            members[tasks.index(task)] = True
            continue
        index = operator.index(task)
        if not 0 <= index < len(tasks):
            raise ValueError(
                f"`{name}` must be between 0 and {len(tasks) - 1}, got {index}."
            )
        members[index] = True
    return members


def as_transform(name: str, value: Any) -> optax.GradientTransformationExtraArgs:
    """Returns a transform that takes extra arguments; raises for other values."""
    if hasattr(value, "init") and hasattr(value, "update"):  # of any class
        return optax.with_extra_args_support(value)
    found, cure = type(value).__name__, "Build it first, as in mgda(2)."
    if inspect.isfunction(value):  # such as a method that was not called
        needed = [
            argument.name
            for argument in inspect.signature(value).parameters.values()
            if argument.default is argument.empty
        ]
        found = f"the function {value.__name__}"
        cure = f"Call it: {value.__name__}({', '.join(needed)})."
    raise TypeError(f"`{name}` must be a gradient transformation, got {found}. {cure}")


def as_key(key: Any) -> jax.Array:
    """Returns a typed PRNG key from a key, or from a seed, which may be traced."""
    if isinstance(key, int):
        return jax.random.key(key)
    if key.ndim == 0 and jnp.issubdtype(key.dtype, jnp.integer):
        return jax.random.key(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"`key` must be an int or a typed key (jax.random.key), got {key.dtype}."
        )
    return key


class Checked(functools.partial[Any]):
    """A function that `checked` returns unchanged."""


def checked(
    function: Any,
    name: str,
    task_position: int | None = None,
    *,
    first: str = "params",
    has_latent: bool = False,
    has_state: bool = False,
) -> Any:
    """Wraps a user's function so that its errors say how mtlopt called it.

    Args:
      function: the function; a value that is not callable is returned unchanged.
      name: name of the function for errors.
      task_position: position of a stacked head, as in `map_functions`, or None.
      first: name of the first argument.
      has_latent: whether there is an encoder, whose latent the losses take.
      has_state: whether the last argument is the model's state.
    """
    if not callable(function) or isinstance(function, Checked):
        return function
    is_stacked = task_position is not None
    names = [first]
    names += ["latent"] * (has_latent and name != "encode")
    names += ["task"] * is_stacked
    names += ["*args"] + ["state"] * has_state
    stacks = " Leaves labelled 'stacked' have no task axis in this call." * is_stacked

    def run(*args: Any) -> Any:
        try:
            out = function(*args)
        except Exception as error:
            kinds = ", ".join(map(_kind, args))
            given = f"f({', '.join(names)}), with arguments ({kinds})"
            if isinstance(error, TypeError) and (differs := _differs(function, args)):
                is_whole = name.startswith("the loss") and not has_latent
                advice = " If it takes a latent, pass `encode`." * is_whole
                raise TypeError(
                    f"{name} must take {len(args)} arguments, as {given}. Its "
                    f"signature differs: {differs}.{advice}"
                ) from error
            error.add_note(f"mtlopt called {name} as {given}.{stacks}")
            raise
        if out is None:
            raise ValueError(f"{name} must return a value, got None.")
        return out

    return run


def _kind(value: Any) -> str:
    """Returns dtype and shape of an array, or the type of another value."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__


def _differs(function: Callable[..., Any], args: Sequence[Any]) -> str:
    """Returns why a function cannot take arguments, or an empty string if it can."""
    try:
        inspect.signature(function).bind(*args)
    except TypeError as mismatch:
        return str(mismatch)
    except ValueError:  # it has no signature
        pass
    return ""
