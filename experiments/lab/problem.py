"""The problem of a training: a network, its losses, and the splits."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import mtlopt

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A network as arrays and functions of them, and its data.

    `init(seed)` returns the initial parameters and model state in new arrays, so that
    the caller may donate them. The seed may be traced.
    """

    oracle: mtlopt.Oracle  # gradients, `oracle(params, batch, state)`, in training mode
    init: Callable[[int], tuple[PyTree, PyTree]]
    network: Callable[..., Any]  # `network(params, state, train=False)`, the module
    labels: Mapping[str, str]  # the owner of each leaf of the parameters
    splits: Mapping[str, Any]  # pytrees with a leading axis of examples

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.oracle.tasks


def head_labels(tasks: Any) -> dict[str, str]:
    """Returns the owners of the leaves of a network with a head for each task."""
    return {"encoder": "shared", **{f"heads/{task}": task for task in tasks}}


def make_problem(
    build: Callable[[jax.Array], Any],
    losses: Any,
    encode: Callable[[Any, PyTree], Any],
    splits: Mapping[str, Any],
    *,
    tasks: tuple[str, ...] | None = None,
) -> Problem:
    """Makes the problem of a network in `mtlopt.models`, built from a PRNG key.

    The losses map each task to `loss(model, z, batch)`, where `encode(model, batch)`
    returns the latent `z`. For stacked heads, `losses` is `mtlopt.stacked` of one loss.
    Stacked heads have no names, so `tasks` has the names.
    """
    stacked = not isinstance(losses, Mapping)
    labels = {"encoder": "shared", "heads": "stacked"}
    labels = labels if stacked else head_labels(losses)
    of_modules = mtlopt.nnx.task_grad(losses, labels, encode=encode, tasks=tasks)
    # The functions need only the shapes.
    shapes = nnx.eval_shape(functools.partial(build, jax.random.key(0)))
    _, _, oracle, merge = of_modules.pure(shapes)

    def built(seed: int) -> tuple[PyTree, PyTree]:
        params, state, _, _ = of_modules.pure(build(jax.random.key(seed)))
        return params, state

    once = functools.cache(built)  # the initialisation takes longer than a short run

    def init(seed: int) -> tuple[PyTree, PyTree]:
        make = built if isinstance(seed, jax.Array) else once
        return jax.device_put(make(seed), may_alias=False)

    def network(params: PyTree, state: PyTree, *, train: bool = False) -> Any:
        model = merge(params, state)
        if not train:
            model.eval()
        return model

    return Problem(oracle, init, network, labels, splits)


def stack_seeds(init: Callable[[int], PyTree], num_seeds: int) -> PyTree:
    """Returns the results of `init` for the seeds from 0, stacked."""
    each = [init(seed) for seed in range(num_seeds)]
    return _stacked(each)


@jax.jit
def _stacked(each: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
