"""The command line: every mistake is one line that says what to do."""

import dataclasses
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

import mtlopt
from experiments.__main__ import MOVED, NAMES, main
from experiments.aligned_mtl import multimnist
from experiments.lab.errors import UsageError
from experiments.lab.settings import Options, deciding, methods_for, parse

Fail = Callable[..., str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Those of a toy.

    Attributes:
      methods: some of a and b.
      epochs: passes over the data.
      rates: from which one is chosen.
      decay: of the rate.
      examples: 0 for all.
    """

    methods: tuple[str, ...] = ("a",)
    epochs: int = 3
    rates: tuple[float, ...] = (0.1, 1.0)
    decay: Literal["cosine", "steps"] = "cosine"
    examples: int = 50


def read(*argv: str) -> Settings:
    return parse(
        "toy",
        "What it does\n(in 2\n3 lines).\n\n--one  of a\n       list\n--two  of it\n",
        Settings(),
        argv,
        full={"epochs": 100, "rates": (0.5,), "examples": 0},
        names={"methods": ("a", "b")},
    )


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Fail:
    """Returns the function that runs a command and returns its one line of error."""

    def run(*argv: str) -> str:
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err

    return run


def test_defaults_and_options():
    assert read() == Settings(out="results/toy")
    assert read("--methods", "b,a", "--rates", "1", "2").methods == ("b", "a")
    assert read("--methods", "all", "--resume").methods == ("a", "b")
    assert read("--examples", "0").examples == 0  # for all, as the help says
    full = read("--full", "--epochs", "7")
    assert (full.epochs, full.rates, full.full) == (7, (0.5,), True)
    decides = {"methods", "epochs", "rates", "decay", "examples"}
    assert set(deciding(full)) == decides


def test_help_has_the_attributes_and_what_full_changes(capsys):
    with pytest.raises(SystemExit, match="0"):
        read("--help")
    page = capsys.readouterr().out
    for text in ("passes over the data", "--epochs 100", "--rates 0.5", "--resume"):
        assert text in page
    # A paragraph is one line, which the terminal breaks; a list keeps its lines.
    assert "\nWhat it does (in 2 3 lines).\n" in page
    assert "--one  of a\n       list\n--two  of it\n" in page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "0"], "--epochs must be a positive number, got 0"),
        (["--epochs", "-1"], "--epochs"),
        (["--epochs", "2.5"], "--epochs"),
        (["--epochs", "many"], "--epochs.*'many'"),
        (["--rates", "1", "nan"], "--rates must be a positive number, got nan"),
        (["--rates", "inf"], "--rates must be a positive number, got inf"),
        (["--examples", "-5"], "--examples"),
        (["--decay", "no"], "'no'.*'--decay'.*'cosine', 'steps'"),
        (["--epoch", "3"], "Unrecognized options: --epoch"),
        (["--methods", "a,c"], "--methods must name some of a, b, or all; got 'c'"),
        (["--methods"], "--methods must name at least one of a, b"),
        (["--out"], "--out"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str):
    with pytest.raises(UsageError, match=message) as found:
        read(*argv)
    assert "\n" not in str(found.value)


def test_full_is_refused_if_it_changes_nothing(fail):
    assert "--full changes nothing in doctor. Leave it out." in fail("doctor", "--full")


@pytest.mark.parametrize("name", ["aligned_mtl.toy", "doctor", "bench.sharded"])
def test_what_is_run_again_has_no_resume(fail, name: str):
    assert "Unrecognized options: --resume" in fail(name, "--resume")


def test_help_lists_experiments(capsys):
    assert main(["--help"]) == 0
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)


def test_old_names_say_the_new_one(fail):
    for old, new in MOVED.items():
        assert new in NAMES
        assert f"{old!r} is now {new!r}." in fail(old)


def test_no_traceback_in_a_process():
    command = [sys.executable, "-m", "experiments", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "'nonsense'" in done.stderr
    assert all(name in done.stderr for name in NAMES)


def test_missing_data(fail, tmp_path: Path):
    message = fail("multimnist", "--data-dir", str(tmp_path / "none"))
    assert str(tmp_path / "none") in message


def test_batch_larger_than_the_data(fail, tmp_path: Path):
    options = ["--train-pairs", "50", "--batch-size", "51", "--out", str(tmp_path)]
    message = fail("multimnist", *options)
    assert "--batch-size must be at most 50" in message
    assert not list(tmp_path.iterdir())


def test_default_is_every_method_of_the_papers():
    few, known = set(multimnist.FEW), set(methods_for(2))
    assert few < known < set(mtlopt.METHODS)


def test_missing_package_says_what_to_install(fail, monkeypatch):
    monkeypatch.setattr(
        "importlib.import_module",
        lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name="flax")),
    )
    assert "the package 'flax' is missing" in fail("multimnist")


def test_missing_tensorboard_is_one_line_before_anything_is_written(
    fail, tmp_path: Path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    options = ["--train-pairs", "64", "--out", str(tmp_path / "run"), "--tensorboard"]
    assert '-e ".[tensorboard]"' in fail("multimnist", *options)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line(fail, monkeypatch):
    def no_space(settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

    monkeypatch.setattr(multimnist, "RunFolder", no_space)
    message = fail("multimnist", "--train-pairs", "64")
    assert "cannot write: [Errno 28] No space left on device: 'metrics.csv'" in message
