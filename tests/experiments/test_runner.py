"""Training: seeds agree with single runs, and a killed run resumes to the bit."""

import csv
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiments.aligned_mtl.runner import Result, Schedule, run_methods

import mtlopt
from experiments.aligned_mtl import runner
from experiments.lab.checkpoints import Checkpoints
from experiments.lab.training import Problem, epoch_order, make_evaluate

METHODS = ("pcgrad", "aligned_mtl_ub")  # one has a key in its state, one aligns
SCHEDULE = Schedule(epochs=3, seeds=2, batch_size=16, dominance_every=3)
STEPS = 100 // 16


def make_split(seed: int, num: int) -> dict[str, jax.Array]:
    x = jax.random.normal(jax.random.key(seed), (num, 5))
    return {"x": x, "up": x[:, 0] > 0, "down": x[:, 1] + x[:, 2] < 0}


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A tiny network that tells signs of its inputs."""
    tasks = ("up", "down")

    def init(key: jax.Array):
        trunk, *heads = jax.random.split(key, 3)
        heads = {
            task: jax.random.normal(key, [8])
            for task, key in zip(tasks, heads, strict=True)
        }
        return {"trunk": jax.random.normal(trunk, (5, 8)), "heads": heads}

    def logits(task, params, z):
        return z @ params["heads"][task]

    def loss(task, params, z, batch):
        return jnp.mean(
            optax.sigmoid_binary_cross_entropy(logits(task, params, z), batch[task])
        )

    def encode(params, batch):
        return jnp.tanh(batch["x"] @ params["trunk"])

    def score(params, batch):
        z = encode(params, batch)
        right = [(logits(task, params, z) > 0) == batch[task] for task in tasks]
        return {"accuracy": jnp.stack(right).astype(float)}

    oracle = mtlopt.task_grad(
        {task: functools.partial(loss, task) for task in tasks},
        {"trunk": "shared", "heads": {task: task for task in tasks}},
        encode=encode,
    )
    splits = [make_split(seed, num) for seed, num in ((0, 100), (1, 40), (2, 600))]
    return Problem(oracle, init, score, *splits)


def make_optimizer(method: str) -> optax.GradientTransformation:
    return optax.chain(
        mtlopt.METHODS[method].make(2, steps_per_epoch=STEPS), optax.adam(0.05)
    )


def run(problem: Problem, out: Path, schedule: Schedule = SCHEDULE, methods=METHODS):
    out.mkdir(exist_ok=True)
    return run_methods(problem, methods, make_optimizer, schedule, out)


def without_times(result: Result) -> dict:
    numbers = {**vars(result), **vars(result.history)}
    return {
        name: value
        for name, value in numbers.items()
        if name not in ("history", "seconds", "compile_seconds")
    }


def read_csv(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds_all_seeds"]
    return rows


@pytest.fixture(scope="module")
def whole(problem: Problem, tmp_path_factory: pytest.TempPathFactory):
    """An uninterrupted run: its folder and its results."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(problem, out)


@pytest.mark.parametrize(("saved_epochs", "after_save"), [(1, True), (4, False)])
def test_killed_run_resumes_to_the_bit(
    problem, whole, tmp_path, monkeypatch, saved_epochs, after_save
):
    """Killed in the first method after a checkpoint, in the second before one."""
    save = Checkpoints.save
    saves = []

    def save_or_die(self, *args):
        if len(saves) == saved_epochs and not after_save:
            raise KeyboardInterrupt
        save(self, *args)
        saves.append(args[0])
        if len(saves) > saved_epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner.Checkpoints, "save", save_or_die)
        with pytest.raises(KeyboardInterrupt):
            run(problem, tmp_path)
    resumed = run(problem, tmp_path)
    out, expected = whole
    for method in METHODS:
        assert without_times(resumed[method]) == without_times(expected[method])
    assert read_csv(tmp_path) == read_csv(out)


