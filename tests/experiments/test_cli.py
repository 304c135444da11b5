"""The command line: every mistake is one line that says what to do."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mtlopt
from experiments.__main__ import MOVED, NAMES, main
from experiments.aligned_mtl.multimnist import FEW, parse
from experiments.lab.cli import methods_for

Fail = Callable[..., str]


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Fail:
    """Returns the function that runs a command and returns its one line of error."""

    def run(*argv: str) -> str:
        try:
            code = main(argv)
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()
        assert code == 2
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err

    return run


def test_help_lists_experiments(capsys):
    assert main(["--help"]) == 0
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)


def test_no_traceback_in_a_process():
    command = [sys.executable, "-m", "experiments", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_unknown_experiment_lists_names(fail):
    message = fail("mnist")
    assert "'mnist'" in message
    assert all(name in message for name in NAMES)


def test_old_names_say_the_new_one(fail):
    for old, new in MOVED.items():
        assert new in NAMES
        assert f"{old!r} is now {new!r}." in fail(old)


def test_unknown_method_lists_names(fail):
    message = fail("multimnist", "--methods", "mgda,adam")
    assert "--methods" in message
    assert "'adam'" in message
    assert all(name in message for name in methods_for(2))


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many"])
def test_counts_are_positive_integers(fail, value):
    message = fail("multimnist", "--epochs", value)
    assert f"--epochs: must be a positive integer, got {value}" in message


@pytest.mark.parametrize("value", ["0", "nan", "inf", "fast"])
def test_learning_rate_is_positive(fail, value):
    message = fail("multimnist", "--learning-rate", value)
    assert f"--learning-rate: must be a positive number, got {value}" in message


def test_unknown_option(fail):
    assert "--epoch" in fail("multimnist", "--epoch", "3")


def test_missing_data(fail, tmp_path: Path):
    message = fail("multimnist", "--data-dir", str(tmp_path / "none"))
    assert str(tmp_path / "none") in message


def test_batch_larger_than_the_data(fail, tmp_path: Path):
    options = ["--train-pairs", "50", "--batch-size", "51", "--out", str(tmp_path)]
    message = fail("multimnist", *options)
    assert "--batch-size must be at most 50" in message
    assert not list(tmp_path.iterdir())


def test_full_is_overridden_by_options():
    settings, _, _ = parse(["--full", "--epochs", "7"])
    assert (settings.epochs, settings.batch_size, settings.seeds) == (7, 256, 3)


def test_default_is_every_method():
    assert parse([])[0].methods == FEW
    assert parse(["--methods", "all"])[0].methods == methods_for(2)
    assert set(FEW) < set(methods_for(2)) < set(mtlopt.METHODS)


def test_missing_package_says_what_to_install(fail, monkeypatch):
    monkeypatch.setattr(
        "importlib.import_module",
        lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name="flax")),
    )
    assert "the package 'flax' is missing" in fail("multimnist")
