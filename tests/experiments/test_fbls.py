"""Line-search experiments: the step, statistics, reports and options."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from flax import nnx

import mtlopt
from experiments.data.cifar10 import Split, load_cifar10
from experiments.data.multimnist import load_multimnist
from experiments.data.sts import load_sts
from experiments.fast_line_search import bert, cifar10, experiment, multimnist, report
from experiments.fast_line_search import methods as fbls
from experiments.fast_line_search.experiment import Settings, run_experiment
from experiments.fast_line_search.methods import make_methods
from experiments.fast_line_search.report import Subject
from experiments.lab.batches import host_order, num_examples
from experiments.lab.errors import UsageError
from mtlopt.models import MultiTaskMLP, ResNet, stack_heads

pytestmark = pytest.mark.slow

TASKS = {"a": (1,), "b": (1,)}


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


def test_sgd_steps_down_the_summed_loss(problem):
    """params - η d(sum of losses), with the oracle's losses."""
    method = make_methods(2, 1)["sgd"]
    run = fbls.start(problem, method, 0.1, seed=0)
    rows = jnp.arange(16)
    batch = jax.tree.map(lambda leaf: leaf[rows], problem.splits["train"])
    grads = jax.grad(
        lambda params: problem.oracle.losses(params, batch, run.state).sum()
    )(run.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, run.params, grads)
    step = fbls.make_step(problem, method)
    after, did = jax.jit(step)(jnp.float32(0.1), run, rows, problem.splits["train"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after.params,
        expected,
    )
    losses = problem.oracle.losses(run.params, batch, run.state)
    np.testing.assert_allclose(did.pop("losses"), losses, rtol=1e-5)  # before the step
    assert did == {}


def test_decay_halves_the_upper_bound(problem):
    """Where every trial passes, steps are 1, then 1/2, then 1/4; of FBLS all are 1."""
    lengths = {}
    rows = jnp.arange(16)
    for name in ("fbls", "fbls_decay"):
        method = make_methods(2, 2)[name]
        step = jax.jit(fbls.make_step(problem, method))
        run, steps = fbls.start(problem, method, 0.1, seed=0), []
        for _ in range(6):
            run, did = step(jnp.float32(0.1), run, rows, problem.splits["train"])
            steps.append(float(did["step_size"]))
            assert bool(did["at_upper"]) == (int(did["trials"]) == 1)
        lengths[name] = np.array(steps)
    np.testing.assert_allclose(lengths["fbls_decay"], [1, 1, 0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(lengths["fbls"], 1)


def test_a_step_raised_a_loss_if_any_is_higher_by_more_than_rounding(problem):
    """By an eps it is rounding; NaN has risen."""
    run = fbls.start(problem, make_methods(2, 1)["sgd"], 0.1, seed=0)
    rows, train = jnp.arange(16), problem.splits["train"]
    batch = jax.tree.map(lambda leaf: leaf[rows], train)
    after = problem.oracle.losses(run.params, batch, run.state)
    rose = experiment.make_check(problem)
    eps = jnp.finfo(after.dtype).eps
    for factors, expected in (
        ((1, 1), False),
        ((1 - eps, 2), False),
        ((0.999, 2), True),
        ((2, 0.999), True),
        ((math.nan, 2), True),
    ):
        before = after * jnp.array(factors)
        assert bool(rose(before, run, rows, train)) == expected, factors


def test_score_is_the_oracle_loss(problem):
    """The mean of the scored losses is the oracle's loss, task by task."""
    params, state = problem.init(0)
    test, run = problem.splits["test"], mtlopt.Run(params, (), state)
    losses = problem.oracle.losses(params, test, state)
    evaluated = experiment.make_evaluate(problem)(run, test)
    np.testing.assert_allclose(evaluated["loss"], losses, rtol=1e-5)


def test_evaluation_counts_every_example_once(problem, monkeypatch):
    """In chunks of 10, of which the last of 32 is not full, as in one."""
    params, state = problem.init(0)
    test, run = problem.splits["test"], mtlopt.Run(params, (), state)
    whole = experiment.make_evaluate(problem)(run, test)
    monkeypatch.setattr(experiment, "_EVALUATION_BATCH", 10)
    parts = experiment.make_evaluate(problem)(run, test)
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
    run = fbls.start(problem, method, 0.1, seed=0)
    step = jax.jit(fbls.make_step(problem, method))
    after, _ = step(jnp.float32(0.1), run, jnp.arange(8), data)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), run.state, after.state)
    assert all(jax.tree.leaves(moved))
    score = jax.jit(problem.score)
    one = jax.tree.map(lambda leaf: leaf[:1], data)
    alone, among = (score(run.params, after.state, part) for part in (one, data))
    np.testing.assert_allclose(alone["loss"][:, 0], among["loss"][:, 0], rtol=1e-5)
    other = score(run.params, run.state, data)
    assert not np.allclose(other["loss"], among["loss"], rtol=1e-3)


def test_batches_are_a_partition_that_differs_by_seed_and_epoch():
    first, again, other, later = (
        host_order(30, 7, *at) for at in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert first.shape == (4, 7)
    assert len(set(first.ravel())) == 28
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, later)


def test_best_learning_rate_has_the_least_mean_error_and_is_finite():
    """Mean over tasks and seeds after the last epoch; a task that diverged is worst."""
    errors = {0.1: (0.3, 0.3), 0.2: (0.1, 0.4), 0.3: (math.nan, 0.1)}
    rows = [
        {"method": "sgd", "number": rate, "seed": seed, "epoch": epoch, "name": name}
        | {"part": part, "value": value}
        for rate, seeds in errors.items()
        for seed, error in enumerate(seeds)
        for epoch, worse in ((1, rate), (2, 0))  # after one epoch, 0.1 is the best
        for name in ("train_error", "test_error")
        for part, value in (("a", 10 * worse), ("b", 2 * error))
    ]
    table = report.wide(pd.DataFrame(rows), 100.0)
    assert report.best_value(table, "sgd") == 0.2
    last = report.last(table)["test_error"]
    np.testing.assert_allclose(last["sgd", 0.2], [10, 40])
    assert math.isinf(last["sgd", 0.3, 0])


SUBJECT = Subject(
    "tiny",
    "Tiny",
    "An MLP.",
    "waves, a stand-in for data",
    errors_from="Fig. 3",
    searches_from="Fig. 4",
)


def made_up(errors, raised=0.0):
    """A table of these errors by method and value, with three seeds each."""
    rows = [
        {"method": name, "number": value, "seed": seed, "epoch": 1}
        | {"test_error": error, "raised_a_loss": raised if name == "fbls" else 0.0}
        for (name, value), seeds in errors.items()
        for seed, error in enumerate(seeds)
    ]
    keys = ["method", "number", "seed", "epoch"]
    return pd.DataFrame(rows).set_index(keys).sort_index()


SGD = {("sgd", 1e-3): (30, 31, 32), ("sgd", 0.1): (10.0, 10.5, 11.0)}


@pytest.mark.parametrize(
    ("fast", "slow", "level", "beats"),
    [
        ((9.9, 10.6, 10.8), (12.0, 12.4, 13.0), True, True),
        ((12.0, 12.4, 13.0), (9.9, 10.6, 10.8), False, False),
        ((8.0, 12.0, 10.0), (10.0, 9.0, 11.5), None, None),
        ((90.0, 9.0, 9.5), (10.0, 9.0, 11.5), False, None),  # one seed has failed
    ],
)
def test_verdicts_are_by_the_spread_of_paired_seeds(fast, slow, level, beats):
    """As good as SGD at its best rate, and better than BLS; or not; or too noisy."""
    table = made_up({("fbls", 0.1): fast, ("bls", 0.1): slow, **SGD})
    methods = {name: make_methods(2, 1)[name] for name in ("fbls", "bls", "sgd")}
    found = report.verdicts(SUBJECT, methods, table, {})
    assert [each.holds for each in found] == [True, level, beats]
    assert "10.50 ± 0.50 at η = 0.1, an edge of the grid" in found[1].measured
    short = dataclasses.replace(SUBJECT, limits="Too short.", searches_from="")
    found = report.verdicts(short, methods, table, {})
    assert [each.holds for each in found] == [None, None]


def test_verdicts_on_steps_and_times():
    """Half of the steps raised a loss; times hold if all do in one reading of SGD."""
    table = made_up({("fbls", 0.1): (1, 2, 3), ("bls", 0.1): (1, 2, 3), **SGD}, 0.5)
    methods = {name: make_methods(2, 1)[name] for name in ("fbls", "bls", "sgd")}
    timed = dataclasses.replace(
        SUBJECT, num_tasks=4, paper_times={"fbls": "0.30", "bls": "1.40"}
    )
    for fbls_time, bls_time, holds in (
        (0.31, 1.3, True),  # of a step on the summed loss
        (1.2, 5.5, True),  # 0.30 and 1.375 of a step for each of four tasks
        (0.31, 5.5, False),  # one in each reading
        (1.2, 9.0, False),
    ):
        seconds = {"fbls": fbls_time, "bls": bls_time, "sgd": 1.0}
        found = report.verdicts(timed, methods, table, seconds)
        assert not found[0].holds
        assert "FBLS 50.0%, BLS 0.0%" in found[0].measured
        assert found[-1].holds == holds, seconds
    assert "FBLS 0.30, BLS 2.25 of a step for each task" in found[-1].measured


@pytest.fixture(scope="module")
def out(problem, tmp_path_factory):
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    settings = Settings(
        out=str(folder),
        methods=("fbls", "bls", "sgd"),
        epochs=1,
        seeds=1,
        batch_size=32,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fbls, "RATES", fbls.RATES[-2:])
        run_experiment(SUBJECT, settings, problem, [])
    return folder


def test_recorded_losses_are_those_of_plain_sgd(problem, out):
    """Two steps on the batches of seed 0, written out."""
    (params, state), train = problem.init(0), problem.splits["train"]
    grad = jax.grad(lambda p, batch: problem.oracle.losses(p, batch, state).sum())
    for rows in host_order(64, 32, seed=0, epoch=0):
        grads = grad(params, jax.tree.map(lambda leaf, own=rows: leaf[own], train))
        params = jax.tree.map(lambda p, g: p - fbls.RATES[-1] * g, params, grads)
    table = pd.read_csv(out / "metrics.csv", keep_default_na=False)
    own = table[(table["method"] == "sgd") & (table["number"] == fbls.RATES[-1])]
    half = jax.tree.map(lambda leaf: leaf[:32], train)  # as many as there are for test
    for name, split in (("train_loss", half), ("test_loss", problem.splits["test"])):
        found = own.loc[own["name"] == name, "value"].astype(float)
        expected = problem.oracle.losses(params, split, state)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_batch_that_cannot_be_filled_is_refused(problem, tmp_path):
    """With one line, before it makes the folder."""
    settings = Settings(out=str(tmp_path / "out"), methods=("sgd",), batch_size=65)
    with pytest.raises(UsageError, match="--batch-size must be at most 64"):
        run_experiment(SUBJECT, settings, problem, [])
    assert not (tmp_path / "out").exists()


def test_beta_above_one_is_refused(problem, tmp_path):
    settings = Settings(out=str(tmp_path / "out"), betas=(0.1, 1.5), batch_size=32)
    with pytest.raises(UsageError, match=r"`beta` must be .*1\.5"):
        run_experiment(SUBJECT, settings, problem, [])


def test_report_and_results_hold_every_run(out):
    report = (out / "report.md").read_text()
    # Two values of beta, figure 4's table, costs, figure 4's verdict.
    assert report.count("| FBLS ") == 5
    assert "| FBLS, not tuned: as good as the best of 2 rates" in report
    assert "a stand-in for data" in report
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["stand_in"]
    assert len(results["runs"]) == 6
    for run in results["runs"]:
        assert run["test_error"] > 0
        assert run["raised_a_loss"] in (0, 1)  # one of the two steps is checked
        assert (run["trials"] is not None) == (run["method"] != "sgd")
    costs = results["costs"]
    assert costs["operations"]["bls"] > costs["operations"]["fbls"]
    assert all(seconds > 0 for seconds in costs["seconds"].values())
    assert set(costs["trials"]) == {"fbls", "bls"}


@pytest.mark.parametrize("name", ["sgd_loss", "methods_error", "rates_error"])
def test_figures_are_images(out, name):
    assert matplotlib.image.imread(out / f"{name}.png").std() > 0


@pytest.mark.parametrize("module", [multimnist, cifar10, bert])
def test_every_setting_is_an_option(module, monkeypatch):
    """Each field is set by an option of its name; --full sets what it says."""
    seen = []

    def load(loader, settings, **_):
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "load", load)

    def settings(*argv):
        with pytest.raises(KeyboardInterrupt):
            module.main(list(argv))
        return seen[-1]

    plain = settings()
    words = {"methods": "bls", "direction": "edm", "size": "base"}
    flags = ("resume", "tensorboard", "full")
    for field in dataclasses.fields(plain):
        option = f"--{field.name.replace('_', '-')}"
        value = [] if field.name in flags else [words.get(field.name, "77")]
        changed = settings(option, *value)
        assert getattr(changed, field.name) != getattr(plain, field.name)
    assert module.FULL.items() <= dataclasses.asdict(settings("--full")).items()


