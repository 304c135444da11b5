"""Rows leaf by leaf; some leaves are products of small factors and never computed."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import ScaledGramian
from mtlopt.rows import products
from mtlopt.rows.arithmetic import combine, scale_rows
from mtlopt.rows.factors import Layout
from mtlopt.rows.groups import Groups, sum_positions
from mtlopt.rows.material import MaterialRows
from mtlopt.rows.protocol import STATIC, Leaves, OwnSpace

# The rows of a leaf are computed in parts: all tasks' rows of one part hold at most
# this many numbers (4 MiB).
_PART = 2**20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProductLeaf:
    """The gradients of one leaf; each sample has its own, `x^T d`.

    Attributes:
      x: `[samples, positions, inputs]`.
      d: `[samples, positions, outputs]`.
      layout: how the leaf is made from the product.
      precision: precision of the product.
      dtype: dtype of the leaf.
      in_pairs: whether inner products of pairs of samples are the cheapest form.
    """

    x: jax.Array
    d: jax.Array
    layout: Layout = dataclasses.field(metadata=STATIC)
    precision: Any = dataclasses.field(metadata=STATIC)
    dtype: Any = dataclasses.field(metadata=STATIC)
    in_pairs: bool = dataclasses.field(metadata=STATIC)

    def pair_products(self) -> jax.Array:
        """Returns the inner products of the gradients, `[samples, samples]`."""
        samples, positions, _ = self.x.shape
        x, d = (one.reshape(-1, one.shape[-1]) for one in (self.x, self.d))
        found = products.cross_gramian([x], [x]) * products.cross_gramian([d], [d])
        if positions == 1:
            return found
        blocks = found.reshape(samples, positions, samples, positions)
        return jnp.sum(blocks, axis=(1, 3))

    def by_task(self, groups: Groups) -> jax.Array:
        """Returns the rows of the tasks, `[tasks, ...]`."""
        sums = groups.sum_products(self.x, self.d, self.precision)
        return jax.vmap(self._finish)(sums)

    def sum_parts(
        self, groups: Groups, function: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """Returns the sum of a function over parts of the tasks' rows.

        Args:
          groups: the tasks of the samples.
          function: takes rows `[tasks, ...]` of a part of the leaf.
        """
        inputs, outputs = self.x.shape[2], self.d.shape[2]
        width = max(1, _PART // max(groups.num_tasks * inputs, 1))
        count = -(-outputs // width)
        width = -(-outputs // count)
        # Pad with outputs of zeros, which change no sum.
        padding = ((0, 0), (0, 0), (0, width * count - outputs))
        d = jnp.pad(self.d, padding)

        def part(index: jax.Array | int) -> jax.Array:
            some = jax.lax.dynamic_slice_in_dim(d, index * width, width, axis=2)
            return function(groups.sum_products(self.x, some, self.precision))

        def add(index: jax.Array, total: jax.Array) -> jax.Array:
            return total + part(index)

        return jax.lax.fori_loop(1, count, add, part(0)) if count > 1 else part(0)

    def bounds(self) -> jax.Array:
        """Returns bounds `[samples]` on the entries of the gradients."""
        x, d = (products.largest_entries([one]) for one in (self.x, self.d))
        return self.x.shape[1] * x * d

    def combine(self, weights: jax.Array) -> jax.Array:
        """Returns the sum of the gradients times `weights`, `[samples]`."""
        weighted = self.d.astype(weights.dtype) * weights[:, None, None]
        weighted = weighted.astype(self.d.dtype)
        return self._finish(sum_positions(self.x, weighted, self.precision))

    def scaled(self, factors: jax.Array) -> "ProductLeaf":
        """Returns the gradients times `factors`, `[samples]`."""
        return dataclasses.replace(self, d=scale_rows([self.d], factors)[0])

    def _finish(self, matrix: jax.Array) -> jax.Array:
        return self.layout.finish(matrix).astype(self.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowLeaf:
    """The gradients of one leaf, as arrays.

    Attributes:
      rows: `[samples, ...]`.
      in_pairs: see `ProductLeaf`.
    """

    rows: jax.Array
    in_pairs: bool = dataclasses.field(metadata=STATIC)

    def pair_products(self) -> jax.Array:
        return products.cross_gramian([self.rows], [self.rows])

    def by_task(self, groups: Groups) -> jax.Array:
        return groups.sum_rows(self.rows).astype(self.rows.dtype)

    def sum_parts(
        self, groups: Groups, function: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        return function(groups.sum_rows(self.rows))

    def bounds(self) -> jax.Array:
        return products.largest_entries([self.rows])

    def combine(self, weights: jax.Array) -> jax.Array:
        return combine(weights, [self.rows])[0]

    def scaled(self, factors: jax.Array) -> "RowLeaf":
        return dataclasses.replace(self, rows=scale_rows([self.rows], factors)[0])


SampleLeaf = ProductLeaf | RowLeaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Made:
    """Gradients, leaf by leaf. A leaf that is in neither mapping is zero.

    Attributes:
      rows: mapping from leaf to the tasks' rows, `[tasks, ...]`.
      undone: mapping from leaf to the samples' gradients, before these gradients are
        summed by task.
      shapes: shapes and types of the leaves.
    """

    rows: dict[int, jax.Array]
    undone: dict[int, SampleLeaf]
    shapes: tuple[jax.ShapeDtypeStruct, ...] = dataclasses.field(metadata=STATIC)

    def scaled(self, groups: Groups, factors: jax.Array) -> "Made":
        """Returns the gradients times `factors`, `[tasks]`."""
        own = groups.of_samples(factors)
        rows = scale_rows(list(self.rows.values()), factors)
        undone = {i: leaf.scaled(own) for i, leaf in self.undone.items()}
        return Made(dict(zip(self.rows, rows, strict=True)), undone, self.shapes)


@dataclasses.dataclass(frozen=True)
class LeafRows(OwnSpace):
    """Rows that are known leaf by leaf.

    Rounding errors in the products of samples are relative to the gradients of the
    samples. A task's row may be much smaller than these gradients. If these errors
    matter, methods use rotated rows. These are computed as sums over the samples, a
    part at a time, in a branch of a `lax.cond` that is seldom taken.

    Attributes:
      groups: the tasks of the samples.
      make: returns the gradients.
    """

    groups: Groups
    make: Callable[[], Made]

    @functools.cached_property
    def made(self) -> Made:
        """The gradients; once they are computed, combinations use the same arrays."""
        return self.make()

    @functools.cached_property
    def _rows(self) -> MaterialRows:
        return MaterialRows(self.groups.num_tasks, list(self.made.rows.values()))

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        parts = [self._rows.gramian(basis)] if self.made.rows else []
        in_pairs = []
        for leaf in self.made.undone.values():
            if leaf.in_pairs and basis is None:
                in_pairs.append(leaf.pair_products())
            else:
                parts.append(
                    leaf.sum_parts(
                        self.groups, lambda rows: products.gramian([rows], basis)
                    )
                )
        if in_pairs:
            parts.append(self.groups.sum_pairs(functools.reduce(jnp.add, in_pairs)))
        total = functools.reduce(jnp.add, parts)
        return (total + total.T) / 2

    def rotated(self) -> Callable[[jax.Array], jax.Array]:
        _ = self._rows  # computed here: a branch might be the first to read them
        return self.gramian

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        gramian = self.gramian()
        return products.scale_if_needed(
            lambda basis=None: gramian if basis is None else self.gramian(basis),
            self._largest_entries,
            self.made.shapes,
            present,
        )

    def _largest_entries(self) -> jax.Array:
        """Returns bounds `[tasks]` on the entries of the rows."""
        made = self.made
        found = [products.largest_entries([rows]) for rows in made.rows.values()]
        found += [self.groups.sums(leaf.bounds()) for leaf in made.undone.values()]
        return functools.reduce(jnp.maximum, found)

    def _combine_made(self, weights: jax.Array) -> Leaves:
        """Returns the combination of the gradients in `made`."""
        of_samples = self.groups.of_samples(weights)
        done = dict(zip(self.made.rows, self._rows.mix(weights), strict=True))
        done |= {i: leaf.combine(of_samples) for i, leaf in self.made.undone.items()}
        return [
            done[i] if i in done else jnp.zeros(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(self.made.shapes)
        ]

    def _all_rows(self) -> Leaves:
        """Returns the rows of all tasks."""
        done = dict(self.made.rows)
        done |= {i: leaf.by_task(self.groups) for i, leaf in self.made.undone.items()}
        return [
            done[i]
            if i in done
            else jnp.zeros((self.groups.num_tasks, *leaf.shape), leaf.dtype)
            for i, leaf in enumerate(self.made.shapes)
        ]
