"""A reader of event files, as short as their format."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_events(path: Path) -> Iterator[Any]:
    """Yields the events of a file: length, its checksum, event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def read_runs(folder: Path) -> dict[str, dict[tuple[str, int], float]]:
    """For each run below the folder, its values by tag and step."""
    runs: dict[str, dict[tuple[str, int], float]] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        run = runs.setdefault(str(path.parent.relative_to(folder)), {})
        for event in read_events(path):
            for value in event.summary.value:
                assert (value.tag, event.step) not in run
                run[value.tag, event.step] = value.simple_value
    return runs
