"""Samples, each of one task: sums over the samples of every task."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.rows.map_tasks import map_tasks
from mtlopt.rows.members import Members
from mtlopt.rows.products import alone
from mtlopt.rows.protocol import STATIC

# Fewer rows than that in a product of matrices leave a CPU's registers empty.
_FEW_ROWS = 32
# A task's samples are padded to whole tiles, by at most a quarter of them on average.
_TILES_PER_TASK = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """To which task each sample belongs.

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
        """Returns each sample's entry `[samples]` of `values`, `[tasks]`; else zero."""
        if self.one_each:
            return values
        if not self.num_tasks:
            return jnp.zeros(self.num_samples, values.dtype)
        taken = jnp.asarray(values)[jnp.clip(self.ids, 0)]
        return jnp.where(self.ids < 0, jnp.zeros_like(taken), taken)

    def sums(self, values: jax.Array) -> jax.Array:
        """Returns the sums `[tasks]` of `values`, `[samples]`.

        A number that is not finite stays with its task.
        """
        if self.one_each:
            return values
        return jnp.sum(jnp.where(self.masks, values, 0), axis=1)

    def largest(self, values: jax.Array) -> jax.Array:
        """Returns the largest of `values` `[samples]`, not negative, of every task."""
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
        """Returns sums over pairs of samples, `[tasks, tasks]`."""
        return self.sum_rows(self.sum_rows(products).T).T

    def spread(self, rows: jax.Array) -> jax.Array:
        """Returns `rows` `[samples, ...]` of every task: `[tasks, samples, ...]`."""
        masks = self.masks.reshape(*self.masks.shape, *(1,) * (rows.ndim - 1))
        return jnp.where(masks, rows[None], 0)

    def chosen(self, members: jax.Array) -> "Groups":
        """Returns the same of some of the tasks, whose indices are given."""
        places = jnp.full(self.num_tasks + 1, -1, jnp.int32)
        order = jnp.arange(len(members), dtype=jnp.int32)
        # The last entry is that of samples of no task.
        places = places.at[members].set(order) if len(members) else places
        return Groups(places[self.ids], len(members))

    def of_all(self, members: Members) -> "Groups":
        """Inverse of `chosen`: the others have no samples."""
        indices = jnp.asarray([*members.indices, -1], jnp.int32)
        return Groups(indices[self.ids], members.num_tasks)

    def sum_products(
        self, x: jax.Array, d: jax.Array, precision: Any = None
    ) -> jax.Array:
        """Returns `x_t^T d_t`, `[tasks, inputs, outputs]`, of the samples of each task.

        On one CPU device by tiles of samples of one task, added up in a loop: about as
        many operations as one product of all samples. Elsewhere by one product a task:
        on several devices sorted samples would be gathered.

        Args:
          x: `[samples, positions, inputs]`.
          d: `[samples, positions, outputs]`.
          precision: of the products.
        """
        if self.one_each:
            return sum_positions(x, d, precision, batch=(0,))
        if alone():
            return self._sum_tiles(x, d, precision)

        def of_task(mask: list[jax.Array]) -> list[jax.Array]:
            own = jnp.where(mask[0][:, None, None], d, 0)
            return [sum_positions(x, own, precision)]

        return map_tasks(of_task, [self.masks], "auto")[0]

    def tile_size(self, positions: int) -> int:
        """Returns how many samples of one task are multiplied at a time."""
        size = self.num_samples // max(_TILES_PER_TASK * self.num_tasks, 1)
        return max(size, -(-_FEW_ROWS // max(positions, 1)))

    def num_tiles(self, positions: int) -> int:
        """Returns how many tiles there are at most."""
        size = self.tile_size(positions)
        partly = min(self.num_tasks, self.num_samples)
        return (self.num_samples + partly * (size - 1)) // size

    def _sum_tiles(self, x: jax.Array, d: jax.Array, precision: Any) -> jax.Array:
        size, count = self.tile_size(x.shape[1]), self.num_tiles(x.shape[1])
        # Samples of no task come last, and no tile has any of them.
        order = jnp.argsort(jnp.where(self.ids < 0, self.num_tasks, self.ids))
        counts = jnp.sum(self.masks, axis=1, dtype=jnp.int32)
        tiles = -(-counts // size)
        last, firsts = jnp.cumsum(tiles), jnp.cumsum(counts) - counts

        def add(total: jax.Array, tile: jax.Array) -> tuple[jax.Array, None]:
            task = jnp.searchsorted(last, tile, side="right").astype(jnp.int32)
            task = jnp.minimum(task, self.num_tasks - 1)  # behind the last tile
            done = (tile - last[task] + tiles[task]) * size
            place = done + jnp.arange(size, dtype=jnp.int32)
            own = place < counts[task]
            samples = order[jnp.clip(firsts[task] + place, 0, self.num_samples - 1)]
            here = jnp.where(own[:, None, None], d[samples], 0)
            own_sum = sum_positions(x[samples], here, precision)
            return total.at[task].add(own_sum), None

        shape = (self.num_tasks, x.shape[2], d.shape[2])
        zeros = jnp.zeros(shape, solver_dtype([x, d]))
        return jax.lax.scan(add, zeros, jnp.arange(count, dtype=jnp.int32))[0]


def sum_positions(
    x: jax.Array, d: jax.Array, precision: Any = None, batch: tuple[int, ...] = ()
) -> jax.Array:
    """Returns `x^T d` summed over positions, and over samples that are no batch.

    Args:
      x: `[samples, positions, inputs]`.
      d: `[samples, positions, outputs]`.
      precision: of the products.
      batch: axes that the result keeps.
    """
    axes = tuple(axis for axis in (0, 1) if axis not in batch)
    return jax.lax.dot_general(
        x,
        d,
        ((axes, axes), (batch, batch)),
        precision=precision,
        preferred_element_type=solver_dtype([x, d]),
    )
