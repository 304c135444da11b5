"""What is trained: a network, its losses, and the splits."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import mtlopt

PyTree = Any
STACKED = {"encoder": "shared", "heads": "stacked"}


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A network as arrays and functions of them, and its data.

    Attributes:
      oracle: gradients, `oracle(params, batch, state)`, in training mode.
      init: from a seed to the initial parameters and model state, in arrays of their
        own, so that they may be donated. The seed may be traced.
      network: `network(params, state)`, the module in evaluation mode.
        With `train=True`, in training mode.
      labels: who owns which leaf of the parameters.
      splits: by name, pytrees with a leading axis of examples.
    """

    oracle: mtlopt.Oracle
    init: Callable[[int], tuple[PyTree, PyTree]]
    network: Callable[..., Any]
    labels: Mapping[str, str]
    splits: Mapping[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.oracle.tasks


def head_labels(tasks: Any) -> dict[str, str]:
    """Returns the labels of a network of the zoo with a head for each task.

    Examples:
      >>> head_labels(["left"])
      {'encoder': 'shared', 'heads/left': 'left'}
    """
    return {"encoder": "shared", **{f"heads/{task}": task for task in tasks}}


def make_problem(
    build: Callable[[jax.Array], Any],
    losses: Any,
    encode: Callable[[Any, PyTree], Any],
    splits: Mapping[str, Any],
    *,
    tasks: tuple[str, ...] | None = None,
) -> Problem:
    """Makes the problem of a network of the zoo.

    Args:
      build: from a PRNG key to the network, with an `encoder` and `heads`.
      losses: by task `loss(model, z, batch)`, or `mtlopt.stacked` of one for all.
      encode: `encode(model, batch)` returns the latent.
      splits: by name, see `Problem`.
      tasks: names of the tasks of stacked heads.
    """
    stacked = not isinstance(losses, Mapping)
    labels = STACKED if stacked else head_labels(losses)
    of_modules = mtlopt.nnx.task_grad(losses, labels, encode=encode, tasks=tasks)
    # The functions need the shapes only.
    shapes = nnx.eval_shape(functools.partial(build, jax.random.key(0)))
    _, _, oracle, merge = of_modules.pure(shapes)

    def built(seed: int) -> tuple[PyTree, PyTree]:
        params, state, _, _ = of_modules.pure(build(jax.random.key(seed)))
        return params, state

    once = functools.cache(built)  # initialising takes longer than a short run

    def init(seed: int) -> tuple[PyTree, PyTree]:
        make = built if isinstance(seed, jax.Array) else once
        return jax.tree.map(jnp.copy, make(seed))

    def network(params: PyTree, state: PyTree, *, train: bool = False) -> Any:
        model = merge(params, state)
        if not train:
            model.eval()
        return model

    return Problem(oracle, init, network, labels, splits)


def stack_seeds(init: Callable[[int], PyTree], num_seeds: int) -> PyTree:
    """Returns what `init` returns for the seeds from 0, stacked."""
    each = [init(seed) for seed in range(num_seeds)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
