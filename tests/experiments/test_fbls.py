"""Line-search experiments: the step, statistics, resuming, reports and options."""

import csv
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from flax import nnx

from experiments.data.cifar10 import load_cifar10
from experiments.data.multimnist import load_multimnist
from experiments.data.sts import load_sts
from experiments.fast_line_search import bert as fbls_bert
from experiments.fast_line_search import cifar10 as fbls_cifar10
from experiments.fast_line_search import command as fbls_command
from experiments.fast_line_search import methods as fbls
from experiments.fast_line_search import multimnist as fbls_multimnist
from experiments.fast_line_search import report as fbls_report
from experiments.fast_line_search import runs as fbls_runs
from experiments.fast_line_search.methods import State, make_methods
from experiments.fast_line_search.report import Subject
from experiments.fast_line_search.runs import History, Run, Settings
from experiments.lab.cli import Start, UsageError
from experiments.lab.run_folder import write_json
from experiments.lab.training import batches
from mtlopt.models import MultiTaskMLP, ResNet, stack_heads

pytestmark = pytest.mark.slow

TASKS = {"a": (1,), "b": (1,)}
METHODS = ("fbls", "sgd")
SETTINGS = Settings(METHODS, epochs=2, seeds=2, batch_size=16, decay_every=1)


def judge(output, batch, task):
    """Regression of a task's column, so flat that a step of length 1 lowers it."""
    miss = output[:, 0] - batch["y"][:, task]
    return {"loss": 0.01 * miss**2, "error": jnp.abs(miss)}


def make_split(num, seed):
    x = jax.random.normal(jax.random.key(seed), (num, 5))
    return {"x": x, "y": jnp.stack([jnp.sin(x[:, 0]), x[:, 1] * x[:, 2]], axis=1)}


@pytest.fixture(scope="module")
def problem():
    """An MLP with two stacked heads."""
    return fbls.make_problem(
        lambda key: stack_heads(MultiTaskMLP(5, (8,), TASKS, rngs=nnx.Rngs(key))),
        2,
        lambda batch: (batch["x"],),
        judge,
        make_split(64, 0),
        make_split(32, 1),
    )


@pytest.fixture
def methods():
    """Two values of FBLS and of SGD."""
    return {
        name: dataclasses.replace(method, values=method.values[:2])
        for name, method in make_methods(2, 4).items()
        if name in METHODS
    }


def test_sgd_steps_down_the_summed_loss(problem):
    """params - η d(sum of losses), with the oracle's losses."""
    method = make_methods(2, 1)["sgd"]
    state = fbls.start(problem, method, 0.1, seed=0)
    rows = jnp.arange(16)
    batch = jax.tree.map(lambda leaf: leaf[rows], problem.train)
    grads = jax.grad(
        lambda params: problem.oracle.losses(params, batch, state.stats).sum()
    )(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    step = fbls.make_step(problem, method)
    after, did = jax.jit(step)(state, jnp.float32(0.1), rows, problem.train)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after.params,
        expected,
    )
    assert did == {}


def test_decay_halves_the_upper_bound(problem):
    """Where every trial passes, steps are 1, then 1/2, then 1/4; of FBLS all are 1."""
    lengths = {}
    rows = jnp.arange(16)
    for name in ("fbls", "fbls_decay"):
        method = make_methods(2, 2)[name]
        step = jax.jit(fbls.make_step(problem, method))
        state, steps = fbls.start(problem, method, 0.1, seed=0), []
        for _ in range(6):
            state, did = step(state, jnp.float32(0.1), rows, problem.train)
            steps.append(float(did["step_size"]))
            assert bool(did["at_upper"]) == (int(did["trials"]) == 1)
        lengths[name] = np.array(steps)
    np.testing.assert_allclose(lengths["fbls_decay"], [1, 1, 0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(lengths["fbls"], 1)


def test_score_is_the_oracle_loss(problem):
    """The mean of the scored losses is the oracle's loss, task by task."""
    params, stats = problem.init(0)
    losses = problem.oracle.losses(params, problem.test, stats)
    evaluated = fbls_runs.make_evaluate(problem)(State(params, stats, ()), problem.test)
    np.testing.assert_allclose(evaluated["loss"], losses, rtol=1e-5)


def test_evaluation_counts_every_example_once(problem, monkeypatch):
    """In chunks of 10, of which the last of 32 is not full, as in one."""
    state = State(*problem.init(0), ())
    whole = fbls_runs.make_evaluate(problem)(state, problem.test)
    monkeypatch.setattr(fbls_runs, "_EVALUATION_BATCH", 10)
    parts = fbls_runs.make_evaluate(problem)(state, problem.test)
    for name in ("loss", "error"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)


def test_statistics_move_in_training_and_serve_in_evaluation():
    """One step moves BatchNorm's statistics; the score depends on them only."""
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    data = {"x": images, "y": jnp.ones((8, 2))}
    problem = fbls.make_problem(
        lambda key: stack_heads(
            ResNet((1,), TASKS, width=2, small_images=True, rngs=nnx.Rngs(key))
        ),
        2,
        lambda batch: (batch["x"],),
        judge,
        data,
        data,
    )
    method = make_methods(2, 1)["sgd"]
    state = fbls.start(problem, method, 0.1, seed=0)
    step = jax.jit(fbls.make_step(problem, method))
    after, _ = step(state, jnp.float32(0.1), jnp.arange(8), data)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.stats, after.stats)
    assert all(jax.tree.leaves(moved))
    score = jax.jit(problem.score)
    one = jax.tree.map(lambda leaf: leaf[:1], data)
    alone, among = (score(state.params, after.stats, part) for part in (one, data))
    np.testing.assert_allclose(alone["loss"][:, 0], among["loss"][:, 0], rtol=1e-5)
    other = score(state.params, state.stats, data)
    assert not np.allclose(other["loss"], among["loss"], rtol=1e-3)


def test_batches_are_a_partition_that_differs_by_seed_and_epoch():
    first, again, other, later = (
        batches(30, 7, *at) for at in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert first.shape == (4, 7)
    assert len(set(first.ravel())) == 28
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, later)


def same(left, right):
    """Whether two runs agree in all but time."""
    pairs = []
    for run in (left, right):
        history = dataclasses.asdict(run.history)
        history.pop("seconds")
        pairs.append((run.method, run.value, run.seed, history))
    return pairs[0] == pairs[1]


def read_csv(out):
    return list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))


