"""Batches of a split that fits on the device, and functions applied to batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def num_examples(split: PyTree) -> int:
    """Returns the number of examples of a split."""
    return jax.tree.leaves(split)[0].shape[0]


def take(split: PyTree, rows: jax.Array) -> PyTree:
    """Returns the examples `rows` of a split."""
    return jax.tree.map(lambda leaf: leaf[rows], split)


def epoch_order(
    num_examples: int, batch_size: int, num_seeds: int, epoch: int
) -> jax.Array:
    """Returns the examples of every batch of an epoch, for all seeds.

    The order depends only on seed and epoch, so a resumed run needs no stored key. The
    last examples that do not fill a batch are left out.

    Examples:
      >>> epoch_order(10, 4, num_seeds=3, epoch=0).shape
      (3, 2, 4)
    """
    num_steps = num_examples // batch_size

    def one(seed: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        order = jax.random.permutation(key, num_examples)
        return order[: num_steps * batch_size].reshape(num_steps, batch_size)

    return jax.vmap(one)(jnp.arange(num_seeds))


def host_order(num_examples: int, size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the batches of one seed, in a random order of NumPy: `[steps, size]`."""
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    num_steps = num_examples // size
    return order[: num_steps * size].reshape(num_steps, size)


def map_batches(
    function: Callable[[PyTree], PyTree], split: PyTree, size: int, *, axis: int = 0
) -> PyTree:
    """Applies a function to a whole split, batch by batch, to limit the memory.

    `axis` is the axis of examples in the function's results.

    Examples:
      >>> print(map_batches(lambda batch: 2 * batch, jnp.arange(5), 2))
      [0 2 4 6 8]
    """
    num = num_examples(split)
    size = min(size, num)
    # The last batch is filled up with examples from the front, which are cut off below.
    order = jnp.arange(-(-num // size) * size) % num
    rows = order.reshape(-1, size)
    parts = jax.lax.map(lambda own: function(take(split, own)), rows)

    def join(leaf: jax.Array) -> jax.Array:
        leaf = jnp.moveaxis(leaf, 0, axis)
        leaf = leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])
        return jax.lax.slice_in_dim(leaf, 0, num, axis=axis)

    return jax.tree.map(join, parts)
