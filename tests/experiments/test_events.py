"""Event files beside the CSV: what is in them, and what a resumed run leaves."""

import contextlib
import math
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.lab.cli import UsageError
from experiments.lab.run_folder import CsvStream, claim
from tests.experiments.event_files import read_events, read_runs

ROW = {"method": "mgda", "only": "", "seed": 0, "epoch": 1, "moving": "shared"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    claim(tmp_path, {}, resume=False, tensorboard=True)
    return tmp_path


def test_rows_become_scalars(out: Path):
    """Columns before the epoch name the run; words and gaps are no numbers."""
    stream = CsvStream(out / "metrics.csv")
    stream.append({**ROW, "loss": 2.0, "rate": ""})
    stream.append({**ROW, "epoch": 2, "loss": math.nan, "rate": 3})
    stream.append({**ROW, "seed": 1, "loss": 5.0, "rate": ""})
    runs = read_runs(out / "tensorboard" / "metrics")
    assert set(runs) == {"method=mgda,seed=0", "method=mgda,seed=1"}
    first = runs["method=mgda,seed=0"]
    assert math.isnan(first.pop(("loss", 2)))
    assert first == {("loss", 1): 2.0, ("rate", 2): 3.0}
    assert runs["method=mgda,seed=1"] == {("loss", 1): 5.0}
    assert (out / "metrics.csv").read_text().count("\n") == 4


def test_records_are_those_of_the_library(out: Path, tmp_path: Path):
    """To the byte, checksums included, as its own writer frames the same events."""
    from tensorboardX.record_writer import RecordWriter

    CsvStream(out / "metrics.csv").append({**ROW, "loss": 2.0})
    (path,) = (out / "tensorboard").rglob("events.out.tfevents.*")
    with contextlib.closing(RecordWriter(str(tmp_path / "again"))) as writer:
        events = list(read_events(path))
        for event in events:
            writer.write(event.SerializeToString())
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert [event.file_version for event in events] == ["brain.Event:2", ""]


def test_a_file_of_its_own_for_each_csv(out: Path):
    for name in ("a_metrics", "b_metrics"):
        CsvStream(out / f"{name}.csv").append({"step": 7, "loss": 1.0})
    runs = read_runs(out / "tensorboard")
    assert runs == {name: {("loss", 7): 1.0} for name in ("a_metrics", "b_metrics")}


def test_a_resumed_run_writes_anew(out: Path):
    """As the CSV: no row is lost, and none is there twice."""
    CsvStream(out / "metrics.csv").append({**ROW, "loss": 1.0})
    claim(out, {}, resume=True)  # the folder remembers
    CsvStream(out / "metrics.csv", [{**ROW, "loss": 1.0}]).append(
        {**ROW, "epoch": 2, "loss": 0.5}
    )
    (scalars,) = read_runs(out / "tensorboard").values()
    assert scalars == {("loss", 1): 1.0, ("loss", 2): 0.5}


def test_no_event_files_unless_asked_for(tmp_path: Path):
    claim(tmp_path, {}, resume=False)
    CsvStream(tmp_path / "metrics.csv").append({**ROW, "loss": 1.0})
    assert not (tmp_path / "tensorboard").exists()


def test_missing_package_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UsageError, match=r"tensorboardX.*pip install"):
        claim(tmp_path / "run", {}, resume=False, tensorboard=True)
    assert not (tmp_path / "run").exists()
    options = ["--train-pairs", "64", "--out", str(tmp_path / "run"), "--tensorboard"]
    assert main(["multimnist", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert '-e ".[tensorboard]"' in error
    assert not (tmp_path / "run").exists()
