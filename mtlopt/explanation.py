"""The result of `Oracle.explain`: how gradients are computed, and a step's memory."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

PyTree = Any


class LeafPlan(NamedTuple):
    """How inner products of the tasks' gradients are computed for one shared leaf.

    Attributes:
      path: path of the leaf.
      shape: shape of the leaf.
      layerwise: whether the step needs no gradient per task for this leaf.
      sizes: numbers of positions, inputs and outputs, if the leaf's gradient is a
        product of matrices; otherwise None.
      reason: why there are gradients per task, or how the step avoids them.
    """

    path: str
    shape: tuple[int, ...]
    layerwise: bool
    sizes: tuple[int, int, int] | None
    reason: str


def row_plans(
    paths: Sequence[str], rows: Sequence[jax.Array], reason: str
) -> tuple[LeafPlan, ...]:
    """Returns plans for leaves that need gradients per task, all for one reason."""
    return tuple(
        LeafPlan(path, leaf.shape[1:], False, None, reason)
        for path, leaf in zip(paths, rows, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The result of `Oracle.explain`; `print` shows it as a table.

    Attributes:
      leaves: one `LeafPlan` for each shared leaf.
      temporary_bytes: memory that the step needs in addition to arguments and results.
      argument_bytes: memory of the step's arguments.
      output_bytes: memory of the step's results.
    """

    leaves: tuple[LeafPlan, ...]
    temporary_bytes: int
    argument_bytes: int
    output_bytes: int

    def __str__(self) -> str:
        """Returns a table of the leaves, with the memory in its last line."""
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
            f"{self.temporary_bytes / mib:.1f} MiB in addition to arguments "
            f"({self.argument_bytes / mib:.1f} MiB) and results "
            f"({self.output_bytes / mib:.1f} MiB)"
        )
        return "\n".join(lines)


def explain(
    step: Callable[..., tuple[Any, Any]], *args: PyTree
) -> tuple[Any, tuple[int, int, int]]:
    """Compiles a step that also returns static data, known while the step is traced.

    Args:
      step: function from the arguments to its results and static data.
      *args: arguments of the step, or their shapes.

    Returns:
      The static data, and the numbers of bytes of temporaries, arguments and results.
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
