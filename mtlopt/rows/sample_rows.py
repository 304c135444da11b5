"""Rows of tasks of which each sample belongs to one.

The cotangents of the tasks have no sample in common, so that one backward pass carries
them all. With S `[samples, tasks]` the one-hot of tasks the Gramian is `S^T K S`, where
`K` are the inner products of the samples' gradients: see `sample_leaves`.
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
from mtlopt.linalg.products import diagonal, dot
from mtlopt.rows import products
from mtlopt.rows.arithmetic import row_norms, scale_rows, sum_entries
from mtlopt.rows.groups import Groups
from mtlopt.rows.material import MaterialRows
from mtlopt.rows.protocol import Leaves, OwnSpace
from mtlopt.rows.sample_leaves import SampleLeaf
from mtlopt.rows.streamed import NOT_KEPT


@dataclasses.dataclass(frozen=True)
class SampleRows(OwnSpace):
    """Rows over the shared leaves.

    Rounding of the products of samples is relative to the gradients of the samples, of
    which a task's row may be much less. So the rotated rows, which are asked for where
    that matters, are made, as sums over the samples; a part at a time, in a branch that
    is seldom taken.

    Attributes:
      groups: the tasks of the samples.
      latent_grads: leaves `[samples, ...]`.
      pull_latent: pullback of the encoder, from the cotangents of all samples.
      make: returns the gradients of the samples.
      streaming: whether rows of tasks are made anew, a part at a time, at each use.
    """

    groups: Groups
    latent_grads: Leaves
    pull_latent: Callable[[Leaves], Leaves]
    make: Callable[[], list[SampleLeaf]]
    streaming: bool = False
    pull: Callable[[Leaves], Leaves] = list

    @functools.cached_property
    def made(self) -> list[SampleLeaf]:
        """The gradients; from here on they are combined as they are."""
        return self.make()

    @functools.cached_property
    def _rows(self) -> MaterialRows:
        """The rows of the leaves that are not compared in pairs of samples."""
        rows = [
            leaf.by_task(self.groups) for leaf in self.made if not self._undone(leaf)
        ]
        return MaterialRows(self.groups.num_tasks, rows)

    def _undone(self, leaf: SampleLeaf) -> bool:
        """Whether a leaf's rows do not exist."""
        return leaf.in_pairs or self.streaming

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        parts, in_pairs = [], []
        if self._rows.values:
            parts.append(self._rows.gramian(basis))
        for leaf in filter(self._undone, self.made):
            if leaf.in_pairs and basis is None:
                in_pairs.append(leaf.pair_products())
                continue
            parts.append(
                leaf.fold(
                    self.groups, lambda rows: products.gramian([rows], basis), jnp.add
                )
            )
        if in_pairs:
            parts.append(self.groups.sum_pairs(functools.reduce(jnp.add, in_pairs)))
        total = functools.reduce(jnp.add, parts)
        return (total + total.T) / 2

    def rotated(self) -> Callable[[jax.Array], jax.Array]:
        _ = self._rows  # made here, not in the branch that may read it first
        return self.gramian

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        gramian = self.gramian()
        return products.scale_if_needed(
            lambda basis=None: gramian if basis is None else self.gramian(basis),
            self._largest_entries,
            self._like_rows(),
            present,
        )

    def _largest_entries(self) -> jax.Array:
        def largest(rows: jax.Array) -> jax.Array:
            return products.largest_entries([rows])

        found = [
            *map(largest, self._rows.values),
            *(
                leaf.fold(self.groups, largest, jnp.maximum)
                for leaf in filter(self._undone, self.made)
            ),
        ]
        return functools.reduce(jnp.maximum, found)

    def norms(self) -> jax.Array:
        found = self.scaled_gramian(None)
        return jnp.sqrt(jnp.maximum(diagonal(found.matrix), 0)) / found.scales

    def mix(self, weights: jax.Array) -> Leaves:
        of_samples = self.groups.of_samples(weights)
        if "made" not in vars(self):
            return self.pull_latent(scale_rows(self.latent_grads, of_samples))
        done = iter(self._rows.combine(weights))
        return [
            leaf.combine(of_samples) if self._undone(leaf) else next(done)
            for leaf in self.made
        ]

    def along(self, direction: Leaves) -> jax.Array:
        push = jax.linear_transpose(self.pull_latent, self.latent_grads)
        return _along(self.groups, self.latent_grads, push(direction)[0])

    def leaves(self) -> Leaves:
        if self.streaming:
            raise ValueError(NOT_KEPT)
        return self._whole()

    def held(self) -> Leaves:
        return self.latent_grads

    def _whole(self) -> Leaves:
        """Returns all rows, for one use."""
        done = iter(self._rows.values)
        return [
            leaf.by_task(self.groups) if self._undone(leaf) else next(done)
            for leaf in self.made
        ]

    def _like_rows(self) -> Leaves:
        """Returns arrays of the rows' shapes, for these alone."""
        shapes = jax.eval_shape(self._whole)
        return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]


@dataclasses.dataclass(frozen=True)
class LatentSampleRows(OwnSpace):
    """Rows in the latent, of which every sample has its own piece.

    No two tasks have a sample in common: their rows are orthogonal.

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

    def rotated(self) -> Callable[[jax.Array], jax.Array]:
        return self.gramian

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
