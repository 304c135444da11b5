"""Gradients with respect to the latent, for heads that begin with a matrix product.

The latent `z` is the output of the shared encoder. If a head reads the latent as
`z @ W`, its gradient with respect to `z` is `D W^T`, where `D` is the cotangent of the
product `z @ W`. Both factors are small if the latent is wide. Gramians and combinations
need only the factors, so no array of the latent's size is stored for each task.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import scale_of
from mtlopt.rows import arithmetic, products
from mtlopt.rows.factors import Layout, Pullback
from mtlopt.rows.groups import Groups
from mtlopt.rows.leaf_rows import LeafRows, Made, ProductLeaf
from mtlopt.rows.members import Members
from mtlopt.rows.protocol import STATIC, Leaves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadProducts:
    """The gradients `x_t^T d_t` of one leaf of the latent, for all tasks.

    Attributes:
      x: `[members, outputs of the product, features]`, padded with zeros if a task has
        fewer outputs.
      d: `[members, outputs of the product, positions]`.
      layout: how the leaf is made from the product.
      members: the tasks whose gradients are not zero; None for all.
    """

    x: jax.Array
    d: jax.Array
    layout: Layout = dataclasses.field(metadata=STATIC)
    members: Members | None = dataclasses.field(default=None, metadata=STATIC)

    def pays(self) -> bool:
        """Whether a Gramian takes fewer operations with factors than with arrays."""
        num_tasks, outputs, features = self.x.shape
        positions = self.d.shape[2]
        rows = positions * features * (num_tasks + outputs)
        return num_tasks * outputs**2 * (positions + features) <= rows

    def spread(self, members: Members) -> "HeadProducts":
        """Returns the products of all tasks, with zeros outside of `members`."""
        return dataclasses.replace(self, members=members)

    def leaf(
        self, groups: Groups, scales: jax.Array, present: jax.Array | None, dtype: Any
    ) -> ProductLeaf:
        """Returns the gradients times `scales`, zero for absent tasks.

        Args:
          groups: the tasks of the members.
          scales: `[tasks]`.
          present: bool `[tasks]`; None for all.
          dtype: dtype of the leaf.
        """
        wide = solver_dtype([self.x, self.d])
        own = groups.of_samples(scales)
        there = present if present is None else groups.of_samples(present)
        # If the largest entry of `x` is about one, no product of two entries flushes to
        # zero.
        x, d, ones = self.x.astype(wide), self.d.astype(wide), jnp.ones_like(own)
        (x,) = arithmetic.scale_rows([x], ones, there)
        unit = scale_of(products.largest_entries([x]))
        (x,) = arithmetic.scale_rows([x], unit)
        (d,) = arithmetic.scale_rows([d], own, there)
        (d,) = arithmetic.scale_rows([d], 1 / unit)
        return ProductLeaf(x, d, self.layout, "highest", dtype, in_pairs=True)


Factors = tuple[jax.Array, jax.Array]


def pull_with_products(
    pull: Callable[[jax.Array], Any], cotangent: jax.Array
) -> tuple[Any, list[Layout | None], list[Factors | None]]:
    """Runs a pullback; returns the result and the factors of products in the result.

    Args:
      pull: function from a scalar to a pytree.
      cotangent: the scalar.

    Returns:
      The result and, for each of its leaves, the layout and the factors `x` and `d` if
      it is a product.
    """
    pullback = Pullback(pull, cotangent)
    structure = jax.tree.structure(jax.eval_shape(pull, cotangent))
    found = [p if p and not p.layout.layers else None for p in pullback.products]
    are_products = [i for i, p in enumerate(found) if p is not None]
    leaves, xs, ds = pullback.run(range(len(found)), are_products, cotangent)
    pairs = dict(zip(are_products, zip(xs, ds, strict=True), strict=True))
    matrices = [pairs.get(i) for i in range(len(found))]
    return structure.unflatten(leaves), [p and p.layout for p in found], matrices


def stack_products(
    layouts: Sequence[Layout | None], factors: Sequence[Factors | None]
) -> HeadProducts | None:
    """Returns the products of one leaf for all tasks, if they are alike and worthwhile.

    Args:
      layouts: layout of each task.
      factors: factors of each task.
    """
    pairs = [pair for pair in factors if pair is not None]
    layout = layouts[0] if layouts else None
    if layout is None or len(pairs) < len(layouts) or len(set(layouts)) > 1:
        return None
    most = max(len(x) for x, _ in pairs)

    def stack(values: Sequence[jax.Array]) -> jax.Array:
        return jnp.stack(
            [jnp.pad(value, ((0, most - len(value)), (0, 0))) for value in values]
        )

    x, d = (stack(values) for values in zip(*pairs, strict=True))
    return if_it_pays(layout, x, d)


def if_it_pays(layout: Layout, x: jax.Array, d: jax.Array) -> HeadProducts | None:
    """Returns stacked products; None if arrays of the latent's size are less work."""
    found = HeadProducts(x, d, layout)
    return found if found.pays() else None


@dataclasses.dataclass(frozen=True)
class HeadProductRows(LeafRows):
    """Latent rows in which some leaves are products of small factors.

    Attributes:
      latent_grads: all leaves `[tasks, ...]`, which XLA computes only if something
        reads them.
      pull: pullback of the encoder.
    """

    latent_grads: Leaves
    pull: Callable[[Leaves], Leaves]

    @classmethod
    def of(
        cls,
        latent_grads: Leaves,
        found: Sequence[HeadProducts | None],
        pull: Callable[[Leaves], Leaves],
        scales: jax.Array,
        present: jax.Array | None,
    ) -> "HeadProductRows":
        """Returns rows times `scales`, zero for absent tasks.

        Args:
          latent_grads: latent gradients, already scaled.
          found: products by leaf; None for a leaf for which the array is used.
          pull: pullback of the encoder.
          scales: `[tasks]`.
          present: bool `[tasks]`; None for all.
        """
        num_tasks = len(scales)
        members = next(one.members for one in found if one is not None)
        if members is None:
            groups = Groups(jnp.arange(num_tasks, dtype=jnp.int32), num_tasks, True)
        else:
            indices = jnp.asarray(members.indices, jnp.int32)
            groups = Groups(indices, num_tasks)
        rows, undone = {}, {}
        for i, (leaf, one) in enumerate(zip(latent_grads, found, strict=True)):
            if one is None:
                rows[i] = leaf
            else:
                undone[i] = one.leaf(groups, scales, present, leaf.dtype)
        shapes = [
            jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in latent_grads
        ]
        made = Made(rows, undone, tuple(shapes))
        return cls(groups, lambda: made, latent_grads, pull)

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        if basis is None or basis.ndim == 2:
            return super().gramian(basis)
        scaled = self.made.scaled(self.groups, basis)
        return dataclasses.replace(self, make=lambda: scaled).gramian()

    def mix(self, weights: jax.Array) -> Leaves:
        return self._combine_made(weights)

    def along(self, direction: Leaves) -> jax.Array:
        return arithmetic.inner_products(self.latent_grads, direction)

    def leaves(self) -> Leaves:
        return self.latent_grads
