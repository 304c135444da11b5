"""The command on a few pairs, from its options to the files that it leaves."""

import csv
import dataclasses
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import mtlopt
from experiments import doctor
from experiments.__main__ import main
from experiments.aligned_mtl import multimnist
from experiments.data.multimnist import load_multimnist
from tests.experiments.event_files import read_runs

pytestmark = pytest.mark.slow

OPTIONS = ["doctor", "--method", "mgda", "--epochs", "1", "--batch-size", "16"]
OPTIONS += ["--every", "1", "--tensorboard"]
STEPS, SEEDS = 6, 2


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run, with a diagnosis before every step."""
    folder = tmp_path_factory.mktemp("run") / "out"
    data = load_multimnist(num_train=16 * STEPS, num_validation=8, num_test=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multimnist, "load_multimnist", lambda *_, **__: data)
        assert main([*OPTIONS, "--out", str(folder)]) == 0
        # Short enough to be run again.
        assert main([*OPTIONS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def columns(out: Path) -> dict[str, np.ndarray]:
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row.pop("method") for row in rows} == {"mgda"}
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def test_measures_agree_with_each_other(columns):
    """Those of two gradients follow from lengths a, b and the cosine."""
    a, b, cosine = columns["norm_left"], columns["norm_right"], columns["cosine"]
    products = a * b * cosine
    inner = np.clip((b * b - products) / (a * a + b * b - 2 * products), 0, 1)
    point = inner * inner * a * a + (1 - inner) ** 2 * b * b
    gap = np.sqrt(point + 2 * inner * (1 - inner) * products)
    np.testing.assert_allclose(columns["stationarity_gap"], gap, rtol=1e-4)
    np.testing.assert_allclose(columns["relative_gap"], 2 * gap / (a + b), rtol=1e-4)
    ratio = np.maximum(a, b) / np.minimum(a, b)
    np.testing.assert_allclose(columns["norm_ratio"], ratio, rtol=1e-5)
    condition = (1 + abs(cosine)) / (1 - abs(cosine))
    np.testing.assert_allclose(columns["condition"], condition, rtol=1e-3)
    np.testing.assert_array_equal(columns["conflict_rate"], cosine < 0)
    # MGDA's weights of the same step, which took the diagnosed gradients.
    np.testing.assert_allclose(columns["weight_left"], inner, atol=1e-4)
    np.testing.assert_allclose(columns["weight_right"], 1 - inner, atol=1e-4)


def test_every_step_and_seed_has_a_row(columns):
    places = sorted(zip(columns["step"], columns["seed"], strict=True))
    assert places == [(step, seed) for step in range(STEPS) for seed in range(SEEDS)]
    assert columns["loss_left"].std() > 0


def test_event_files_hold_the_metrics(out: Path, columns):
    runs = read_runs(out / "tensorboard" / "metrics")
    for index, value in enumerate(columns["dominance_rate"]):
        run = runs[f"method=mgda,seed={int(columns['seed'][index])}"]
        found = run["dominance_rate", int(columns["step"][index])]
        assert found == pytest.approx(value, rel=1e-6)


def test_report_says_what_was_found(out: Path):
    report = (out / "report.md").read_text()
    results = json.loads((out / "results.json").read_text())
    assert results["suggestions"]
    assert all(f"- {sentence}" in report for sentence in results["suggestions"])
    assert report.startswith(f"# Doctor: {mtlopt.METHODS['mgda'].title}\n")
    assert "a stand-in for full MNIST" in report
    assert results["data"]["stand_in"]
    assert set(doctor.SCALARS) <= set(mtlopt.Diagnosis._fields)
    assert matplotlib.image.imread(out / "doctor.png").std() > 0


def test_other_settings_need_another_folder(out: Path, capsys):
    assert main([*OPTIONS, "--epochs", "2", "--out", str(out)]) == 2
    assert "--epochs was 1 there, got 2" in capsys.readouterr().err


def test_every_setting_is_an_option():
    settings, _, start = doctor.parse([])
    assert start.resume
    for field in dataclasses.fields(settings):
        value = {"method": "mgda"}.get(field.name, "7")
        changed, _, _ = doctor.parse([f"--{field.name.replace('_', '-')}", value])
        assert getattr(changed, field.name) != getattr(settings, field.name)
