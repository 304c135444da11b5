"""The plan of a step: which leaf has rows, which is layerwise, how much memory."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from mtlopt.rows.layerwise import may_pay, pays
from mtlopt.rows.sweep import Sweep

PyTree = Any


class LeafPlan(NamedTuple):
    """How inner products of one shared leaf's gradients are taken.

    Attributes:
      path: path of the leaf.
      shape: its shape.
      layerwise: whether no gradient per task is made.
      sizes: positions, inputs and outputs, if its gradient is a product; else None.
      reason: why.
    """

    path: str
    shape: tuple[int, ...]
    layerwise: bool
    sizes: tuple[int, int, int] | None
    reason: str


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What `Oracle.explain` returns; prints as a table.

    Attributes:
      leaves: one `LeafPlan` for each shared leaf.
      temporary_bytes: memory that the step needs beside arguments and results.
      argument_bytes: memory of its arguments.
      output_bytes: memory of its results.
    """

    leaves: tuple[LeafPlan, ...]
    temporary_bytes: int
    argument_bytes: int
    output_bytes: int

    def __str__(self) -> str:
        """Returns a table of the leaves, and the memory."""
        cells = [("leaf", "shape", "way", "positions", "reason")]
        for leaf in self.leaves:
            cells.append(
                (
                    leaf.path,
                    " x ".join(map(str, leaf.shape)),
                    "layerwise" if leaf.layerwise else "rows",
                    "" if leaf.sizes is None else str(leaf.sizes[0]),
                    leaf.reason,
                )
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) for cell, w in zip(row, widths, strict=True)
            ).rstrip()
            for row in cells
        ]
        mib = 2**20
        lines.append(
            f"{self.temporary_bytes / mib:.1f} MiB beside arguments "
            f"({self.argument_bytes / mib:.1f}) and results "
            f"({self.output_bytes / mib:.1f})"
        )
        return "\n".join(lines)


def plan_leaves(linear: Any, paths: Sequence[str]) -> tuple[LeafPlan, ...]:
    """Returns the way of each shared leaf.

    Args:
      linear: the linearization.
      paths: of the shared leaves.
    """
    if getattr(linear, "pullback", None) is None:
        rows, reason = (
            getattr(linear, "values", None),
            "microbatches: rows are added up",
        )
        if rows is None:
            rows, reason = linear.latent_grads, "tasks have no pullback in common"
        shapes = [leaf.shape[1:] for leaf in rows]
        return tuple(
            LeafPlan(path, shape, False, None, reason)
            for path, shape in zip(paths, shapes, strict=True)
        )
    members = linear.members
    num_tasks = len(linear.latent_grads[0]) if members is None else len(members.indices)
    one = [
        jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in linear.latent_grads
    ]
    sweep = Sweep(linear.pull, one, lambda *_: True)
    plans = []
    for path, leaf, product in zip(paths, sweep.shapes, sweep.products, strict=True):
        sizes = None if product is None else product.sizes
        reason = _reason(linear, num_tasks, sizes)
        plans.append(LeafPlan(path, leaf.shape, not reason, sizes, reason))
    return tuple(plans)


def _reason(linear: Any, num_tasks: int, sizes: tuple[int, int, int] | None) -> str:
    """Returns why a leaf has rows; nothing if it has none."""
    if sizes is None:
        return "its gradient is no single product"
    if linear.options.streaming:
        return "streaming: rows are made one at a time"
    if linear.options.layerwise is False:
        return "layerwise=False"
    if not may_pay(linear.options.layerwise):
        return "not on one CPU device: pass layerwise=True"
    if num_tasks < 2 or not pays(num_tasks, *sizes):
        return "rows are fewer operations"
    return ""


def explain(
    step: Callable[..., tuple[Any, Any]], *args: PyTree
) -> tuple[Any, tuple[int, int, int]]:
    """Compiles a step that also returns what is known while it is traced.

    Args:
      step: from the arguments to its results and static data.
      *args: its arguments, or their shapes.

    Returns:
      The static data, and the bytes of temporaries, arguments and results.
    """
    known: list[Any] = []

    def run(*args: PyTree) -> Any:
        results, data = step(*args)
        known.append(data)
        return results

    memory = jax.jit(run).lower(*args).compile().memory_analysis()
    counts = (0, 0, 0)
    if memory is not None:
        counts = (
            memory.temp_size_in_bytes,
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
        )
    return known[-1], counts
