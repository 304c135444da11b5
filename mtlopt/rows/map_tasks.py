"""One function, applied to the row of every task."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import convolves
from mtlopt.rows.protocol import Leaves

Batching = Literal["auto", "unroll", "vmap", "map"] | int

# Up to this many tasks an unrolled program compiles about as fast as a loop.
_UNROLL_LIMIT = 8


def map_tasks(
    function: Callable[[Leaves], Leaves], rows: Leaves, batching: Batching
) -> Leaves:
    """Applies `function` to every task's row and stacks the results.

    Args:
      function: from leaves without to leaves without the task axis.
      rows: leaves `[tasks, ...]`.
      batching: `"unroll"` a copy of the program per task, `"vmap"` one batched program,
        `"map"` one task after the other in a loop, an int: loops over chunks of so many
        tasks. `"auto"`, by measurement: `"vmap"`, but on CPU, where XLA runs batched
        pullbacks up to four times slower, `"unroll"` for up to 8 tasks and `"map"` for
        more, which compiles sooner; unless the pullback has a `lax` convolution, which
        XLA runs many times slower inside a loop on CPU.

    Returns:
      Leaves `[tasks, ...]`.
    """
    if batching == "auto":
        batching = _choose_batching(function, rows)
    if not len(rows[0]):
        batching = "vmap"  # the others need a row to learn the result's shape from
    if batching == "unroll":
        results = [function([leaf[i] for leaf in rows]) for i in range(len(rows[0]))]
        return [jnp.stack(leaves) for leaves in zip(*results, strict=True)]
    if batching == "vmap":
        return jax.vmap(function)(rows)
    if batching == "map":
        return jax.lax.map(function, rows)
    assert isinstance(batching, int)
    return jax.lax.map(function, rows, batch_size=batching)


def _choose_batching(function: Callable[[Leaves], Leaves], rows: Leaves) -> Batching:
    if jax.default_backend() != "cpu":
        return "vmap"
    few = rows[0].shape[0] <= _UNROLL_LIMIT
    return "unroll" if few or convolves(function, [r[0] for r in rows]) else "map"
