"""The long table of a run, with a row for each number; all reports use this table."""

import csv
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.lab.folder import RunFolder
from experiments.lab.tables import Frame

Row = dict[str, Any]
_NUMBERS = ("epoch", "name", "part", "value")  # the columns after the run's columns


def rows_of(
    runs: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Sequence[Any]],
    tasks: Sequence[str],
    epoch: int,
    values: Mapping[str, Any],
) -> Iterator[Row]:
    """Yields the rows of the records of an epoch.

    `values` are numbers by name: `[runs]`, `[runs, parts]`, or one number for all runs.
    The second axis is the axis of tasks, unless `parts` has labels for the name.
    """
    for name, numbers in values.items():
        array = np.asarray(numbers, float)
        if array.ndim and len(array) != len(runs):
            raise ValueError(
                f"`{name}` must have a leading axis of {len(runs)} runs, got the shape "
                f"{array.shape}. Add it: `values[None]`."
            )
        labels = parts.get(name, tasks) if array.ndim > 1 else [""]
        each = np.broadcast_to(array, [len(runs), *array.shape[1:]])
        for run, own in zip(runs, each.reshape(len(runs), -1).tolist(), strict=True):
            keys = {**run, "epoch": epoch, "name": name}
            for part, value in zip(labels, own, strict=True):
                yield {**keys, "part": part, "value": value}


class Stream:
    """A table that is written to a CSV file, and to event files, as it grows.

    Each process writes the files from the start. After a resume, the records come from
    the checkpoints, so that no row is lost and no row appears twice.
    """

    def __init__(self, folder: RunFolder, name: str):
        self._path = folder.path / f"{name}.csv"
        self._path.unlink(missing_ok=True)
        self._columns: list[str] = []
        self._rows: list[tuple[Any, ...]] = []  # maybe millions, so no dictionaries
        self._writers: dict[str, Any] = {}
        self._events = folder.path / "tensorboard" / name
        self._with_events = folder.tensorboard
        shutil.rmtree(self._events, ignore_errors=True)

    def append(self, rows: Iterator[Row]) -> None:
        """Appends rows and flushes."""
        new = list(rows)
        if not new:
            return
        with self._path.open("a", newline="") as file:
            self._columns = self._columns or list(new[0])
            writer = csv.DictWriter(file, self._columns)
            if not self._rows:
                writer.writeheader()
            writer.writerows(new)
        self._rows += [tuple(row[name] for name in self._columns) for row in new]
        for row in new if self._with_events else ():
            self._add_scalar(row)

    def _add_scalar(self, row: Row) -> None:
        """Passes a number to its run's TensorBoard writer, which writes it soon."""
        import tensorboardX  # an extra; `RunFolder` has checked that it is installed

        name = run_name({k: v for k, v in row.items() if k not in _NUMBERS})
        if name not in self._writers:
            writer = tensorboardX.SummaryWriter(str(self._events / name))
            self._writers[name] = writer
        tag = f"{row['name']}/{row['part']}" if row["part"] != "" else row["name"]
        self._writers[name].add_scalar(tag, row["value"], row["epoch"])

    def close(self) -> Frame:
        """Closes the event files, and returns the table."""
        for writer in self._writers.values():
            writer.close()
        return pd.DataFrame(self._rows, columns=self._columns)


def run_name(keys: Mapping[str, Any]) -> str:
    """Returns the folder name of a run, from its columns without the empty ones.

    Examples:
      >>> run_name({"method": "IO, 2 groups", "only": "", "rate": 1e-3, "seed": 0})
      'method=IO_2_groups,rate=0.001,seed=0'
    """
    named = {name: re.sub(r"[^\w.+-]+", "_", str(key)) for name, key in keys.items()}
    return ",".join(f"{name}={key}" for name, key in named.items() if key)
