"""The folder of one run: whose it is, and the files that survive a `kill -9`."""

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.lab import events
from experiments.lab.cli import UsageError

_SETTINGS = "settings.json"


def claim(
    out: Path,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    tensorboard: bool = False,
) -> None:
    """Makes `out` the folder of a run with these settings, or refuses.

    An empty or missing folder is claimed whether or not `resume` is set, so that one
    command line serves for the first start and all later ones.

    Args:
      out: the folder.
      settings: what decides the numbers of the run; plain values.
      resume: whether a run with the same settings may be continued.
      tensorboard: whether the rows of every `CsvStream` in the folder, from now on,
        become event files too.

    Raises:
      UsageError: if the folder cannot be written, holds something else, holds a run and
        `resume` is not set, or holds a run with other settings; or if the package that
        writes event files is missing.
    """
    if tensorboard:
        events.check_installed()
    path = out / _SETTINGS
    wanted = json.loads(json.dumps(settings))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            found = _read_settings(path)
            _check_same(out, found, wanted, resume)
        elif any(out.iterdir()):
            raise UsageError(
                f"--out must be an empty folder or that of a run, but {out} holds "
                "other files. Choose another folder."
            )
        write_json(path, wanted)
        if tensorboard:
            (out / events.FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out must be a writable folder, but {out} is not: {error.strerror}."
        ) from error


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged. Choose another folder with --out.")
    return found


def _check_same(
    out: Path, found: dict[str, Any], wanted: dict[str, Any], resume: bool
) -> None:
    if not resume:
        raise UsageError(
            f"--out already holds a run, in {out}. Continue it with --resume, choose "
            "another folder, or remove this one."
        )
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            raise UsageError(
                f"--out holds a run with other settings, in {out}: "
                f"--{name.replace('_', '-')} was {found.get(name)!r} there, got "
                f"{wanted.get(name)!r}."
            )


def write_text(path: Path, text: str) -> None:
    """Writes a file at once: a reader, or a killed run, sees the old or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON at once. Numbers that JSON has no word for become null."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote; null is NaN again."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restore(item) for key, item in value.items()}
        if isinstance(value, list):
            return [restore(item) for item in value]
        return math.nan if value is None else value

    return restore(json.loads(path.read_text()))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class CsvStream:
    """A CSV file to which rows are appended and flushed as they come.

    In a folder that was claimed with `tensorboard`, every row becomes events as well.

    Args:
      path: the file. It is written anew with `rows`: after a resume these are the rows
        that the checkpoints know, so that none is lost and none is there twice.
      rows: mappings from column to value, all with the same columns.
    """

    def __init__(self, path: Path, rows: Iterable[Mapping[str, Any]] = ()):
        self._path = path
        path.unlink(missing_ok=True)
        folder = path.parent / events.FOLDER
        self._events = (
            events.EventStream(folder / path.stem) if folder.exists() else None
        )
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends a row, and before the first one the names of the columns."""
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        if self._events is not None:
            self._events.append(row)
