"""The best epoch of each run, chosen by validation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class Best(NamedTuple):
    """The best model so far; several runs have a leading axis."""

    model: PyTree  # parameters and state then
    score: jax.Array  # score of the model; higher is better
    epoch: jax.Array  # from 1; 0 for none yet


def no_best(model: PyTree, runs: tuple[int, ...] = ()) -> Best:
    """Returns a copy of the model, with scores of shape `runs` that any score beats."""
    model = jax.device_put(model, may_alias=False)
    return Best(model, jnp.full(runs, -jnp.inf), jnp.zeros(runs, jnp.int32))


@jax.jit
def keep_best(best: Best, model: PyTree, score: jax.Array, epoch: Any) -> Best:
    """Keeps the model of each run whose score beats its best so far."""
    better = score > best.score
    return Best(
        choose(better, model, best.model),
        jnp.where(better, score, best.score),
        jnp.where(better, epoch, best.epoch),
    )


def choose(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Chooses between trees, run by run if the condition has an axis of runs."""

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        ones = [1] * (a.ndim - condition.ndim)
        return jnp.where(condition.reshape(*condition.shape, *ones), a, b)

    return jax.tree.map(one, new, old)