def test_learning_rates_are_the_eight_of_the_paper():
    """Evenly spaced logarithms from -3 to -1."""
    np.testing.assert_allclose(np.log10(fbls.RATES), np.linspace(-3, -1, 8))


def check_problem(problem, num_tasks):
    """Shapes of gradients and scores, without compiling anything."""
    (params, state), train = problem.init(0), problem.splits["train"]
    grads = jax.eval_shape(problem.oracle, params, train, state)
    assert grads.losses.shape == (num_tasks,)
    num = num_examples(train)
    scores = jax.eval_shape(problem.score, params, state, train)
    assert {score.shape for score in scores.values()} == {(num_tasks, num)}
    return params


def test_cifar10_has_ten_heads_on_resnet18():
    problem = cifar10.resnet_problem(load_cifar10(num_train=4, num_test=2), 1)
    params = check_problem(problem, 10)
    assert params["heads"]["stacked"]["dense1"]["kernel"].shape == (10, 8, 1)
    assert len(params["encoder"]) == 1 + 8  # the stem and eight blocks


def test_saying_no_to_ten_balanced_classes_is_wrong_in_one_of_ten():
    """Error 1/10, and the cross entropy of ten images of which one is the class."""
    batch = Split(images=jnp.zeros(10), labels=jnp.arange(10))
    logits = -jnp.ones((10, 1))
    for task in (0, 9):
        judged = cifar10.one_vs_rest(logits, batch, task)
        np.testing.assert_allclose(judged["error"].mean(), 0.1, rtol=1e-6)
        expected = 0.9 * np.log1p(np.exp(-1)) + 0.1 * np.log1p(np.exp(1))
        np.testing.assert_allclose(judged["loss"].mean(), expected, rtol=1e-6)


def test_multimnist_has_a_linear_head_for_each_digit():
    data = load_multimnist(num_train=4, num_validation=1, num_test=2)
    params = check_problem(multimnist.lenet5_problem(data), 2)
    assert params["heads"]["stacked"]["kernel"].shape == (2, 84, 10)


def test_bert_has_three_heads_of_two_layers():
    data = load_sts(length=24, num_train=4, num_test=2)
    params = check_problem(bert.bert_problem(data, "tiny"), 3)
    heads = params["heads"]["stacked"]
    shapes = [heads[f"dense{i}"]["kernel"].shape for i in (1, 2)]
    assert shapes == [(3, 128, 128), (3, 128, 1)]
