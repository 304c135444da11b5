"""The three commands on ATE-SG, from their options to the files that they leave."""

import dataclasses
import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments.ate_sg import mammography as ate_mammography
from experiments.ate_sg import synthetic as ate_synthetic
from experiments.ate_sg import wireless as ate_wireless
from experiments.ate_sg.experiment import parse
from experiments.ate_sg.report import oscillation
from experiments.ate_sg.runs import Run
from experiments.lab.cli import Start, UsageError

pytestmark = pytest.mark.slow

MODULES = {
    "ate_synthetic": ate_synthetic,
    "ate_wireless": ate_wireless,
    "ate_mammography": ate_mammography,
}
TINY = {
    "ate_synthetic": ["--points", "100", "--width", "4", "--batch-size", "16"],
    "ate_wireless": ["--signals-each", "4", "--channels", "2", "--batch-size", "8"],
    "ate_mammography": [
        *["--train-images", "8", "--validation-images", "6", "--test-images", "6"],
        *["--side", "16", "--batch-size", "4", "--optimizers", "adam"],
    ],
}
SHORT = ["--epochs", "6", "--seeds", "2", "--phases", "1", "2"]
SHORT += ["--learning-rates", "0.001"]
KINDS = ("ATE-{}, E0 = Ets = 1", "ATE-{}, E0 = Ets = 2", "Classic {}")


@pytest.fixture(
    scope="module",
    params=[
        "ate_synthetic",
        "ate_wireless",
        "ate_mammography",
    ],
)
def finished(request, tmp_path_factory):
    """The name of a command and the folder of its finished tiny run."""
    name = request.param
    out = tmp_path_factory.mktemp(name) / "out"
    MODULES[name].main([*TINY[name], *SHORT, "--out", str(out)])
    return name, out


def test_results_hold_every_run(finished):
    name, out = finished
    results = json.loads((out / "results.json").read_text())
    title = "Adam" if name == "ate_mammography" else "SG"
    runs = results["runs"]
    assert [run["training_type"] for run in runs] == [
        kind.format(title) for kind in KINDS
    ]
    tasks = len(MODULES[name].TASKS)
    for run in runs:
        assert run["epochs"] == [6, 6]
        for metric in ("recall", "precision", "f1"):
            values = np.array(run["test"][metric])
            assert values.shape == (2, tasks)
            assert (values >= 0).all()
            assert (values <= 1).all()
        # Half of the epochs are cheaper; the full gradient is the unit.
        classic = run["phase_epochs"] is None
        for best, cost in zip(
            run["best_epoch"], run["cost_by_parameters"], strict=True
        ):
            assert cost == best if classic or best == 1 else 0 < cost <= best
    assert f"experiments {name}" in results["command"]
    assert "versions" in results
    assert results["settings"]["epochs"] == 6


def test_report_has_the_papers_table_beside(finished):
    name, out = finished
    report = (out / "report.md").read_text()
    experiment = MODULES[name].EXPERIMENT
    optimizer = "adam" if name == "ate_mammography" else "sgd"
    for length in (1, None):
        run = Run(optimizer, 0.001, length)
        lines = report.splitlines()
        place = next(
            i for i, line in enumerate(lines) if f"| {run.training_type} " in line
        )
        assert lines[place + 1].startswith("| — paper")
        for value in np.ravel(experiment.paper[run]):
            assert f" {100 * value:.2f} " in lines[place + 1]
    assert "Oscillation" in report
    assert "Cost of an epoch" in report
    stand_in = {"ate_wireless": "simulated", "ate_mammography": "drawn images, not"}
    assert stand_in.get(name, "points of the square") in report


def test_figures_are_images(finished):
    name, out = finished
    optimizer = "adam" if name == "ate_mammography" else "sgd"
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


@pytest.mark.parametrize("name", MODULES)
def test_every_setting_is_an_option(name):
    experiment = MODULES[name].EXPERIMENT
    quick, _, start = parse(experiment, [])
    assert quick == experiment.quick
    assert start == Start()
    special = {"optimizers": "adam", "network": "resnet50", "learning_rates": "0.5"}
    for field in dataclasses.fields(quick):
        option = f"--{field.name.replace('_', '-')}"
        value = special.get(field.name, "7")
        changed, _, _ = parse(experiment, [option, value])
        assert getattr(changed, field.name) != getattr(quick, field.name)


@pytest.mark.parametrize("name", MODULES)
def test_full_is_the_papers_settings(name):
    """Section 4: 11 seeds, both rates, three lengths, 5,000 epochs, patiences."""
    full, _, _ = parse(MODULES[name].EXPERIMENT, ["--full", "--seeds", "3"])
    assert full.seeds == 3
    full, _, _ = parse(MODULES[name].EXPERIMENT, ["--full"])
    assert (full.seeds, full.epochs) == (11, 5_000)
    assert (full.stop_patience, full.plateau_patience) == (350, 50)
    assert full.learning_rates == (1e-2, 1e-3)
    assert full.phases == (1, 10, 100)
    assert set(MODULES[name].PAPER) <= set(full.runs)
    sizes = {"ate_synthetic": 256, "ate_wireless": 512, "ate_mammography": 32}
    assert full.batch_size == sizes[name]


@pytest.mark.parametrize("name", MODULES)
def test_paper_tables_have_a_score_for_each_task(name):
    for scores in MODULES[name].PAPER.values():
        assert np.shape(scores) == (3, len(MODULES[name].TASKS))
        assert np.min(scores) > 0.5
        assert np.max(scores) < 1
    recalls = {scores[0] for scores in MODULES[name].PAPER.values()}
    assert len(recalls) > len(MODULES[name].PAPER) / 2  # no rows copied


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--phases", "0"], "--phases: must be a positive integer, got 0"),
        (
            ["--learning-rates", "1", "nan"],
            "--learning-rates: must be a positive number",
        ),
        (["--network", "vgg"], "invalid choice: 'vgg'"),
        (["--epoch", "3"], "unrecognized arguments: --epoch"),
    ],
)
def test_mistakes_are_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        ate_mammography.main(options)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_wrong_names_and_data_are_usage_errors(tmp_path: Path):
    with pytest.raises(UsageError, match="--optimizers must name some of sgd, adam"):
        ate_mammography.main(["--optimizers", "lion"])
    for module in (ate_wireless, ate_mammography):
        with pytest.raises(UsageError, match="missing"):
            module.main(["--data-dir", str(tmp_path / "missing")])
    options = ["--points", "20", "--batch-size", "13", "--out", str(tmp_path / "out")]
    with pytest.raises(UsageError, match="--batch-size must be at most 12"):
        ate_synthetic.main(options)
    assert not (tmp_path / "out").exists()


def test_oscillation_sees_the_last_third_only():
    """A falling line changes and neither zigzags nor rises; a zigzag does all three."""
    falling, zigzag = -0.5 * np.arange(30), np.tile([1.0, 3.0], 15)
    assert oscillation(falling) == (0.5, 0, 0)
    change, distance, rises = oscillation(np.concatenate([falling, falling, zigzag]))
    assert (change, distance) == (2, 2)
    assert rises == pytest.approx(15 / 29)
    assert all(map(math.isnan, oscillation([1.0, 2.0])))
    assert all(map(math.isnan, oscillation([1.0] * 8 + [math.inf])))
