"""A function of one task, run for all: side by side, together, or in a loop."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Leaves = list[jax.Array]
Leaf = jax.Array | tuple[jax.Array, ...]  # of all tasks: together, or one by one


class Tasks(Protocol):
    """How a function of one task is run for all."""

    def first(self, rows: Leaves) -> list[Leaf]:
        """Returns the values of all tasks from arrays `[tasks, ...]`."""
        ...

    def map(self, function: Any, values: Any, after: jax.Array | None) -> Any:
        """Runs a function of one task's values; `after` is to be known before."""
        ...

    def repeat(self, value: jax.Array) -> Leaf:
        """Returns the same value for every task."""
        ...

    def layers_first(self, value: Leaf) -> Any:
        """Moves an axis of layers, the first of each task, before that of the tasks."""
        ...

    def layers_second(self, value: Any) -> Leaf:
        """Inverse of `layers_first`."""
        ...


class OneByOne(NamedTuple):
    """A copy of the program per task: their values are tuples."""

    num_tasks: int

    def first(self, rows: Leaves) -> list[Leaf]:
        return [tuple(leaf[task] for task in range(self.num_tasks)) for leaf in rows]

    def map(self, function: Any, values: Any, after: jax.Array | None) -> Any:
        del after
        results = [function([v[t] for v in values]) for t in range(self.num_tasks)]
        return [tuple(leaves) for leaves in zip(*results, strict=True)]

    def repeat(self, value: jax.Array) -> Leaf:
        return (value,) * self.num_tasks

    def layers_first(self, value: Leaf) -> Any:
        return value

    def layers_second(self, value: Any) -> Leaf:
        return value


class Together(NamedTuple):
    """One batched program, or a loop over chunks of tasks: values are `[tasks, ...]`.

    Attributes:
      num_tasks: number of tasks.
      size: of a chunk; `num_tasks` for no loop.
    """

    num_tasks: int
    size: int

    def first(self, rows: Leaves) -> list[Leaf]:
        return list(rows)

    def map(self, function: Any, values: Any, after: jax.Array | None) -> Any:
        if self.size == self.num_tasks:
            return jax.vmap(function)(values)
        return map_after(function, values, self.size, after)

    def repeat(self, value: jax.Array) -> Leaf:
        return jnp.broadcast_to(value, (self.num_tasks, *value.shape))

    def layers_first(self, value: Leaf) -> Any:
        assert not isinstance(value, tuple)
        return jnp.swapaxes(value, 0, 1)

    def layers_second(self, value: Any) -> Leaf:
        return jnp.swapaxes(value, 0, 1)


def map_after(
    function: Callable[[Any], Any], values: Any, size: int, after: jax.Array | None
) -> Any:
    """`lax.map` in chunks, whose results have no memory before `after` is known.

    XLA's scheduler for a CPU starts early what it can, and would keep the results of
    all layers at the same time, each in pages that the system must hand out. So the
    results begin as an array made of a number that depends on the layer before.

    Args:
      function: of the values of one task.
      values: leaves `[tasks, ...]`.
      size: tasks at a time, a divisor of their number.
      after: any array.
    """
    num_tasks = len(jax.tree.leaves(values)[0])
    shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], values))
    number = jnp.zeros([]) if after is None else after.reshape(-1)[0]

    def chunk(index: jax.Array) -> Any:
        def cut(leaf: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(leaf, index * size, size)

        if size == 1:
            one = function(jax.tree.map(lambda leaf: cut(leaf)[0], values))
            return jax.tree.map(lambda leaf: leaf[None], one)
        return jax.vmap(function)(jax.tree.map(cut, values))

    def body(index: jax.Array, results: Any) -> Any:
        return jax.tree.map(
            lambda all_of, some: jax.lax.dynamic_update_slice_in_dim(
                all_of, some, index * size, 0
            ),
            results,
            chunk(index),
        )

    start = jax.tree.map(
        lambda s: jnp.full((num_tasks, *s.shape), number.astype(s.dtype)), shapes
    )
    return jax.lax.fori_loop(0, num_tasks // size, body, start)
