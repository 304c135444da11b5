"""Rows of metrics as event files, which TensorBoard and other viewers read."""

import numbers
import re
import shutil
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.lab.cli import UsageError

FOLDER = "tensorboard"
_STEPS = ("epoch", "step")  # the column that counts; those before it name the run


def check_installed() -> None:
    """Raises a `UsageError` if the package that encodes events is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--tensorboard needs the package tensorboardX. Install it: "
            'pip install -e ".[tensorboard]".'
        ) from error


class EventStream:
    """Event files to which the rows of one CSV file are appended: a folder a run.

    A row's columns before `epoch` or `step` name its run; of those behind it the
    numbers are scalars of that step, under the column's name. What a killed run left in
    the folder is removed, as a resumed run appends all its rows again.

    tensorboardX knows the format; its writer is not used, because it writes from a
    thread that its `flush` does not wait for, and a killed run would lose rows.

    Args:
      folder: the folder of the runs.

    Raises:
      UsageError: if the package that encodes events is missing.
    """

    def __init__(self, folder: Path):
        check_installed()
        self._folder = folder
        # By time: a viewer that is open takes it for another file than the removed one.
        self._name = f"events.out.tfevents.{time.time():.6f}"
        shutil.rmtree(folder, ignore_errors=True)

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends the numbers of a row, and before the first of a run the version."""
        columns = list(row)
        counter = next(name for name in columns if name in _STEPS)
        place = columns.index(counter)
        keys = {name: row[name] for name in columns[:place]}
        values = {name: row[name] for name in columns[place + 1 :]}
        path = self._folder / run_name(keys) / self._name
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if new:
                file.write(_record(_event(file_version="brain.Event:2")))
            file.write(
                _record(_event(step=int(row[counter]), summary=_scalars(values)))
            )


def run_name(keys: Mapping[str, Any]) -> str:
    """Returns the folder of the run that these columns name; empty ones are left out.

    Examples:
      >>> run_name({"method": "IO, 2 groups", "only": "", "rate": 1e-3, "seed": 0})
      'method=IO_2_groups,rate=0.001,seed=0'
    """
    named = {name: re.sub(r"[^\w.+-]+", "_", str(key)) for name, key in keys.items()}
    return ",".join(f"{name}={key}" for name, key in named.items() if key)


def _scalars(values: Mapping[str, Any]) -> Any:
    from tensorboardX.proto import summary_pb2

    summary: Any = summary_pb2  # its classes are made at import, unknown to pyright
    return summary.Summary(
        value=[
            summary.Summary.Value(tag=name, simple_value=float(value))
            for name, value in values.items()
            if isinstance(value, numbers.Real)
        ]
    )


def _event(**fields: Any) -> bytes:
    from tensorboardX.proto import event_pb2

    event: Any = event_pb2
    return event.Event(wall_time=time.time(), **fields).SerializeToString()


def _record(data: bytes) -> bytes:
    """Returns a TFRecord: length, its checksum, data, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checksums) + data + next(checksums)
