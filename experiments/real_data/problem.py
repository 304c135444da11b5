"""A real problem, and the dense networks that learn it."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import mtlopt

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Tasks with one loss each, and errors by which methods are compared."""

    oracle: mtlopt.Oracle  # `oracle(params, batch)`
    init: Callable[[jax.Array], PyTree]  # from a PRNG key to parameters
    draw: Callable[[jax.Array, PyTree], PyTree]  # from a key and `train` to a batch
    errors: Callable[[PyTree, PyTree], jax.Array]  # of parameters on a split, `[parts]`
    parts: Sequence[str]  # of the errors: tasks, or components of a solution
    splits: Mapping[str, PyTree]  # train, validation, test
    # Fixed weights of the tasks to choose from, by name, in the order of a scale.
    weightings: Mapping[str, Sequence[float]]
    source: str
    steps: int  # of a run
    steps_per_epoch: int = 100  # for methods that count epochs
    standardised: "Problem | None" = None  # the same with such targets, if there are
    # Residuals by task, for equations: what their losses are mean squares of.
    residuals: Callable[[PyTree, PyTree], Mapping[str, jax.Array]] | None = None
    inside: Sequence[str] = ()  # tasks whose residuals are those of the equations
    alone: bool = True  # whether each task can be learned by a network of its own


def dense(key: jax.Array, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    """Returns dense layers; the entries of a kernel have variance one over its rows."""
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = itertools.pairwise(sizes)
    return [
        {"w": jax.random.normal(own, pair) / pair[0] ** 0.5, "b": jnp.zeros(pair[1])}
        for own, pair in zip(keys, pairs, strict=True)
    ]
