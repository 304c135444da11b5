"""Batches whose samples each belong to one task, and sums over each task's samples."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.rows.map_tasks import map_tasks
from mtlopt.rows.members import Members
from mtlopt.rows.products import alone
from mtlopt.rows.protocol import STATIC, Leaves

# With fewer rows than this, a matrix product does not fill a CPU's registers.
_FEW_ROWS = 32
# A task's samples are padded to whole tiles, by at most a quarter on average.
_TILES_PER_TASK = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """The task of each sample.

    Attributes:
      ids: `[samples]` int32, -1 for a sample of no task.
      num_tasks: number of tasks.
      one_each: whether sample i is task i.
    """

    ids: jax.Array
    num_tasks: int = dataclasses.field(metadata=STATIC)
    one_each: bool = dataclasses.field(default=False, metadata=STATIC)

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.ids)

    @property
    def masks(self) -> jax.Array:
        """Which samples belong to each task, bool `[tasks, samples]`."""
        return self.ids == jnp.arange(self.num_tasks, dtype=jnp.int32)[:, None]

    def of_samples(self, values: jax.Array) -> jax.Array:
        """Returns each sample's entry of `values` `[tasks]`; zero if it has no task."""
        if self.one_each:
            return values
        if not self.num_tasks:
            return jnp.zeros(self.num_samples, values.dtype)
        taken = jnp.asarray(values)[jnp.clip(self.ids, 0)]
        return jnp.where(self.ids < 0, jnp.zeros_like(taken), taken)

    def sums(self, values: jax.Array) -> jax.Array:
        """Returns the sums `[tasks]` of `values`, `[samples]`.

        A number that is not finite affects its own task only.
        """
        if self.one_each:
            return values
        return jnp.sum(jnp.where(self.masks, values, 0), axis=1)

    def largest(self, values: jax.Array) -> jax.Array:
        """Returns the maximum of `values` `[samples]` for each task, at least zero."""
        return jnp.max(jnp.where(self.masks, values, 0), axis=1, initial=0)

    def sum_rows(self, rows: jax.Array) -> jax.Array:
        """Returns the sums `[tasks, ...]` of finite `rows`, `[samples, ...]`."""
        dtype = solver_dtype([rows])
        if self.one_each:
            return rows.astype(dtype)
        return jnp.tensordot(
            self.masks.astype(dtype),
            rows.astype(dtype),
            axes=1,
            precision=jax.lax.Precision.HIGHEST,
        )

    def sum_pairs(self, products: jax.Array) -> jax.Array:
        """Returns, for each pair of tasks, the sum of `products` of their samples."""
        return self.sum_rows(self.sum_rows(products).T).T

    def spread(self, rows: jax.Array) -> jax.Array:
        """Returns `rows` `[samples, ...]` by task, as `[tasks, samples, ...]`."""
        masks = self.masks.reshape(*self.masks.shape, *(1,) * (rows.ndim - 1))
        return jnp.where(masks, rows[None], 0)

    def chosen(self, members: jax.Array) -> "Groups":
        """Returns the groups of only the tasks with the given indices."""
        places = jnp.full(self.num_tasks + 1, -1, jnp.int32)
        order = jnp.arange(len(members), dtype=jnp.int32)
        # The last entry belongs to samples without a task.
        places = places.at[members].set(order) if len(members) else places
        return Groups(places[self.ids], len(members))

    def of_all(self, members: Members) -> "Groups":
        """Returns the groups of all tasks; this method undoes `chosen`."""
        indices = jnp.asarray([*members.indices, -1], jnp.int32)
        return Groups(indices[self.ids], members.num_tasks)

    def sum_products(
        self, x: jax.Array, d: jax.Array, precision: Any = None
    ) -> jax.Array:
        """Returns `x_t^T d_t`, `[tasks, inputs, outputs]`, over each task's samples.

        On one CPU device, a loop adds up the products of tiles, where each tile holds
        samples of one task. The loop takes about as many operations as one product of
        all samples. In all other cases, there is one product per task, because several
        devices would have to gather sorted samples.

        Args:
          x: `[samples, positions, inputs]`.
          d: `[samples, positions, outputs]`.
          precision: precision of the products.
        """
        if self.one_each:
            return sum_positions(x, d, precision, batch=(0,))
        if alone():

            def of_some(samples: jax.Array, own: jax.Array) -> Leaves:
                here = jnp.where(own[:, None, None], d[samples], 0)
                return [sum_positions(x[samples], here, precision)]

            shape = jax.eval_shape(sum_positions, x, d)
            return self.sum_tiles(self.tile_size(x.shape[1]), of_some, [shape])[0]

        def of_task(mask: list[jax.Array]) -> list[jax.Array]:
            own = jnp.where(mask[0][:, None, None], d, 0)
            return [sum_positions(x, own, precision)]

        return map_tasks(of_task, [self.masks], "auto")[0]

    def tile_size(self, positions: int | None = None) -> int:
        """Returns the number of samples of one task that make a tile.

        Args:
          positions: number of positions of a sample, if a tile is used in one product;
            None if the tile goes through a network.
        """
        size = max(1, self.num_samples // max(_TILES_PER_TASK * self.num_tasks, 1))
        return size if positions is None else max(size, -(-_FEW_ROWS // positions))

    def num_tiles(self, size: int) -> int:
        """Returns the largest possible number of tiles."""
        partly = min(self.num_tasks, self.num_samples)
        return (self.num_samples + partly * (size - 1)) // size

    def sum_tiles(
        self,
        size: int,
        function: Callable[[jax.Array, jax.Array], Leaves],
        shapes: Sequence[Any],
    ) -> Leaves:
        """Returns the sums `[tasks, ...]` of a function over each task's samples.

        A loop calls the function with samples of one task at a time.

        Args:
          size: size of a tile: the number of samples at a time.
          function: takes the indices of samples, `[size]`, and a bool mask of the
            samples that count; returns leaves.
          shapes: shapes of these leaves.
        """
        # Samples without a task come last, and are in no tile.
        order = jnp.argsort(jnp.where(self.ids < 0, self.num_tasks, self.ids))
        counts = jnp.sum(self.masks, axis=1, dtype=jnp.int32)
        tiles = -(-counts // size)
        last, firsts = jnp.cumsum(tiles), jnp.cumsum(counts) - counts

        def add(totals: Leaves, tile: jax.Array) -> tuple[Leaves, None]:
            task = jnp.searchsorted(last, tile, side="right").astype(jnp.int32)
            task = jnp.minimum(task, self.num_tasks - 1)  # beyond the last tile
            done = (tile - last[task] + tiles[task]) * size
            place = done + jnp.arange(size, dtype=jnp.int32)
            samples = order[jnp.clip(firsts[task] + place, 0, self.num_samples - 1)]
            found = function(samples, place < counts[task])
            return [
                total.at[task].add(one.astype(total.dtype))
                for total, one in zip(totals, found, strict=True)
            ], None

        zeros = [
            jnp.zeros((self.num_tasks, *one.shape), solver_dtype([one]))
            for one in shapes
        ]
        count = jnp.arange(self.num_tiles(size), dtype=jnp.int32)
        return jax.lax.scan(add, zeros, count)[0]


def sum_positions(
    x: jax.Array, d: jax.Array, precision: Any = None, batch: tuple[int, ...] = ()
) -> jax.Array:
    """Returns `x^T d`, summed over samples and positions, except the axes in `batch`.

    Args:
      x: `[samples, positions, inputs]`.
      d: `[samples, positions, outputs]`.
      precision: precision of the products.
      batch: axes that the result keeps.
    """
    axes = tuple(axis for axis in (0, 1) if axis not in batch)
    dtype = solver_dtype([x, d])
    if x.dtype != d.dtype:
        x, d = x.astype(dtype), d.astype(dtype)
    return jax.lax.dot_general(
        x,
        d,
        ((axes, axes), (batch, batch)),
        precision=precision,
        preferred_element_type=dtype,
    )