def test_finished_run_is_not_trained_again(problem, whole, monkeypatch):
    out, expected = whole
    monkeypatch.setattr(runner, "epoch_order", None)
    again = run(problem, out)
    for method in METHODS:
        assert again[method] == expected[method]


def test_seeds_equal_single_seed_runs(problem, whole, tmp_path, monkeypatch):
    """Seed 1 of a vmapped run, and a run of seed 1 alone, agree to rounding."""
    _, expected = whole
    order = runner.epoch_order

    def order_of_seed_1(num_examples, batch_size, num_seeds, epoch):
        return order(num_examples, batch_size, num_seeds + 1, epoch)[1:]

    monkeypatch.setattr(runner, "epoch_order", order_of_seed_1)
    init_1 = dataclasses.replace(
        problem, init=lambda _: problem.init(jax.random.key(1))
    )
    schedule = Schedule(epochs=3, seeds=1, batch_size=16, dominance_every=3)
    alone = run(init_1, tmp_path, schedule, ("aligned_mtl_ub",))["aligned_mtl_ub"]
    together = expected["aligned_mtl_ub"].history
    for name in ("train_loss", "dominance", "dominance_aligned"):
        values = np.array(getattr(together, name))[:, 1:]
        # Batched and single matrix products round differently, for three epochs.
        np.testing.assert_allclose(getattr(alone.history, name), values, rtol=1e-3)


def test_seeds_differ(whole):
    losses = np.array(whole[1]["pcgrad"].history.train_loss)
    assert losses.shape == (3, 2, 2)
    assert (losses[:, 0] != losses[:, 1]).all()


def test_csv_has_a_row_for_each_method_epoch_and_seed(whole):
    rows = read_csv(whole[0])
    keys = [(row["method"], row["epoch"], row["seed"]) for row in rows]
    assert keys == [
        (method, epoch, seed) for method in METHODS for epoch in "123" for seed in "01"
    ]
    assert all(float(row["validation_accuracy_up"]) <= 1 for row in rows)
    assert [row["dominance_aligned_mean"] == "" for row in rows] == [True] * 6 + [
        False
    ] * 6


def test_dominance_is_measured_every_few_steps(whole):
    history = whole[1]["aligned_mtl_ub"].history
    assert history.dominance_step == [0, 3, 6, 9, 12, 15]
    assert np.shape(history.dominance) == (6, 2)
    assert np.shape(history.dominance_aligned) == (6, 2)
    assert np.min(history.dominance) >= 1


def test_alignment_over_the_parameters_has_dominance_one(problem, tmp_path):
    schedule = Schedule(epochs=1, seeds=1, batch_size=16, dominance_every=2)
    result = run(problem, tmp_path, schedule, ("aligned_mtl",))["aligned_mtl"]
    np.testing.assert_allclose(result.history.dominance_aligned, 1, rtol=1e-4)


def test_best_epoch_is_chosen_by_validation(whole):
    for result in whole[1].values():
        means = np.mean(result.history.validation["accuracy"], axis=2)
        assert result.best_epoch == (np.argmax(means, axis=0) + 1).tolist()


def test_evaluation_is_the_mean_over_every_example(problem):
    """600 examples are two batches, of which the second is not full."""
    params = problem.init(jax.random.key(0))
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    scores = make_evaluate(problem)(stacked, problem.test)
    exact = jnp.mean(problem.score(params, problem.test)["accuracy"], axis=1)
    np.testing.assert_allclose(scores["accuracy"][0], exact, rtol=1e-6)


def test_order_is_a_permutation_that_changes_with_seed_and_epoch():
    order = epoch_order(20, 5, 2, epoch=0)
    assert order.shape == (2, 4, 5)
    assert sorted(order[0].ravel().tolist()) == list(range(20))
    assert (order[0] != order[1]).any()
    assert (order != epoch_order(20, 5, 2, epoch=1)).any()
