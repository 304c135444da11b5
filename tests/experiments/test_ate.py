"""The three commands on ATE-SG, from their options to the files that they leave."""

import dataclasses
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from experiments.ate_sg import mammography, synthetic, wireless
from experiments.ate_sg.training import NAMES, Run
from experiments.lab.errors import UsageError
from experiments.lab.settings import Options, parse

pytestmark = pytest.mark.slow

MODULES = {
    "synthetic": synthetic,
    "wireless": wireless,
    "mammography": mammography,
}
TINY = {
    "synthetic": ["--points", "100", "--width", "4", "--batch-size", "16"],
    "wireless": ["--signals-each", "4", "--channels", "2", "--batch-size", "8"],
    "mammography": [
        *["--train-images", "8", "--validation-images", "6", "--test-images", "6"],
        *["--side", "16", "--batch-size", "4", "--optimizers", "adam"],
    ],
}
SHORT = ["--epochs", "6", "--seeds", "2", "--phases", "1", "2"]
SHORT += ["--learning-rates", "0.001"]
KINDS = ("ATE-{}, E0 = Ets = 1", "ATE-{}, E0 = Ets = 2", "Classic {}")


@pytest.fixture(scope="module", params=list(MODULES))
def finished(request, tmp_path_factory):
    """The name of a command and the folder of its finished tiny run."""
    name = request.param
    out = tmp_path_factory.mktemp(name) / "out"
    MODULES[name].main([*TINY[name], *SHORT, "--out", str(out)])
    return name, out


def test_results_hold_every_run(finished):
    name, out = finished
    results = json.loads((out / "results.json").read_text())
    title = "Adam" if name == "mammography" else "SG"
    runs = results["runs"]
    assert [(run["training"], run["seed"]) for run in runs] == [
        (kind.format(title), seed) for kind in KINDS for seed in range(2)
    ]
    for run in runs:
        assert run["epochs"] == 6
        # Half of the epochs are cheaper; the full gradient is the unit.
        best, cost = run["best_epoch"], run["cost_by_parameters"]
        classic = run["training"] == KINDS[-1].format(title)
        assert cost == best if classic or best == 1 else 0 < cost <= best
    (seconds,) = results["seconds_per_epoch"].values()
    assert min(seconds.values()) > 0
    assert f"experiments ate_sg.{name}" in results["command"]
    assert "versions" in results
    assert results["settings"]["epochs"] == 6


def test_table_holds_every_test_score(finished):
    name, out = finished
    table = pd.read_csv(out / "metrics.csv", keep_default_na=False)
    for metric in ("recall", "precision", "f1"):
        scores = table[table["name"] == f"test_{metric}"]
        assert len(scores) == len(KINDS) * 2 * len(MODULES[name].TASKS)
        assert scores["value"].between(0, 1).all()


def test_report_has_the_papers_table_beside(finished):
    name, out = finished
    report = (out / "report.md").read_text()
    optimizer = "adam" if name == "mammography" else "sgd"
    for length in (1, 0):
        run = Run(optimizer, 0.001, length)
        lines = report.splitlines()
        place = next(i for i, line in enumerate(lines) if f"| {run.title} " in line)
        assert lines[place + 1].startswith("| — paper")
        for value in MODULES[name].PAPER[run.name].values():
            assert f" {100 * float(value):.2f} " in lines[place + 1]
    assert "Oscillation" in report
    assert "Cost of an epoch" in report
    assert "| E0 = 1 (" in report[report.index("## Verdicts") :]
    # First of all, what a stand-in cannot show.
    first = getattr(MODULES[name], "LIMIT", f"`python -m experiments ate_sg.{name} ")
    assert report.split("\n\n")[1].startswith(first)
    stand_in = {"wireless": "simulated", "mammography": "drawn images, not"}
    assert stand_in.get(name, "points of the square") in report


def test_figures_are_images(finished):
    name, out = finished
    optimizer = "adam" if name == "mammography" else "sgd"
    for figure in ("losses", "learning_rates"):
        path = out / f"{figure}_{optimizer}_0.001.png"
        assert matplotlib.image.imread(path).std() > 0


def test_finished_command_is_refused(finished):
    name, out = finished
    options = [*TINY[name], *SHORT, "--out", str(out)]
    before = json.loads((out / "results.json").read_text())["runs"]
    with pytest.raises(UsageError, match="--resume"):
        MODULES[name].main(options)
    with pytest.raises(UsageError, match="--epochs was 6 there, got 5"):
        MODULES[name].main([*options, "--epochs", "5", "--resume"])
    after = json.loads((out / "results.json").read_text())["runs"]
    assert after == before


def settings_of(name, *argv):
    module = MODULES[name]
    return parse(name, None, module.Settings(), argv, full=module.FULL, names=NAMES)


@pytest.mark.parametrize("name", MODULES)
def test_every_setting_is_an_option(name):
    quick = settings_of(name)
    assert dataclasses.replace(quick, out="") == MODULES[name].Settings()
    special = {"optimizers": "adam", "network": "resnet50", "learning_rates": "0.5"}
    common = {field.name for field in dataclasses.fields(Options)}
    for field in dataclasses.fields(quick):
        if field.name in common:
            continue
        option = f"--{field.name.replace('_', '-')}"
        changed = settings_of(name, option, special.get(field.name, "7"))
        assert getattr(changed, field.name) != getattr(quick, field.name)


@pytest.mark.parametrize("name", MODULES)
def test_full_is_the_papers_settings(name):
    """Section 4: 11 seeds, both rates, three lengths, 5,000 epochs, patiences."""
    assert settings_of(name, "--full", "--seeds", "3").seeds == 3
    full = settings_of(name, "--full")
    assert (full.seeds, full.epochs) == (11, 5_000)
    assert (full.stop_patience, full.plateau_patience) == (350, 50)
    assert full.learning_rates == (1e-2, 1e-3)
    assert full.phases == (1, 10, 100)
    assert set(MODULES[name].PAPER) <= {run.name for run in full.runs}
    sizes = {"synthetic": 256, "wireless": 512, "mammography": 32}
    assert full.batch_size == sizes[name]


@pytest.mark.parametrize("name", MODULES)
def test_paper_tables_have_a_score_for_each_task(name):
    module = MODULES[name]
    rows = [[float(cell) for cell in row.values()] for row in module.PAPER.values()]
    assert np.shape(rows) == (len(module.PAPER), 3 * len(module.TASKS))
    assert np.min(rows) > 0.5
    assert np.max(rows) < 1
    recalls = {tuple(row[: len(module.TASKS)]) for row in rows}
    assert len(recalls) > len(rows) / 2  # no rows copied


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--phases", "0"], "--phases must be a positive number, got 0"),
        (["--learning-rates", "1", "nan"], "--learning-rates must be a positive"),
        (["--network", "vgg"], "vgg"),
        (["--epoch", "3"], "--epoch"),
        (["--learning-rates"], "--learning-rates"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(UsageError, match=message) as error:
        mammography.main(options)
    assert "\n" not in str(error.value)


def test_wrong_names_and_data_are_usage_errors(tmp_path: Path):
    with pytest.raises(UsageError, match="--optimizers must name some of sgd, adam"):
        mammography.main(["--optimizers", "lion"])
    for module in (wireless, mammography):
        with pytest.raises(UsageError, match="missing"):
            module.main(["--data-dir", str(tmp_path / "missing")])
    options = ["--points", "20", "--batch-size", "13", "--out", str(tmp_path / "out")]
    with pytest.raises(UsageError, match="--batch-size must be at most 12"):
        synthetic.main(options)
    assert not (tmp_path / "out").exists()
