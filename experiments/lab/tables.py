"""Markdown tables, made from the long table of records."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

# A pandas table; its types cannot describe the columns.
Frame = Any


def command_line(experiment: str, argv: Sequence[str]) -> str:
    """Returns the command as typed: `python -m experiments toy --out 'my results'`."""
    return shlex.join(["python", "-m", "experiments", experiment, *argv])


def select(table: Frame, **values: Any) -> Frame:
    """Returns the rows that have these values in these columns."""
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def curve(table: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Returns epochs `[points]` and values `[points, seeds]`, means over the parts."""

    def mean(values: pd.Series) -> float:
        return float(values.to_numpy().mean())  # pandas' mean would skip NaN

    wide = table.pivot_table("value", "epoch", "seed", mean, dropna=False)
    return wide.index.to_numpy(), wide.to_numpy()


def number(values: Sequence[float], factor: float = 1.0, digits: int = 2) -> str:
    """Returns the mean, and the standard deviation if several values are all finite.

    Examples:
      >>> number([0.5, 0.7], 100, 1), number([2.0]), number([2.0, float("inf")])
      ('60.0 ± 14.1', '2.00', 'inf')
    """
    values = [float(value) for value in values]
    mean = f"{factor * statistics.fmean(values):.{digits}f}"
    if len(values) == 1 or not np.isfinite(values).all():
        return mean
    return f"{mean} ± {factor * float(np.std(values, ddof=1)):.{digits}f}"


def count(number: int, noun: str) -> str:
    """Returns a number with its noun: 1 seed, 3 seeds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table that is aligned in plain text too.

    The first column is aligned left, the others right.

    Examples:
      >>> print(markdown_table(["method", "left"], [["mgda", "93.1"]]))
      | method | left |
      | :----- | ---: |
      | mgda   | 93.1 |
    """
    # At least two, because a colon alone is no rule.
    columns = zip(header, *rows, strict=True)
    widths = [max(2, *map(len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [f"{first[0]:<{first[1]}}"]
        padded += [f"{cell:>{width}}" for cell, width in others]
        return f"| {' | '.join(padded)} |"

    first, *others = (width - 1 for width in widths)
    rule = [":" + "-" * first, *("-" * width + ":" for width in others)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def frame_table(cells: Frame, corner: str) -> str:
    """Returns a pandas table of text as Markdown; its index is the first column."""
    rows = cells.reset_index().to_numpy().tolist()
    return markdown_table([corner, *cells.columns], rows)


def read_table(metrics: Sequence[str], text: str) -> dict[str, dict[str, str]]:
    """Reads a paper's table, with a line for each method and a column for each metric.

    Examples:
      >>> read_table(["error", "f1"], "ius 9.1 69.0")
      {'ius': {'error': '9.1', 'f1': '69.0'}}
    """
    lines = (line.split() for line in text.strip().splitlines())
    return {name: dict(zip(metrics, cells, strict=True)) for name, *cells in lines}


def cost_table(
    seconds: Mapping[str, float],
    operations: Mapping[str, float],
    titles: Mapping[str, str],
    base: str,
    paper: Mapping[str, str] | None = None,
) -> str:
    """Returns the costs of a step by method, as multiples of the method `base`.

    The seconds come from `program.fastest`, and the operations are XLA's count.
    """
    header = ["method", "milliseconds", "multiple", "operations, multiple"]
    header += ["multiple, paper"] if paper else []
    rows = []
    for name, own in seconds.items():
        multiples = own / seconds[base], operations[name] / operations[base]
        cells = [f"{1e3 * own:.2f}", *(f"{multiple:.2f}" for multiple in multiples)]
        rows.append([titles[name], *cells, *([paper.get(name, "")] if paper else [])])
    return markdown_table(header, rows)
