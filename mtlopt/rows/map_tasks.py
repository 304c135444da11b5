"""Applies one function to the row (the gradient) of every task."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import convolves
from mtlopt.rows.protocol import Leaves

Batching = Literal["auto", "unroll", "vmap", "map"] | int

# Up to this number of tasks, an unrolled program compiles about as fast as a loop.
UNROLL_LIMIT = 8


def map_tasks(
    function: Callable[[Leaves], Leaves], rows: Leaves, batching: Batching
) -> Leaves:
    """Applies `function` to every task's row and stacks the results.

    Args:
      function: maps leaves without the task axis to leaves without it.
      rows: leaves `[tasks, ...]`.
      batching: `"unroll"` makes a copy of the program for each task, `"vmap"` makes one
        batched program, `"map"` loops over the tasks, and an int loops over chunks of
        this many tasks. `"auto"` follows measurements. On a CPU, XLA runs batched
        pullbacks up to four times slower than unrolled ones. So `"auto"` is `"unroll"`
        for up to 8 tasks on a CPU, and `"map"`, which compiles faster, for more tasks.
        There is one exception: XLA on a CPU runs a `lax` convolution many times slower
        inside a loop, so `"auto"` is always `"unroll"` on a CPU if the pullback has
        one. On other platforms `"auto"` is `"vmap"`.

    Returns:
      Leaves `[tasks, ...]`.
    """
    if batching == "auto":
        batching = choose_batching(function, rows)
    if not len(rows[0]):
        batching = "vmap"  # the other ways get the shape of the result from a row
    if batching == "unroll":
        results = [function([leaf[i] for leaf in rows]) for i in range(len(rows[0]))]
        return [jnp.stack(leaves) for leaves in zip(*results, strict=True)]
    if batching == "vmap":
        return jax.vmap(function)(rows)
    if batching == "map":
        return jax.lax.map(function, rows)
    assert isinstance(batching, int)
    return jax.lax.map(function, rows, batch_size=batching)


def choose_batching(function: Callable[[Leaves], Leaves], rows: Leaves) -> Batching:
    """Returns the `batching` (see `map_tasks`) that was fastest in measurements."""
    if jax.default_backend() != "cpu":
        return "vmap"
    few = rows[0].shape[0] <= UNROLL_LIMIT
    return "unroll" if few or convolves(function, [r[0] for r in rows]) else "map"


def map_after(
    function: Callable[[Any], Any], values: Any, size: int, after: jax.Array | None
) -> Any:
    """Runs `lax.map` in chunks; results take no memory before `after` is known.

    XLA's scheduler for a CPU starts operations as early as it can. So it would allocate
    memory for the results of all layers at the same time. To prevent this, the results
    start as an array that is filled with a number from `after`.

    Args:
      function: takes the values of one task.
      values: leaves `[tasks, ...]`.
      size: number of tasks at a time, a divisor of the number of tasks; if all tasks
        run at once, there is no loop.
      after: any array.
    """
    num_tasks = len(jax.tree.leaves(values)[0])
    if size == num_tasks:
        return jax.vmap(function)(values)
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
