"""Training in phases: against loops by hand, and by what callbacks of Keras do."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx

from experiments.ate_sg.classifiers import ONE_OF, make_classifier, yes_or_no
from experiments.ate_sg.costs import (
    Costs,
    count_params,
    count_steps,
    flop_costs,
    parameter_costs,
)
from experiments.ate_sg.mammography import NETWORKS
from experiments.ate_sg.mammography import TASKS as MAMMOGRAPHY_TASKS
from experiments.ate_sg.report import by_epoch, draw_figures, make_tables, summarize
from experiments.ate_sg.training import OPTIMIZERS, Phases, Run, Settings, moving_at
from experiments.data.quadrants import load_quadrants
from experiments.data.splits import Splits
from experiments.lab import loop
from experiments.lab.batches import epoch_order, num_examples, take
from experiments.lab.folder import RunFolder
from experiments.lab.pace import Patience
from experiments.lab.tables import select
from mtlopt.models import MultiTaskMLP, ResNet, SignalNet
from tests.experiments.test_pace import callbacks_of_keras

pytestmark = pytest.mark.slow

TASKS = {"quad": ONE_OF, "circ": yes_or_no()}
SETTINGS = Settings(
    epochs=40, seeds=3, batch_size=32, stop_patience=5, plateau_patience=2
)
LENGTHS = (0, 1, 2)
UNITS = {"parameters": Costs(1.0, 0.5, 0.0), "flops": Costs(0.8, 0.2, 0.1)}


def mlp_problem(width=8, num_points=200):
    data = load_quadrants(num_points)
    heads = {"quad": (width, 4), "circ": (width, 1)}
    return make_classifier(
        lambda key: MultiTaskMLP(trunk=(width,), heads=heads, rngs=nnx.Rngs(key)),
        TASKS,
        data,
    )


@pytest.fixture(scope="module")
def problem():
    return mlp_problem()


@pytest.fixture(scope="module")
def phases(problem):
    """Makes each once: nearly all the time is compilation."""
    return functools.cache(lambda name="sgd": Phases(problem, SETTINGS, name))


@pytest.fixture(scope="module")
def by_hand(problem):
    """Losses and the gradient of their sum, of one seed, by `jax.grad`."""

    def losses(params, batch):
        model = (params, {})
        return jnp.mean(problem.losses(model, problem.encode(model, batch), batch), 1)

    def total(params, batch):
        return jnp.sum(losses(params, batch))

    return jax.jit(losses), jax.jit(jax.grad(total))


@functools.cache
def plain_optimizer(name, rate):
    """Plain Optax: `init` and `move`, of the parameters of a block."""
    tx = OPTIMIZERS[name](rate)

    def move(grad, state, params):
        updates, state = tx.update(grad, state)
        return optax.apply_updates(params, updates), state

    return jax.jit(tx.init), jax.jit(move)


def run_epochs(phases, length, num, rate):
    """Yields the states before and after each epoch, on the host, and its values."""
    training = phases.training(Run("sgd", rate, length))
    state = training.start()
    for number in range(num):
        before = jax.tree.map(np.array, state)
        state, values = training.epoch(state, number, lambda *_: None)
        yield moving_at(number, length), before, jax.tree.map(np.array, state), values


def seed_of(tree, seed):
    return jax.tree.map(lambda leaf: leaf[seed], tree)


def same_bits(left, right):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_epochs_equal_a_loop_by_hand(problem, phases, by_hand, length, optimizer):
    """Gradients of the summed loss by `jax.grad`, moved by plain Optax, by block."""
    rate, num_epochs = 0.01, 4
    losses, gradient = by_hand
    init, move = plain_optimizer(optimizer, rate)
    blocks = {"shared": ["encoder"], "task": ["heads"], "full": ["encoder", "heads"]}
    *_, (_, _, found, values) = run_epochs(phases(optimizer), length, num_epochs, rate)
    splits = jax.tree.map(np.array, problem.splits)
    orders = [
        np.array(epoch_order(num_examples(splits["train"]), 32, 3, epoch))
        for epoch in range(num_epochs)
    ]

    for seed in range(3):
        params, _ = problem.init(seed)
        states = {block: init(params[block]) for block in params}
        for epoch in range(num_epochs):
            means = []
            for row in orders[epoch][seed]:
                batch = take(splits["train"], row)
                means.append(losses(params, batch))
                grads = gradient(params, batch)
                for block in blocks[moving_at(epoch, length)]:
                    moved = move(grads[block], states[block], params[block])
                    params[block], states[block] = moved
        for a, b in zip(
            jax.tree.leaves(found.run.params), jax.tree.leaves(params), strict=True
        ):
            np.testing.assert_allclose(a[seed], b, atol=2e-5)
        expected = np.mean(means, axis=0)
        np.testing.assert_allclose(values["train_loss"][seed], expected, rtol=1e-4)
        expected = losses(params, splits["validation"])
        np.testing.assert_allclose(values["validation_loss"][seed], expected, rtol=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_what_does_not_move_keeps_its_bits(phases, length):
    """In a phase the other block's parameters and optimizer state are untouched."""
    for moving, before, after, _ in run_epochs(phases("adam"), length, 4, 0.01):
        for block in ("encoder", "heads"):
            moves = moving in ("full", {"encoder": "shared", "heads": "task"}[block])
            old, new = before.run.params[block], after.run.params[block]
            assert same_bits(old, new) != moves
        if length:
            states = (s.run.opt_state.inner_state.inner_states for s in (before, after))
            # Beside Adam's own state only the learning rate is there, which is set.
            old, new = (
                {label: state.inner_state for label, state in own.items()}
                for own in states
            )
            assert same_bits(old["shared"], new["shared"]) == (moving == "task")
            assert same_bits(old["quad"], new["quad"]) == (moving == "shared")