@pytest.fixture
def whole(problem, methods, tmp_path):
    """The runs of an uninterrupted experiment, and their CSV."""
    out = tmp_path / "whole"
    out.mkdir()
    runs = fbls_runs.run_methods(problem, methods, SETTINGS, out)
    return runs, read_csv(out)


def test_killed_run_resumes_to_the_bit(problem, methods, whole, tmp_path, monkeypatch):
    """Killed between runs and inside one, it ends with the same runs and rows."""
    monkeypatch.setattr(fbls_runs, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    out = tmp_path / "killed"
    out.mkdir()
    make, calls = fbls_runs.make_evaluate, 0

    def dies(problem):
        evaluate = make(problem)

        def counted(*args):
            nonlocal calls
            calls += 1
            if calls in (3, 12):  # in epoch 2 of run 1, and of run 3
                raise KeyboardInterrupt
            return evaluate(*args)

        return counted

    monkeypatch.setattr(fbls_runs, "make_evaluate", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fbls_runs.run_methods(problem, methods, SETTINGS, out)
        assert any((out / "checkpoints").iterdir())
    runs = fbls_runs.run_methods(problem, methods, SETTINGS, out)
    expected, rows = whole
    assert all(same(a, b) for a, b in zip(runs, expected, strict=True))
    found = read_csv(out)
    for row in (*rows, *found):
        row.pop("seconds")
    assert found == rows
    assert not any((out / "checkpoints").iterdir())


def make_run(method, value, seed, error):
    history = History(
        seconds=[1.0],
        train_loss=[[1.0, 3.0]],
        train_error=[[0.5, 0.5]],
        test_loss=[[2.0, math.nan if error is None else 2.0]],
        test_error=[[0.0, math.nan if error is None else 2 * error]],
    )
    return Run(method, value, seed, history)


def test_best_learning_rate_has_the_least_mean_error_and_is_finite():
    runs = [
        make_run("sgd", 0.1, 0, 0.3),
        make_run("sgd", 0.1, 1, 0.3),
        make_run("sgd", 0.2, 0, 0.1),
        make_run("sgd", 0.2, 1, 0.4),
        make_run("sgd", 0.3, 0, None),
        make_run("sgd", 0.3, 1, 0.1),
    ]
    assert fbls_report.best_value(runs, "sgd") == 0.2


def test_diverged_run_survives_its_file(tmp_path):
    """JSON has no NaN: null comes back as NaN."""
    run = make_run("sgd", 0.1, 0, None)
    path = tmp_path / "run.json"
    write_json(path, dataclasses.asdict(run))
    back = fbls_runs._read_run(path)
    assert math.isnan(back.history.test_error[0][1])
    assert back.history.train_loss == run.history.train_loss
    assert (back.method, back.value, back.seed) == ("sgd", 0.1, 0)


SUBJECT = Subject(
    "tiny", "Tiny", "An MLP.", "waves, a stand-in for data", stand_in=True
)


@pytest.fixture(scope="module")
def out(problem, tmp_path_factory):
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    settings = Settings(("fbls", "bls", "sgd"), epochs=1, seeds=1, batch_size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fbls, "RATES", fbls.RATES[-2:])
        patch.setattr(fbls, "BETAS", fbls.BETAS[:2])
        fbls_command.run_experiment(SUBJECT, settings, problem, folder, start=Start())
        with pytest.raises(UsageError, match="--resume"):
            fbls_command.run_experiment(
                SUBJECT, settings, problem, folder, start=Start()
            )
    return folder


def test_batch_that_cannot_be_filled_is_refused(problem, tmp_path):
    """With one line, before it makes the folder."""
    settings = Settings(("sgd",), batch_size=65)
    with pytest.raises(UsageError, match="--batch-size must be at most 64"):
        fbls_command.run_experiment(
            SUBJECT, settings, problem, tmp_path / "out", start=Start()
        )
    assert not (tmp_path / "out").exists()


def test_report_and_results_hold_every_run(out):
    report = (out / "report.md").read_text()
    assert report.count("| FBLS ") == 3  # two values of beta, and figure 4's table
    assert "best of 2 learning rates of SGD, η = " in report
    assert "no tuning" in report
    assert "a stand-in for data" in report
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["stand_in"]
    assert len(results["runs"]) == 6
    for run in results["runs"]:
        assert len(run["history"]["test_error"]) == 1
        assert all(error > 0 for error in run["history"]["test_error"][0])
        assert bool(run["history"]["trials"]) == (run["method"] != "sgd")


@pytest.mark.parametrize("name", ["sgd_loss", "methods_error", "betas_loss"])
def test_figures_are_images(out, name):
    assert matplotlib.image.imread(out / f"{name}.png").std() > 0


@pytest.mark.parametrize("module", [fbls_multimnist, fbls_cifar10, fbls_bert])
def test_every_setting_is_an_option(module, monkeypatch, tmp_path):
    """Each field is set by an option of its name; --full sets what it says."""
    seen = []

    def parse(*args):
        seen.append(fbls_command.parse(*args)[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "parse", parse)

    def settings(*argv):
        with pytest.raises(KeyboardInterrupt):
            module.main(list(argv))
        return seen[-1]

    plain = settings()
    words = {"methods": "bls", "direction": "edm", "size": "base"}
    for field in dataclasses.fields(plain):
        option = f"--{field.name.replace('_', '-')}"
        changed = settings(option, words.get(field.name, "77"))
        assert getattr(changed, field.name) != getattr(plain, field.name)
    full = dataclasses.asdict(settings("--full"))
    assert module.FULL.items() <= full.items()


def test_learning_rates_are_the_eight_of_the_paper():
    """Evenly spaced logarithms from -3 to -1."""
    np.testing.assert_allclose(np.log10(fbls.RATES), np.linspace(-3, -1, 8))


def check_problem(problem, num_tasks):
    """Shapes of gradients and scores, without compiling anything."""
    params, stats = problem.init(0)
    grads = jax.eval_shape(problem.oracle, params, problem.train, stats)
    assert grads.losses.shape == (num_tasks,)
    num = fbls.num_examples(problem.train)
    scores = jax.eval_shape(problem.score, params, stats, problem.train)
    assert {score.shape for score in scores.values()} == {(num_tasks, num)}
    return params


def test_cifar10_has_ten_heads_on_resnet18():
    problem = fbls_cifar10.resnet_problem(load_cifar10(num_train=4, num_test=2), 1)
    params = check_problem(problem, 10)
    assert params["heads"]["stacked"]["dense1"]["kernel"].shape == (10, 8, 1)
    assert len(params["encoder"]) == 1 + 8  # the stem and eight blocks


def test_saying_no_to_ten_balanced_classes_is_wrong_in_one_of_ten():
    """Error 1/10, and the cross entropy of ten images of which one is the class."""
    batch, logits = {"label": jnp.arange(10)}, -jnp.ones((10, 1))
    for task in (0, 9):
        judged = fbls_cifar10.one_vs_rest(logits, batch, task)
        np.testing.assert_allclose(judged["error"].mean(), 0.1, rtol=1e-6)
        expected = 0.9 * np.log1p(np.exp(-1)) + 0.1 * np.log1p(np.exp(1))
        np.testing.assert_allclose(judged["loss"].mean(), expected, rtol=1e-6)


def test_multimnist_has_a_linear_head_for_each_digit():
    data = load_multimnist(num_train=4, num_validation=1, num_test=2)
    params = check_problem(fbls_multimnist.lenet5_problem(data), 2)
    assert params["heads"]["stacked"]["kernel"].shape == (2, 84, 10)


def test_bert_has_three_heads_of_two_layers():
    data = load_sts(length=24, num_train=4, num_test=2)
    params = check_problem(fbls_bert.bert_problem(data, "tiny"), 3)
    heads = params["heads"]["stacked"]
    shapes = [heads[f"dense{i}"]["kernel"].shape for i in (1, 2)]
    assert shapes == [(3, 128, 128), (3, 128, 1)]
