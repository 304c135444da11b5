"""The command on a few pairs, from its options to the files that it leaves."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

import mtlopt
from experiments.__main__ import main
from experiments.aligned_mtl import multimnist
from experiments.data.multimnist import load_multimnist

pytestmark = pytest.mark.slow

OPTIONS = ["doctor", "--method", "mgda", "--epochs", "1", "--batch-size", "16"]
OPTIONS += ["--every", "1"]
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


@pytest.fixture(scope="module")
def columns(out: Path) -> dict[str, np.ndarray]:
    """By name, and part if it has one, a number for each step and seed."""
    table = pd.read_csv(out / "metrics.csv", keep_default_na=False)
    assert set(table["method"]) == {"mgda"}
    columns = {}
    for (name, part), own in table.groupby(["name", "part"]):
        own = own.sort_values(["epoch", "seed"])
        columns[f"{name}_{part}" if part else name] = own["value"].to_numpy()
    return columns


def test_measures_agree_with_each_other(columns):
    """Those of two gradients follow from lengths a, b and the cosine."""
    a, b, cosine = columns["norms_left"], columns["norms_right"], columns["cosine"]
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
    assert columns["step"].tolist() == [step for step in range(STEPS) for _ in "01"]
    assert columns["loss_left"].std() > 0


def test_report_says_what_was_found(out: Path):
    report = (out / "report.md").read_text()
    results = json.loads((out / "results.json").read_text())
    assert results["suggestions"]
    assert all(f"- {sentence}" in report for sentence in results["suggestions"])
    assert report.startswith(f"# Doctor: {mtlopt.METHODS['mgda'].title}\n")
    assert "a stand-in for full MNIST" in report
    assert results["data"]["stand_in"]
    assert matplotlib.image.imread(out / "doctor.png").std() > 0


def test_other_settings_need_another_folder(out: Path, capsys):
    assert main([*OPTIONS, "--epochs", "2", "--out", str(out)]) == 2
    assert "--epochs was 1 there, got 2" in capsys.readouterr().err


def test_unknown_method_is_one_line(capsys):
    assert main(["doctor", "--method", "adam"]) == 2
    assert "--method must be one of sum_tasks, " in capsys.readouterr().err