def test_seeds_equal_single_seed_runs(problem, phases):
    """Seed 0 of three, and a run of seed 0 alone, agree to rounding; seeds differ."""
    alone = Phases(problem, dataclasses.replace(SETTINGS, seeds=1), "sgd")
    for (*_, one), (*_, three) in zip(
        run_epochs(alone, 0, 3, 0.1), run_epochs(phases(), 0, 3, 0.1), strict=True
    ):
        for name in three:
            np.testing.assert_allclose(one[name][0], three[name][0], rtol=1e-4)
        losses = three["validation_loss"]
        assert (losses[0] != losses[1]).all()


@pytest.mark.parametrize("length", [0, 2])
def test_plateaus_and_stopping_are_those_of_keras(phases, length):
    """Each seed for itself: rates, last epoch, best epoch; then it stands still."""
    epochs = list(run_epochs(phases(), length, 40, 2.0))
    losses = np.array([np.sum(own["validation_loss"], 1) for *_, own in epochs])
    rates = np.array([own["learning_rate"] for *_, own in epochs])
    states = [after for _, _, after, _ in epochs]
    patience = Patience(5, 2, 0.75, 1e-4)
    stops = []
    for seed in range(3):
        expected, best_epoch = callbacks_of_keras(losses[:, seed], patience)
        stop = len(expected)
        stops.append(stop)
        expected = 2 * np.array(expected)
        np.testing.assert_allclose(rates[:stop, seed], expected, rtol=1e-6)
        assert np.isnan(rates[stop:, seed]).all()
        assert np.isnan(losses[stop:, seed]).all()
        own = seed_of(states[-1], seed)
        assert (own.pace.epochs, own.pace.best.epoch) == (stop, best_epoch)
        best = seed_of(states[best_epoch - 1].run, seed)
        assert same_bits(own.pace.best.model, (best.params, best.state))
        # All but the learning rate, which is set and then read by nobody.
        at_stop = seed_of(states[stop - 1], seed)
        assert same_bits(own, at_stop)
    assert min(stops) < 40


def test_a_broken_run_stops_without_a_best_epoch(phases, tmp_path):
    """NaN is no lower loss: after the patience the initial model is the best.

    The run ends with its last seed, so does the table; tables and figures hold.
    """
    run = Run("sgd", 1e30, 0)
    initial = jax.device_get(phases().start("full").run)
    *_, (_, _, last, _) = run_epochs(phases(), 0, 7, 1e30)
    assert last.pace.epochs.tolist() == [5] * 3
    assert last.pace.best.epoch.tolist() == [0] * 3
    assert same_bits(last.pace.best.model, (initial.params, initial.state))

    with folder(tmp_path / "out") as out:
        table = loop.train([phases().training(run)], 40, tuple(TASKS), out)
    assert table["epoch"].max() == 5
    summary = summarize(table, UNITS)
    assert summary["epochs"].tolist() == [5] * 3
    assert "nan" in make_tables(summary, {})
    draw_figures(table, UNITS, "x", tmp_path)
    assert (tmp_path / "losses_sgd_1e+30.png").exists()


def by_definition(classes, labels):
    """Precision, recall and F1, class by class, with a 0 for 0 / 0."""
    total = np.zeros(3)
    for c in range(4):
        true = np.sum((classes == c) & (labels == c))
        predicted, size = np.sum(classes == c), np.sum(labels == c)
        precision = true / predicted if predicted else 0
        recall = true / size if size else 0
        f1 = 2 * precision * recall / (precision + recall) if true else 0
        total += size / len(labels) * np.array([precision, recall, f1])
    return total


