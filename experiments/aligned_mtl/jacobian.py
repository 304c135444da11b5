"""The encoder's Jacobian J: how well latent gradients replace parameter gradients.

MGDA-UB, Z-alignment and FBLS assume that `J Jᵀ` is a multiple of the identity
(Aligned-MTL, section 4.2 and Fig. 3).
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.batches import take
from experiments.lab.figures import drawing
from experiments.lab.problem import Problem

PyTree = Any
Encode = Callable[[PyTree], jax.Array]  # from parameters to the latent of a batch
GRAMS = "jacobian.npz"
_NUM_IMAGES = 20  # J has a row for each unit of each


def push_cosines(encode: Encode, params: PyTree, directions: jax.Array) -> jax.Array:
    """Returns the cosines between latent directions and the moves that they cause.

    A step along `d` moves the latent along `J Jᵀ d`, to first order. The directions
    `[number, *latent]` are the tasks' gradients. Each direction costs one pullback and
    one pushforward.
    """
    _, pull = jax.vjp(encode, params)

    def one(direction: jax.Array) -> jax.Array:
        _, moved = jax.jvp(encode, (params,), pull(direction))
        norms = jnp.linalg.norm(moved) * jnp.linalg.norm(direction)
        return jnp.vdot(moved, direction) / norms

    return jnp.stack([one(direction) for direction in directions])


def grams(
    encode: Callable[[PyTree, jax.Array], jax.Array], params: PyTree, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns `J Jᵀ` between units (mean over images) and between images (over units).

    `encode(params, images)` is the latent, `[images, units]`.
    """

    def of_image(image: jax.Array) -> jax.Array:
        z, pull = jax.vjp(lambda own: encode(own, image[None])[0], params)

        def row(unit: jax.Array) -> jax.Array:
            return jnp.concatenate([x.ravel() for x in jax.tree.leaves(pull(unit))])

        return jax.lax.map(row, jnp.eye(z.size))

    rows = jax.lax.map(of_image, images)
    units = jnp.einsum("nup,nvp->uv", rows, rows) / rows.shape[0]
    images = jnp.einsum("nup,mup->nm", rows, rows) / rows.shape[1]
    return units, images


def write_grams(path: Path, problem: Problem, model: PyTree) -> None:
    """Writes both matrices for the first seed of a model `(params, state)`."""
    params, state = jax.tree.map(lambda leaf: leaf[0], model)
    images = take(problem.splits["test"], jnp.arange(_NUM_IMAGES))["image"]

    def encode(params: PyTree, images: jax.Array) -> jax.Array:
        return problem.network(params, state).encode(images)

    units, between = jax.jit(functools.partial(grams, encode))(params, images)
    partial = path.with_name(f"{path.stem}.partial.npz")
    np.savez_compressed(partial, units=units, images=between)
    os.replace(partial, path)


def draw_grams(folder: Path, source: str) -> None:
    """Draws both matrices as cosines (the first is Fig. 3), large ones dark."""
    found = np.load(folder / GRAMS)
    title = f"J Jᵀ of the trained encoder, as cosines. Data: {source}"
    with drawing(folder / "jacobian.png", title, 1, 2, figsize=(7.2, 4.2)) as grid:
        for axis, name in zip(grid.flat, ("units", "images"), strict=True):
            cosines = as_cosines(found[name])
            apart = np.abs(cosines[~np.eye(len(cosines), dtype=bool)]).mean()
            axis.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
            axis.set_title(
                f"between {len(cosines)} {name}: {apart:.2f} off the diagonal"
            )
            axis.set(xticks=[], yticks=[])


def as_cosines(gram: np.ndarray) -> np.ndarray:
    """Returns a Gram matrix with ones on its diagonal, without dead units."""
    alive = np.diag(gram) > 0
    gram = gram[np.ix_(alive, alive)]
    lengths = np.sqrt(np.diag(gram))
    return gram / np.outer(lengths, lengths)
