"""The command, with runs that are made up: what it chooses, tells and resumes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from experiments.__main__ import main
from experiments.real_data import comparison

OPTIONS = ["real_data.comparison", "--problems", "yeast", "--seeds", "3"]
OPTIONS += ["--rates", "0.1", "0.01", "0.001", "--resume"]


@pytest.fixture
def made(problem, monkeypatch) -> list:
    """Patches the problem and its runs; returns what was run."""
    called = []

    def make_run(row):
        def run(rate, seed, nudged, weights, splits):
            called.append(row.name)
            best = {"tuned": 0.01, "mgda": 0.001}.get(row.name, 0.1)
            far = jnp.abs(jnp.log10(rate / best))
            error = (1 + 0.01 * seed + far) / weights[1]
            error *= {"mgda": 2.0, "pcgrad": 1.0}.get(row.name, 3.0)
            error = jnp.where((row.name == "pcgrad") & (seed == 2), jnp.nan, error)
            errors = jnp.stack([error, 2 * error])
            return {"validation": errors, "test": 10 * errors}

        return run

    monkeypatch.setattr(comparison, "make_run", make_run)
    monkeypatch.setitem(comparison.PROBLEMS, "yeast", lambda: problem)
    return called


def test_the_command_chooses_tells_and_resumes(made, tmp_path, capsys):
    """krum needs four tasks, so it is left out; a second call runs nothing."""
    options = [
        *OPTIONS,
        "--methods",
        "mgda,pcgrad,krum",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(options) == 0
    assert "krum" not in made
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = results["problems"]["yeast"]
    # The weights that are largest for the second task win, and are the last.
    assert rows["tuned"]["chosen"] == "1/variance^0 0.01*"
    assert rows["mgda"]["chosen"] == "0.001*"
    assert rows["mgda"]["says"] == "lower"
    np.testing.assert_allclose(np.exp(rows["mgda"]["ratios"]), 2 / 3, rtol=1e-5)
    expected = 10 * 2 * 2**0.5 * np.prod([1.0, 1.01, 1.02]) ** (1 / 3)
    np.testing.assert_allclose(np.exp(rows["mgda"]["error"]), expected, rtol=1e-5)
    assert (rows["pcgrad"]["lost"], rows["pcgrad"]["says"]) == (1, "lost seeds")
    assert rows["sum"]["says"] == "no difference"
    report = (tmp_path / "out" / "report.md").read_text()
    table = [line for line in report.splitlines() if line.startswith("| ")]
    assert table[2].startswith("| MGDA")
    assert table[-1].startswith("| PCGrad")
    assert (tmp_path / "out" / "yeast.png").stat().st_size > 5_000
    made.clear()
    assert main(options) == 0
    assert made == []


def test_methods_fixed_beforehand_are_fifteen_and_more():
    assert len(set(comparison.METHODS)) >= 15
    assert mtlopt.METHODS.keys() >= set(comparison.METHODS)
    assert not {"sum_tasks", "mean_tasks"} & set(comparison.METHODS)


def test_the_full_run_is_that_of_before():
    """A run that was fixed beforehand has no problem or method that came later."""
    problems = ("molecules", "standardised", "kovasznay", "burgers", "yeast")
    assert comparison.FULL["problems"] == problems
    assert not {"norms", "ntk", "softadapt", "relobralo"} & set(comparison.METHODS)


def test_seeds_that_choose_are_not_reported():
    assert comparison.FULL["seeds"] < comparison._CHOOSING
