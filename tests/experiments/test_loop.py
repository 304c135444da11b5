"""The one loop: a killed run resumes to the bit, a damaged file is never a result."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pandas as pd
import pytest

from experiments.lab import loop
from experiments.lab.errors import UsageError
from experiments.lab.folder import Checkpoints, RunFolder
from experiments.lab.loop import Training, train
from experiments.lab.settings import Options

EPOCHS, TASKS = 5, ("up", "down")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Those of a toy.

    Attributes:
      rate: of the growth.
    """

    rate: float = 0.5


def make(method: str, epochs: list[int], die_at: int | None = None) -> Training:
    """A state of two runs that grows in each epoch; `epochs` lists those trained."""

    def epoch(state: Any, number: int, progress: Callable[..., None]) -> Any:
        if number == die_at:
            raise KeyboardInterrupt
        epochs.append(number)
        state = state * 1.5 + 0.1
        progress(1, "")
        values = {"loss": jnp.stack([state, -state], axis=1), "twice": 2 * state}
        return state, {**values, "seconds": 0.0}

    runs = [{"method": method, "seed": seed} for seed in range(2)]
    return Training(
        method,
        runs,
        lambda: jnp.array([1.0, 2.0]),
        epoch,
        1,
        lambda state: {"test": state / 3},
        lambda state: bool(state[0] < 5),  # so for four epochs
    )


def run(out: Path, resume: bool = False, die_at: int | None = None) -> pd.DataFrame:
    with RunFolder(Settings(out=str(out), resume=resume)) as folder:
        trainings = [make("a", []), make("b", [], die_at)]
        return train(trainings, EPOCHS, TASKS, folder)


@pytest.fixture(autouse=True)
def save_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)


def test_the_long_table(tmp_path: Path):
    """A row for each number; the last record is that of the end; early stopping."""
    table = run(tmp_path)
    a = table[(table["method"] == "a") & (table["seed"] == 1)]
    assert a["epoch"].max() == 4
    up = a[(a["name"] == "loss") & (a["part"] == "up")]["value"].tolist()
    state, expected = jnp.array(2.0), []
    for _ in range(4):
        state = state * 1.5 + 0.1
        expected.append(float(state))
    assert up == expected
    assert a[a["name"] == "twice"]["value"].tolist() == [2 * x for x in expected]
    test = a[a["name"] == "test"]
    assert test["epoch"].tolist() == [4]
    assert test["value"].tolist() == [pytest.approx(expected[-1] / 3)]
    written = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(written, table, check_dtype=False)


@pytest.mark.slow
@pytest.mark.parametrize("die_at", range(4))
def test_killed_run_resumes_to_the_bit(tmp_path: Path, die_at: int):
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", die_at=die_at)
    trained: list[int] = []
    with RunFolder(Settings(out=str(tmp_path / "killed"), resume=True)) as folder:
        trainings = [make("a", trained), make("b", trained)]
        resumed = train(trainings, EPOCHS, TASKS, folder)
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    assert trained == list(range(die_at, 4))  # nothing is trained twice


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.slow
def test_flipped_bits_give_a_line_or_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, killed = run(tmp_path / "whole"), tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(killed, die_at=3)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9)  # time is for reading
    files = [path for path in sorted(killed.rglob("*/**/*")) if path.is_file()]
    files = [path.relative_to(killed) for path in files if path.stat().st_size]
    for number, file in enumerate(files):
        out = shutil.copytree(killed, tmp_path / str(number))
        flip(out / file, 1001 * (number + 1))
        if file.parent.name == "runs":  # it has no older copy
            with pytest.raises(UsageError, match=r"^[^\n]*damaged. Delete[^\n]*$"):
                run(out, resume=True)
        else:
            resumed = run(out, resume=True)
            pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    assert len(files) > 20


def test_flipped_bit_that_is_no_text_any_more(tmp_path: Path):
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", die_at=3)
    newest = max((tmp_path / "killed").rglob("*.sha256"))
    flip(newest, 7)  # the high bit of an ASCII letter
    resumed = run(tmp_path / "killed", resume=True)
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def test_the_checksum_of_a_deleted_checkpoint_goes_with_it(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        checkpoints.save(epoch, jnp.array(float(epoch)), [])
    flip(tmp_path / "2.sha256", 9)
    restored = checkpoints.restore(jnp.array(0.0))
    assert restored is not None
    assert restored[:2] == (1, 1.0)
    assert [path.name for path in tmp_path.glob("*.sha256")] == ["1.sha256"]


def test_killed_between_record_and_checkpoints(tmp_path: Path):
    """The next run removes the checkpoints that are no longer needed."""
    whole = run(tmp_path)
    left = tmp_path / "checkpoints" / "a"
    (left / "3").mkdir(parents=True)
    resumed = run(tmp_path, resume=True)
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    assert not left.exists()


def test_one_run_at_a_time(tmp_path: Path):
    with (
        RunFolder(Settings(out=str(tmp_path))),
        pytest.raises(UsageError, match="another run is at work"),
    ):
        RunFolder(Settings(out=str(tmp_path), resume=True))
    with RunFolder(Settings(out=str(tmp_path), resume=True)):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(), r"already holds a run.*--resume"),
        (Settings(resume=True, rate=0.1), "--rate was 0.5 there, got 0.1"),
    ],
)
def test_refuses_another_run(tmp_path: Path, settings: Settings, message: str):
    run(tmp_path)
    with pytest.raises(UsageError, match=message):
        RunFolder(dataclasses.replace(settings, out=str(tmp_path)))


def test_refuses_foreign_files(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds other files"):
        run(tmp_path)


def test_continues_a_claim_that_was_cut_short(tmp_path: Path):
    """A kill, or a full disk, before the settings were in their place."""
    (tmp_path / ".lock").write_text("")
    (tmp_path / "settings.json.partial").write_text('{"ra')
    run(tmp_path)
    assert not (tmp_path / "settings.json.partial").exists()
