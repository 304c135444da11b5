"""A real problem, and the dense networks for it."""

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
    """Tasks with one loss each, and the errors that compare methods."""

    oracle: mtlopt.Oracle  # `oracle(params, batch)`
    init: Callable[[jax.Array], PyTree]  # from a PRNG key to parameters
    draw: Callable[[jax.Array, PyTree], PyTree]  # from a key and `train` to a batch
    errors: Callable[[PyTree, PyTree], jax.Array]  # of parameters on a split, `[parts]`
    parts: Sequence[str]  # names of the errors: tasks, or components of a solution
    splits: Mapping[str, PyTree]  # train, validation, test
    # Fixed weights of the tasks to choose from, by name, in the order of a scale.
    weightings: Mapping[str, Sequence[float]]
    source: str
    steps: int  # of a run
    steps_per_epoch: int = 100  # for methods that count epochs
    standardised: "Problem | None" = None  # the same problem, if there is one
    # Residuals by task, for equations; the losses are their mean squares.
    residuals: Callable[[PyTree, PyTree], Mapping[str, jax.Array]] | None = None
    inside: Sequence[str] = ()  # tasks whose residuals come from equations
    alone: bool = True  # whether each task can be learned by a network of its own


def dense(key: jax.Array, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    """Returns dense layers; a kernel with n rows has entries of variance 1 / n."""
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = itertools.pairwise(sizes)
    return [
        {"w": jax.random.normal(own, pair) / pair[0] ** 0.5, "b": jnp.zeros(pair[1])}
        for own, pair in zip(keys, pairs, strict=True)
    ]
