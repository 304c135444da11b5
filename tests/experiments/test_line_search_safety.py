"""The table of steps that raise a loss: its measurements and its shape."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.bench import line_search_safety as bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def case():
    """Fewer seeds and steps, in two programs of unequal length."""
    return dataclasses.replace(bench.tanh(), num_seeds=2, steps=50, rates=(0.1, 50.0))


@pytest.fixture(scope="module")
def rows(case):
    with jax.enable_x64(True):
        return bench.measure(case)


def test_rows_say_what_each_method_did(rows):
    by_name = {row.name: row for row in rows}
    assert list(by_name) == ["SGD, 0.1", *bench.SEARCHES]  # the other rate diverges
    for row in rows:
        assert row.seconds > 0
        assert row.error is None
        assert (row.rose > 0) == (row.worst > 0)
        assert (row.trials is not None) == (row.name in bench.SEARCHES)
        assert (row.checks is not None) == (row.name == bench.SAFE)
    assert by_name[bench.FBLS].rose > 0.2
    for name in (bench.SAFE, bench.BLS):
        assert by_name[name].rose == 0


def test_a_rise_is_that_of_the_same_batch(case):
    """By NumPy, from the losses along one run of plain FBLS."""
    with jax.enable_x64(True):
        problem, tx = case.make(0), bench.SEARCHES[bench.FBLS]
        run = bench.run(case, bench.compile_steps(problem, tx), problem, tx, 0)
        step = jax.jit(bench.make_step(problem, tx))
        params, _ = problem.init(0)
        state, rows = tx.init(params), np.arange(16)
        train = problem.splits["train"]
        losses = []
        for _ in range(case.steps + 1):
            z = np.tanh(train["x"] @ params["w"])
            predicted = np.stack([z @ params["a"], z @ params["b"]], axis=1)
            losses.append(np.mean((predicted - train["y"]) ** 2, axis=0))
            params, state, _ = step(params, state, rows, train)
    rises = np.maximum(np.diff(losses, axis=0), 0).max(axis=1)
    np.testing.assert_allclose(run.rises, rises, atol=1e-12)
    np.testing.assert_allclose(run.losses, losses[-1], rtol=1e-9)


def test_operations_grow_with_trials_checks_and_falls_back(case):
    with jax.enable_x64(True):
        counts = bench.count_steps(case)
    plain, safe = counts[bench.PLAIN](), counts[bench.SAFE]
    once = {"trials": 1, "checks": 1, "fell_back": 0}
    assert plain < counts[bench.FBLS](trials=1) < counts[bench.CALIBRATED](trials=1)
    assert counts[bench.CALIBRATED](trials=1) < safe(**once)
    trial, check, back = (
        safe(**(once | {name: once[name] + 1})) - safe(**once) for name in once
    )
    assert 0 < trial < check < back


def test_report_is_in_plain_steps(case):
    rows = [
        bench.Row("SGD, 0.1", 0.5, 0.25, 2e-3, 10.0, (1.0, 2.0), 0.125),
        bench.Row(bench.SAFE, 0.0, 0.0, 5e-3, 23.0, (1.0, 2.0), None, 1.5, 1.25, 0.5),
    ]
    text = bench.report(case, rows)
    assert "50 steps, batches of 16, 2 seeds; a plain step takes 2 ms" in text
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")][1:]
        for line in text.splitlines()[-2:]
    ]
    assert cells == [
        ["50.0%", "0.25", "", "", "", "1.00", "1.00", "1, 2", "12.5%"],
        ["0.0%", "0", "1.50", "1.25", "50%", "2.30", "2.50", "1, 2", ""],
    ]


def test_bad_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["lenet9"])
    assert "must be one of tanh, lenet5" in capsys.readouterr().err
