"""The dominance rate along a run (Aligned-MTL, definition 1), beside the training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mtlopt
from experiments.lab.batches import take
from mtlopt.linalg.principal_axes import principal_axes
from mtlopt.linalg.procrustes import aligned_matrix

PyTree = Any

# `align(shared, latent) -> A`: what a method multiplies the task gradients by, from the
# Gramians over the shared parameters and of the latent. Its gradients A G have the
# Gramian A (G G') A'.
ALIGNMENTS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "aligned_mtl": lambda shared, _: aligned_matrix(principal_axes(shared)),
    "aligned_mtl_ub": lambda _, latent: aligned_matrix(principal_axes(latent)),
}


def make_dominance(
    oracle: mtlopt.Oracle, methods: tuple[str, ...]
) -> Callable[..., dict[str, jax.Array]]:
    """Returns the jitted `measure(params, state, order, step, data)` for all methods.

    It returns the dominance rates `[seeds]` on the batch that the given step of the
    epoch is about to use: `"raw"` for the gradients over the shared parameters, and for
    each aligning method the rate over the same parameters after its alignment.
    """
    alignments = {name: ALIGNMENTS[name] for name in methods if name in ALIGNMENTS}

    def measure(
        params: PyTree, state: PyTree, order: jax.Array, step: jax.Array, data: PyTree
    ) -> dict[str, jax.Array]:
        grads = oracle(params, take(data, order[step]), state)
        shared = grads.rows().gramian()
        latent = grads.in_latent_space().rows().gramian()
        rates = {"raw": mtlopt.dominance_rate(shared)}
        for name, align in alignments.items():
            matrix = align(shared, latent)
            aligned = jnp.linalg.multi_dot(
                [matrix, shared, matrix.T], precision=jax.lax.Precision.HIGHEST
            )
            rates[name] = mtlopt.dominance_rate(aligned)
        return rates

    return jax.jit(jax.vmap(measure, in_axes=(0, 0, 0, None, None)))
