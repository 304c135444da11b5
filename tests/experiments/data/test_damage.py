"""Damaged, mislabelled and boastful files: one line, little memory, no program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.data.damage_cases import CASES
from tests.experiments.data.small_releases import LOADERS

MOST_MEMORY = 300  # MiB above the import
MOST_SECONDS = 10  # a file
NAMES = [str(case) for case in CASES]


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    """How each case ended, all in one process of their own."""
    command = [sys.executable, "-m", "tests.experiments.data.damage"]
    found = subprocess.run(
        [*command, str(tmp_path_factory.mktemp("releases"))],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("place", range(len(CASES)), ids=NAMES)
def test_one_line_names_the_file(attempts, place):
    """And says what is wrong; nothing is unpickled, and no program is started."""
    case, record = CASES[place], attempts["records"][place]
    assert {"ValueError", "OSError"} & set(record["kinds"])
    message = record["message"]
    assert len(message) < 1000
    assert message.isprintable()
    assert Path(case.file).name in message
    assert case.words in message
    assert record["programs"] == []
    assert record["seconds"] < MOST_SECONDS


def test_memory_is_not_set_aside_for_claims(attempts):
    """Whole releases are loaded in the same process, and take some of it."""
    peaks = [record["peak"] for record in attempts["records"]]
    worst = max(range(len(CASES)), key=lambda place: peaks[place])
    assert peaks[worst] - attempts["before"] <= MOST_MEMORY, NAMES[worst]


def test_every_loader_is_tried():
    """With 60 files at least, of which many state sizes of 1e9 and more."""
    assert {case.release for case in CASES} == set(LOADERS)
    assert len(set(NAMES)) == len(CASES) >= 60
    assert sum("1e9" in name or "gigabyte" in name for name in NAMES) >= 20
