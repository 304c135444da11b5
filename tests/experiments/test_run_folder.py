"""The run's folder: whose it is, and files that are whole at any moment."""

import json
import math
from pathlib import Path

import pytest

from experiments.lab.cli import UsageError
from experiments.lab.run_folder import CsvStream, claim, write_json

SETTINGS = {"methods": ("mgda", "pcgrad"), "epochs": 3, "data_dir": None}


def test_claims_a_new_folder(tmp_path: Path):
    claim(tmp_path / "a" / "b", SETTINGS, resume=False)
    saved = json.loads((tmp_path / "a" / "b" / "settings.json").read_text())
    assert saved == {**SETTINGS, "methods": ["mgda", "pcgrad"]}


def test_resumes_with_the_same_settings(tmp_path: Path):
    claim(tmp_path, SETTINGS, resume=True)
    claim(tmp_path, SETTINGS, resume=True)


def test_refuses_a_run_without_resume(tmp_path: Path):
    claim(tmp_path, SETTINGS, resume=False)
    with pytest.raises(UsageError, match=r"already holds a run.*--resume"):
        claim(tmp_path, SETTINGS, resume=False)


def test_refuses_foreign_files(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds other files"):
        claim(tmp_path, SETTINGS, resume=True)


def test_refuses_other_settings_by_name(tmp_path: Path):
    claim(tmp_path, SETTINGS, resume=False)
    with pytest.raises(UsageError, match="--epochs was 3 there, got 4"):
        claim(tmp_path, {**SETTINGS, "epochs": 4}, resume=True)
    with pytest.raises(UsageError, match="--data-dir was None there, got '/mnist'"):
        claim(tmp_path, {**SETTINGS, "data_dir": "/mnist"}, resume=True)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_settings(tmp_path: Path, text: str):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UsageError, match=r"settings\.json is damaged"):
        claim(tmp_path, SETTINGS, resume=True)


def test_unwritable_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/run")):
        with pytest.raises(UsageError, match="--out must be a writable folder"):
            claim(out, SETTINGS, resume=False)


def test_json_has_no_infinite_numbers(tmp_path: Path):
    write_json(tmp_path / "a.json", {"rates": [1.0, math.inf, (math.nan,)]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"rates": [1, None, [None]]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_csv_has_one_header_and_starts_anew(tmp_path: Path):
    path = tmp_path / "a.csv"
    CsvStream(path).append({"epoch": 1})
    stream = CsvStream(path, [{"epoch": 1}, {"epoch": 2}])
    stream.append({"epoch": 3})
    assert path.read_text().split() == ["epoch", "1", "2", "3"]
