"""The long table as event files: what is in them, and what a resumed run leaves."""

import math
from pathlib import Path
from typing import Any

import pytest

from experiments.lab.folder import RunFolder
from experiments.lab.records import Stream, rows_of
from experiments.lab.settings import Options
from tests.experiments.event_files import read_runs

ROW = {"method": "mgda", "only": "", "seed": 0, "epoch": 1, "name": "loss", "part": ""}


def write(out: Path, rows: list[dict[str, Any]], tensorboard: bool = True) -> None:
    options = Options(out=str(out), tensorboard=tensorboard, resume=True)
    with RunFolder(options) as folder:
        stream = Stream(folder, "metrics")
        stream.append(iter(rows))
        stream.close()


def test_rows_become_scalars(tmp_path: Path):
    """Columns before the epoch name the run, and the part of a name its tag."""
    rows = [
        {**ROW, "value": 2.0},
        {**ROW, "epoch": 2, "value": math.nan},
        {**ROW, "epoch": 2, "name": "rate", "part": "left", "value": 3.0},
        {**ROW, "seed": 1, "value": 5.0},
    ]
    write(tmp_path, rows)
    runs = read_runs(tmp_path / "tensorboard" / "metrics")
    assert set(runs) == {"method=mgda,seed=0", "method=mgda,seed=1"}
    first = runs["method=mgda,seed=0"]
    assert math.isnan(first.pop(("loss", 2)))
    assert first == {("loss", 1): 2.0, ("rate/left", 2): 3.0}
    assert runs["method=mgda,seed=1"] == {("loss", 1): 5.0}
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 5


def test_a_resumed_run_writes_anew(tmp_path: Path):
    """As the CSV: no row is lost, and none is there twice."""
    first, second = {**ROW, "value": 1.0}, {**ROW, "epoch": 2, "value": 0.5}
    write(tmp_path, [first])
    write(tmp_path, [first, second])
    (scalars,) = read_runs(tmp_path / "tensorboard" / "metrics").values()
    assert scalars == {("loss", 1): 1.0, ("loss", 2): pytest.approx(0.5)}


def test_event_files_of_an_earlier_run_are_removed(tmp_path: Path):
    write(tmp_path, [{**ROW, "value": 1.0}])
    write(tmp_path, [{**ROW, "value": 2.0}], tensorboard=False)
    assert not (tmp_path / "tensorboard" / "metrics").exists()


def test_no_event_files_unless_asked_for(tmp_path: Path):
    write(tmp_path, [{**ROW, "value": 1.0}], tensorboard=False)
    assert not (tmp_path / "tensorboard").exists()


def test_numbers_without_an_axis_of_runs_are_refused():
    """By task, for one run: the losses of all tasks but the first would be lost."""
    with pytest.raises(ValueError, match=r"`loss` must have a leading axis of 1 runs"):
        list(rows_of([{"seed": 0}], {}, ("up", "down"), 1, {"loss": [1.0, 2.0]}))
