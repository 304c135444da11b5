"""The dominance rate (Aligned-MTL, definition 1), measured during the training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mtlopt
from experiments.aligned_mtl.jacobian import push_cosines
from experiments.lab.batches import take
from experiments.lab.problem import Problem
from mtlopt.linalg.principal_axes import principal_axes
from mtlopt.linalg.procrustes import aligned_matrix

PyTree = Any

# `align(shared, latent) -> A` returns the matrix by which a method multiplies the task
# gradients. Its arguments are the Gramians of the gradients with respect to the shared
# parameters and to the latent. The gradients A G have the Gramian A (G G') A'.
ALIGNMENTS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "aligned_mtl": lambda shared, _: aligned_matrix(principal_axes(shared)),
    "aligned_mtl_ub": lambda _, latent: aligned_matrix(principal_axes(latent)),
}


def make_dominance(problem: Problem) -> Callable[..., dict[str, jax.Array]]:
    """Returns the jitted `measure(params, state, order, step, data)`.

    It returns numbers `[seeds]` on the batch that the given step of the epoch is about
    to use. `"raw"` is the dominance rate of the gradients with respect to the shared
    parameters. For each alignment, there is the dominance rate of the aligned
    gradients. `"spread"` is the result of `latent_spread`, and `"cosine"` is the mean
    of `push_cosines` over the tasks.
    """

    def measure(
        params: PyTree, state: PyTree, order: jax.Array, step: jax.Array, data: PyTree
    ) -> dict[str, jax.Array]:
        batch = take(data, order[step])
        grads = problem.oracle(params, batch, state)
        shared = grads.rows().gramian()
        latent = grads.in_latent_space().rows().gramian()
        rates = {"raw": mtlopt.dominance_rate(shared)}
        rates["spread"] = mtlopt.latent_spread(grads)
        for name, align in ALIGNMENTS.items():
            matrix = align(shared, latent)
            aligned = jnp.linalg.multi_dot(
                [matrix, shared, matrix.T], precision=jax.lax.Precision.HIGHEST
            )
            rates[name] = mtlopt.dominance_rate(aligned)

        def encode(params: PyTree) -> jax.Array:
            return problem.network(params, state).encode(batch["image"])

        directions = jax.jacrev(lambda z: grads.losses_at(params, z))(grads.z)
        rates["cosine"] = jnp.mean(push_cosines(encode, params, directions))
        return rates

    return jax.jit(jax.vmap(measure, in_axes=(0, 0, 0, None, None)))
