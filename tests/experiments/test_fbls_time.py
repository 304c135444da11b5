"""The timing table of line searches: its baselines, its counts, its verdicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mtlopt
from experiments.bench import line_search_time as bench
from experiments.bench.line_search_time import Row, Workload
from experiments.fast_line_search.methods import make_problem
from mtlopt.models import MultiTaskMLP, stack_heads

pytestmark = pytest.mark.slow

NUM_TASKS, BATCH = 3, 16


@pytest.fixture(scope="module")
def workload():
    """An MLP whose encoder is far larger than its three heads."""

    def judge(output, batch, task):
        miss = output[:, 0] - batch["y"][:, task]
        return {"loss": miss**2, "error": jnp.abs(miss)}

    x = jax.random.normal(jax.random.key(0), (64, 20))
    data = {"x": x, "y": jnp.sin(x[:, :NUM_TASKS])}
    heads = {f"task{i}": (1,) for i in range(NUM_TASKS)}
    problem = make_problem(
        lambda key: stack_heads(
            MultiTaskMLP(20, (128, 128, 8), heads, rngs=nnx.Rngs(key))
        ),
        NUM_TASKS,
        lambda batch: (batch["x"],),
        judge,
        data,
        data,
    )
    return Workload("BERT, in name only", problem, BATCH, 160)


@pytest.fixture(scope="module")
def counts(workload):
    return bench.count_steps(workload)


def test_baselines_are_the_steps_they_are_called(workload):
    """Plain and shared agree; per task is a step on each loss in turn."""
    problem = workload.problem
    params, state = problem.init(0)
    rows, train = jnp.arange(BATCH), problem.splits["train"]
    batch = jax.tree.map(lambda leaf: leaf[rows], train)
    steps = bench.make_steps(workload)
    after = {
        name: jax.jit(steps[name])(mtlopt.Run(params, (), state), rows, train)[0]
        for name in (bench.PLAIN, bench.SHARED, bench.PER_TASK)
    }

    def grad(params, weights):
        def total(params):
            return jnp.vdot(problem.oracle.losses(params, batch, state), weights)

        return jax.jit(jax.grad(total))(params)

    def down(params, weights):
        grads = grad(params, weights)
        return jax.tree.map(lambda p, g: p - bench.RATE * g, params, grads)

    summed = down(params, jnp.ones(NUM_TASKS))
    turn = params
    for task in range(NUM_TASKS):
        turn = down(turn, jnp.eye(NUM_TASKS)[task])
    for name, expected in (
        (bench.PLAIN, summed),
        (bench.SHARED, summed),
        (bench.PER_TASK, turn),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            after[name].params,
            expected,
        )


def test_counts_of_baselines_are_passes(workload, counts):
    """A dense network's backward pass is nearly twice its forward pass.

    So one forward and T backward passes are (1 + 2 T) / 3 of a plain step, T of both T.
    """
    plain = counts[bench.PLAIN].once
    assert counts[bench.PER_TASK].once == NUM_TASKS * plain
    expected = (1 + 2 * NUM_TASKS) / 3
    assert counts[bench.SHARED].once / plain == pytest.approx(expected, rel=0.1)
    # Backtracking in parameter space needs the T gradients too, and a forward pass.
    assert counts[bench.BLS].once > counts[bench.SHARED].once


def test_fbls_costs_a_plain_step_however_many_trials(counts):
    """A trial of FBLS adds the heads, one of BLS the network."""
    encoder = 2 * BATCH * (20 * 128 + 128 * 128 + 128 * 8)
    heads = 2 * BATCH * NUM_TASKS * 8
    assert heads <= counts[bench.FBLS].trial < 4 * heads
    assert counts[bench.BLS].trial == pytest.approx(encoder, rel=0.1)
    assert counts[bench.MGDA_UB].total(None) <= counts[bench.FBLS].total(1)
    assert counts[bench.FBLS].total(4) < 1.2 * counts[bench.PLAIN].once
    assert counts[bench.FBLS].total(4) == pytest.approx(
        counts[bench.FBLS].once + 3 * counts[bench.FBLS].trial
    )


@pytest.fixture(scope="module")
def rows(workload, counts):
    with pytest.MonkeyPatch.context() as patch:  # counting takes longer than timing
        patch.setattr(bench, "count_steps", lambda *_: counts)
        return bench.measure(workload, rounds=2)


def test_every_step_is_measured(rows):
    names = [row.name for row in rows]
    assert names[:3] == [bench.PLAIN, bench.SHARED, bench.PER_TASK]
    assert set(names[3:]) == {
        bench.MGDA_UB,
        bench.FBLS,
        bench.CALIBRATED,
        bench.BLS,
    }
    for row in rows:
        assert row.milliseconds > 0
        assert row.flops > 0
        searches = row.name in (bench.FBLS, bench.CALIBRATED, bench.BLS)
        assert (row.trials is not None) == searches
        assert row.trials is None or row.trials >= 1


def test_report_turns_steps_into_epochs_and_shares(workload):
    """Ten steps an epoch; shares of each baseline; goals; the nearest baseline."""
    flops = {
        bench.PLAIN: 3.0,
        bench.SHARED: 7.0,
        bench.PER_TASK: 9.0,
        bench.MGDA_UB: 3.1,
        bench.FBLS: 3.2,
        bench.CALIBRATED: 4.0,
        bench.BLS: 9.4,
    }
    rows = [Row(name, 100 * value, value) for name, value in flops.items()]
    text = bench.report(workload, rows)
    line = next(line for line in text.splitlines() if line.startswith("| FBLS  "))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == [
        "3.2",  # 10 steps of 320 ms
        "107%",
        "46%",
        "36%",
        "106.7%",
        "45.7%",
        "35.6%",
        "39%",
    ]
    assert "1.067 times the operations of the plain step (goal 1.05: missed)" in text
    assert "1.07 times its time (goal 1.15: met)" in text
    assert 'baseline "per task"' in text


def test_bad_workload_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["lenet9"])
    assert "must be one of lenet5, resnet18, bert" in capsys.readouterr().err


def test_no_rounds_are_an_error(capsys):
    """There is no median of nothing."""
    with pytest.raises(SystemExit):
        bench.main(["lenet5", "--rounds", "0"])
    assert "must be a positive integer, got 0" in capsys.readouterr().err
