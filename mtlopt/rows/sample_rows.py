"""Rows of tasks, if each sample belongs to one task.

The cotangents of two tasks have no sample in common, so one backward pass carries the
cotangents of all tasks. The Gramian is `S^T K S`. Here `S` `[samples, tasks]` is the
one-hot matrix of tasks, and `K` holds the inner products of the samples' gradients (see
`sample_leaves`).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import (
    ScaledGramian,
    keeps_squares,
    safe_divide,
    scale_of,
)
from mtlopt.linalg.products import dot
from mtlopt.rows.arithmetic import row_norms, scale_rows, sum_entries
from mtlopt.rows.groups import Groups
from mtlopt.rows.leaf_rows import LeafRows
from mtlopt.rows.protocol import Leaves, OwnSpace
from mtlopt.rows.streamed import NOT_KEPT


@dataclasses.dataclass(frozen=True)
class SampleRows(LeafRows):
    """Rows over the shared leaves.

    Attributes:
      latent_grads: leaves `[samples, ...]`.
      pull_latent: pullback of the encoder, from the cotangents of all samples.
      streaming: whether each use computes the rows of tasks anew, a part at a time.
    """

    latent_grads: Leaves
    pull_latent: Callable[[Leaves], Leaves]
    streaming: bool = False
    pull: Callable[[Leaves], Leaves] = list

    def mix(self, weights: jax.Array) -> Leaves:
        if "made" in vars(self):
            return self._combine_made(weights)
        of_samples = self.groups.of_samples(weights)
        return self.pull_latent(scale_rows(self.latent_grads, of_samples))

    def along(self, direction: Leaves) -> jax.Array:
        push = jax.linear_transpose(self.pull_latent, self.latent_grads)
        return _along(self.groups, self.latent_grads, push(direction)[0])

    def leaves(self) -> Leaves:
        if self.streaming:
            raise ValueError(NOT_KEPT)
        return self._all_rows()

    def held(self) -> Leaves:
        return self.latent_grads


@dataclasses.dataclass(frozen=True)
class LatentSampleRows(OwnSpace):
    """Rows over a latent in which every sample has its own part.

    No two tasks have a sample in common, so their rows are orthogonal.

    Attributes:
      groups: the tasks of the samples.
      latent_grads: leaves `[samples, ...]`.
      pull: pullback of the encoder, from the cotangents of all samples.
    """

    groups: Groups
    latent_grads: Leaves
    pull: Callable[[Leaves], Leaves]

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        if basis is None:
            return jnp.diag(jnp.square(self.norms()))
        if basis.ndim == 1:
            return jnp.diag(jnp.square(self.norms() * basis))
        turned = self.norms()[:, None] * basis
        return dot(turned.T, turned)

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        norms = self.norms()
        size = sum(leaf.size for leaf in self.latent_grads)
        safe = keeps_squares(jnp.square(norms), size, present)
        scales = jnp.where(safe, jnp.ones_like(norms), scale_of(norms))
        return ScaledGramian(jnp.diag(jnp.square(norms * scales)), scales)

    def norms(self) -> jax.Array:
        norms = row_norms(self.latent_grads)
        largest = self.groups.largest(norms)
        unit = jnp.where(largest == 0, 1, largest)
        shares = safe_divide(norms, self.groups.of_samples(unit))
        return jnp.sqrt(self.groups.sums(jnp.square(shares))) * unit

    def mix(self, weights: jax.Array) -> Leaves:
        return scale_rows(self.latent_grads, self.groups.of_samples(weights))

    def along(self, direction: Leaves) -> jax.Array:
        return _along(self.groups, self.latent_grads, direction)

    def leaves(self) -> Leaves:
        return [self.groups.spread(leaf) for leaf in self.latent_grads]

    def held(self) -> Leaves:
        return self.latent_grads


def _along(groups: Groups, latent_grads: Leaves, direction: Leaves) -> jax.Array:
    """Returns the tasks' inner products with a direction of the latent, `[tasks]`."""
    dtype = solver_dtype(latent_grads)
    of_samples = [
        sum_entries(leaf.astype(dtype) * one.astype(dtype))
        for leaf, one in zip(latent_grads, direction, strict=True)
    ]
    return groups.sums(functools.reduce(jnp.add, of_samples))