# Predictions, labels, and precision, recall and F1.
BY_HAND = {
    "all right": ([0, 1, 2], [0, 1, 2], (1, 1, 1)),
    "all wrong": ([1, 0], [0, 1], (0, 0, 0)),
    "two of three": ([0, 0, 1], [0, 1, 1], (5 / 6, 2 / 3, 2 / 3)),
    # Classes of 1, 2 and 3 samples; t = 1, 1, 2 and p = 2, 1, 3.
    "three sizes": (
        [0, 0, 1, 2, 2, 2],
        [0, 2, 1, 1, 2, 2],
        (1 / 12 + 2 / 6 + 3 / 6 * 2 / 3, 4 / 6, 1 / 6 * 2 / 3 + 2 / 6 * 2 / 3 + 3 / 9),
    ),
    # Class 1 is never predicted and class 2 never comes.
    "never predicted": ([0, 0, 2, 0], [0, 0, 1, 1], (1 / 3, 1 / 2, 2 / 5)),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_scores_by_hand(problem, case):
    """All answers of a task are one list; a seed for each row of predictions."""
    classes, labels, expected = BY_HAND[case]
    classes, labels = np.array(classes), np.array(labels)
    np.testing.assert_allclose(by_definition(classes, labels), expected)
    found = problem.scores(
        {"quad": np.array([classes, labels]), "circ": np.array([[classes]] * 2)},
        {"quad": labels, "circ": labels[None]},
    )
    for name, value in zip(("precision", "recall", "f1"), expected, strict=True):
        expected = [[value, value], [1, value]]
        np.testing.assert_allclose(found[f"test_{name}"], expected)


def test_test_scores_are_those_of_the_best_model(problem, phases):
    state = phases().start("full")
    for epoch in range(2):
        state, _ = phases().epoch(state, "full", epoch, 0.1)
    found = phases().finish(state)
    test = problem.splits["test"]

    @jax.jit
    def answers(model):
        heads, z = problem.network(*model).heads, problem.encode(model, test)
        return heads["quad"](z), heads["circ"](z)

    for seed in range(3):
        model = seed_of(jax.device_get(state.pace.best.model), seed)
        quad, circ = jax.device_get(answers(model))
        classes = {"quad": np.argmax(quad, 1), "circ": circ > 0}
        for place, task in enumerate(TASKS):
            expected = by_definition(np.ravel(classes[task]), np.ravel(test[task]))
            own = [
                found[f"test_{m}"][seed, place] for m in ("precision", "recall", "f1")
            ]
            np.testing.assert_allclose(own, expected, rtol=1e-12)


@pytest.fixture(scope="module")
def norm_problem():
    """A network with BatchNorm, of which 10 examples do not fill the third batch."""
    rng = np.random.default_rng(0)

    def split(num):
        images = rng.normal(size=(num, 8, 8, 1)).astype(np.float32)
        return images, (images.mean((1, 2, 3)) > 0).astype(np.int32)

    def build(key):
        small = {"width": 2, "in_channels": 1, "small_images": True}
        return ResNet((1,), {"a": (1,)}, **small, rngs=nnx.Rngs(key))

    own = split(10)
    data = Splits(own, own, own, "noise")
    return make_classifier(build, {"a": yes_or_no()}, data)


def test_statistics_move_with_the_shared_parameters_only(norm_problem):
    """And features are those of evaluation mode, by the statistics that stand still."""
    phases = Phases(norm_problem, Settings(epochs=4, seeds=2, batch_size=4), "sgd")
    for moving, before, after, _ in run_epochs(phases, 1, 4, 0.1):
        stand = same_bits(before.run.state, after.run.state)
        assert stand == (moving == "task")
        if moving == "task":
            features = phases.features(before)
            encode = jax.jit(norm_problem.encode)
            for seed in range(2):
                model = seed_of((before.run.params, before.run.state), seed)
                z = encode(model, norm_problem.splits["train"])
                np.testing.assert_allclose(features[0][seed], z, atol=1e-6)


@pytest.mark.parametrize("labels", [1, 3])
def test_weighted_binary_losses_are_the_formula(labels):
    """The sum over labels of -mu_1 y log p - mu_0 (1 - y) log(1 - p)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, labels))
    truth = rng.integers(0, 2, (5, labels))
    chance = 1 / (1 + np.exp(-logits))
    expected = -1.5 * truth * np.log(chance) - 0.5 * (1 - truth) * np.log(1 - chance)
    task = yes_or_no(positive=1.5, negative=0.5)
    given = truth[:, 0] if labels == 1 else truth
    found = jax.jit(task.losses)(logits.astype(np.float32), given)
    np.testing.assert_allclose(found, expected.sum(1), rtol=1e-5)
    assert (np.array(task.predict(logits)) == (chance > 0.5)).all()


def nothing(tasks):
    split = np.zeros((1 + len(tasks), 1))
    return Splits(split, split, split, "nothing")


@pytest.mark.parametrize(
    ("build", "tasks", "counts"),
    [
        (lambda key: MultiTaskMLP(rngs=nnx.Rngs(key)), TASKS, (526_848, 1_580_037)),
        (
            lambda key: SignalNet(rngs=nnx.Rngs(key)),
            {"mod": ONE_OF, "sig": ONE_OF},
            (12_928, 26_382),
        ),
        (NETWORKS["resnet50"], MAMMOGRAPHY_TASKS, (23_534_592, 26_891_892)),
    ],
    ids=["synthetic", "wireless", "mammography"],
)
def test_parameter_costs_are_the_papers(build, tasks, counts):
    """Tables 1, 4 and 7, the last without its 53,120 statistics."""
    problem = make_classifier(build, tasks, nothing(tasks))
    assert count_params(problem) == counts
    costs = parameter_costs(problem)
    assert costs.task == 1 - counts[0] / counts[1]
    assert (costs.shared, costs.encode) == (1, 0)


def test_the_small_network_has_about_the_papers_share():
    tasks = MAMMOGRAPHY_TASKS
    problem = make_classifier(NETWORKS["small"], tasks, nothing(tasks))
    assert 0.1 < parameter_costs(problem).task < 0.25


def test_flop_costs_follow_the_work():
    """A third of the products less in both phases, where wide heads are all the work.

    Of the three products of a head's wide layer (forward, for the data and for the
    kernel) the shared phase leaves out the last. The task phase leaves out that for the
    data: nothing below moves.
    """
    counts = count_steps(mlp_problem(width=128, num_points=400), 32)
    costs = flop_costs(counts, 224, 32)
    np.testing.assert_allclose([costs.shared, costs.task], 2 / 3, atol=0.02)
    assert 0 < costs.encode < 0.02


def test_costs_add_up():
    costs = Costs(shared=0.8, task=0.3, encode=0.1)
    expected = np.cumsum([0.8, 0.4, 0.8, 0.4])
    np.testing.assert_allclose(costs.until(4, 1), expected)
    expected = np.cumsum([0.8, 0.8, 0.4, 0.3, 0.8])
    np.testing.assert_allclose(costs.until(5, 2), expected)


def folder(out: Path) -> RunFolder:
    return RunFolder(dataclasses.replace(SETTINGS, out=str(out), resume=True))


RUNS = (Run("sgd", 0.1, 2), Run("sgd", 0.1, 0))


@pytest.fixture(scope="module")
def whole(phases, tmp_path_factory):
    """The table of an uninterrupted run."""
    with folder(tmp_path_factory.mktemp("whole")) as out:
        trainings = map(phases().training, RUNS)
        return loop.train(trainings, 6, tuple(TASKS), out)


# Of the first run's six epochs: in a shared phase, and before a task phase, in it and
# after it, whose features are encoded again.
@pytest.mark.parametrize("die_at", [1, 2, 3, 4])
def test_killed_run_resumes_to_the_bit(phases, whole, tmp_path, monkeypatch, die_at):
    first, last = map(phases().training, RUNS)

    def epoch(state, number, progress):
        if number == die_at:
            raise KeyboardInterrupt
        return first.epoch(state, number, progress)

    dies = dataclasses.replace(first, epoch=epoch)
    with monkeypatch.context() as patch, folder(tmp_path) as out:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            loop.train([dies], 6, tuple(TASKS), out)
    with folder(tmp_path) as out:
        trainings = [phases().training(RUNS[0]), last]
        resumed = loop.train(trainings, 6, tuple(TASKS), out)
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def test_numbers_of_the_table(phases, whole):
    """A number for each run, epoch and seed; losses summed, and costs by phase."""
    for run in RUNS:
        *_, (*_, values) = run_epochs(phases(), run.length, 6, 0.1)
        found = by_epoch(select(whole, **run._asdict()), "validation_loss")
        assert found.shape == (6, 3)
        expected = np.asarray(values["validation_loss"], float).sum(1)
        np.testing.assert_array_equal(found[-1], expected)
    summary = summarize(whole, UNITS)
    costs = {2: [1, 2, 2.5, 3, 4, 5], 0: [1, 2, 3, 4, 5, 6]}
    for run in RUNS:
        own = summary[summary["training"] == run.title]
        best, cost = own["best_epoch"].tolist(), own["cost_by_parameters"].tolist()
        assert cost == [costs[run.length][epoch - 1] for epoch in best]
        assert own["epochs"].tolist() == [6] * 3
