"""Tables as Markdown, numbers as JSON, and where they come from."""

import dataclasses
import datetime as dt
import importlib.metadata
import math
import platform
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.lab.run_folder import write_json, write_text

_PACKAGES = ("mtlopt", "jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy")


def provenance() -> dict[str, Any]:
    """Returns date, device and versions, for a results file."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def command_line(experiment: str, argv: Sequence[str]) -> str:
    """Returns what was typed.

    Examples:
      >>> command_line("toy", ["--out", "my results"])
      "python -m experiments toy --out 'my results'"
    """
    return shlex.join(["python", "-m", "experiments", experiment, *argv])


def write_results(
    out: Path, experiment: str, settings: Any, report: str, **results: Any
) -> None:
    """Writes `report.md`, and `results.json` with how it came about.

    Args:
      out: the folder.
      experiment: its name.
      settings: a dataclass.
      report: the report.
      **results: all else that the JSON file says.
    """
    write_text(out / "report.md", report)
    record = {
        "experiment": experiment,
        "settings": dataclasses.asdict(settings),
        **provenance(),
        **results,
    }
    write_json(out / "results.json", record)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table that is aligned in plain text too.

    The first column is aligned left, the others right.

    Examples:
      >>> print(markdown_table(["method", "left"], [["mgda", "93.1"]]))
      | method | left |
      | :----- | ---: |
      | mgda   | 93.1 |
    """
    # At least two: a rule of a colon alone is no rule.
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


def percent(values: Sequence[float]) -> str:
    """Returns mean and, of several seeds, standard deviation of shares, in percent.

    Examples:
      >>> percent([0.91, 0.93]), percent([0.5])
      ('92.00 ± 1.41', '50.00')
    """
    mean = f"{100 * statistics.fmean(values):.2f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.2f}"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns mean, standard deviation, maximum and minimum.

    Examples:
      >>> spread([1.0, 3.0])
      {'mean': 2.0, 'std': 1.0, 'max': 3.0, 'min': 1.0}
    """
    mean = statistics.fmean(values)
    finite = math.isfinite(mean)
    return {
        "mean": mean,
        "std": statistics.pstdev(values) if finite else math.nan,
        "max": max(values),
        "min": min(values),
    }
