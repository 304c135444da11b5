"""Training in phases: against loops by hand, and by what callbacks of Keras do."""

import csv
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.ate_sg import phases
from experiments.ate_sg import runs as ate_runs
from experiments.ate_sg.classifiers import INPUTS, make_problem, one_of, yes_or_no
from experiments.ate_sg.costs import Costs, count_params, flop_costs, parameter_costs
from experiments.ate_sg.figures import draw_figures
from experiments.ate_sg.mammography import NETWORKS
from experiments.ate_sg.mammography import TASKS as MAMMOGRAPHY_TASKS
from experiments.ate_sg.phases import Model, Schedule, Trainer, moving_at
from experiments.ate_sg.report import make_report, summarize
from experiments.ate_sg.runs import Run, run_all
from experiments.data.quadrants import load_quadrants
from experiments.lab.batches import epoch_order, take
from experiments.lab.checkpoints import Checkpoints
from mtlopt.models import MultiTaskMLP, ResNet, SignalNet

TASKS = {"quad": one_of(4), "circ": yes_or_no()}
SCHEDULE = Schedule(
    epochs=40, seeds=3, batch_size=32, stop_patience=5, plateau_patience=2
)
LENGTHS = (None, 1, 2)


def mlp_problem(width=8, num_points=200):
    data = load_quadrants(num_points)
    heads = {"quad": (width, 4), "circ": (width, 1)}
    return make_problem(
        lambda rngs: MultiTaskMLP(trunk=(width,), heads=heads, rngs=rngs),
        TASKS,
        [
            {INPUTS: split.points, "quad": split.quadrants, "circ": split.circles}
            for split in (data.train, data.validation, data.test)
        ],
    )


@pytest.fixture(scope="module")
def problem():
    return mlp_problem()


@pytest.fixture(scope="module", autouse=True)
def trainers(problem):
    """Makes each trainer once: nearly all the time is compilation."""
    make = functools.cache(functools.partial(Trainer, problem))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ate_runs, "Trainer", lambda _, *args: make(args[0], SCHEDULE))
        yield lambda optimizer="sgd": make(optimizer, SCHEDULE)


def run_epochs(trainer, length, num, learning_rate):
    """Yields the state, on the host, and the record before and after each epoch."""
    state = trainer.init(length)
    for epoch in range(num):
        moving = moving_at(epoch, length)
        before = jax.tree.map(np.array, state)
        features = trainer.features(state) if moving == "task" else None
        state, record, _ = trainer.run_epoch(
            state, moving, epoch, learning_rate, features
        )
        yield moving, before, jax.tree.map(np.array, state), record


def seed_of(tree, seed):
    return jax.tree.map(lambda leaf: leaf[seed], tree)


def same_bits(left, right):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_epochs_equal_a_loop_by_hand(problem, trainers, length, optimizer):
    """Gradients of the summed loss by `jax.grad`, moved by plain Optax, by block."""
    rate, num_epochs = 0.01, 4

    @jax.jit
    def losses(params, batch):
        model = Model(params, {})
        return jnp.mean(problem.losses(model, problem.encode(model, batch), batch), 1)

    total = jax.jit(jax.grad(lambda params, batch: jnp.sum(losses(params, batch))))
    tx = phases.OPTIMIZERS[optimizer](rate)
    blocks = {"shared": ["encoder"], "task": ["heads"], "full": ["encoder", "heads"]}
    *_, (_, _, found, record) = run_epochs(
        trainers(optimizer), length, num_epochs, rate
    )

    for seed in range(3):
        params = problem.init(jax.random.key(seed)).params
        states = {block: tx.init(params[block]) for block in params}
        for epoch in range(num_epochs):
            rows = epoch_order(problem.num_train, 32, 3, epoch)[seed]
            means = []
            for row in rows:
                batch = take(problem.train, row)
                means.append(losses(params, batch))
                grads = total(params, batch)
                for block in blocks[moving_at(epoch, length)]:
                    updates, states[block] = tx.update(grads[block], states[block])
                    moved = optax.apply_updates(params[block], updates)
                    params = {**params, block: moved}
        for a, b in zip(
            jax.tree.leaves(found.model.params), jax.tree.leaves(params), strict=True
        ):
            np.testing.assert_allclose(a[seed], b, atol=2e-5)
        expected = np.mean(means, axis=0)
        np.testing.assert_allclose(record.train_loss[seed], expected, rtol=1e-4)
        expected = losses(params, problem.validation)
        np.testing.assert_allclose(record.validation_loss[seed], expected, rtol=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_what_does_not_move_keeps_its_bits(trainers, length):
    """In a phase the other block's parameters and optimizer state are untouched."""
    for moving, before, after, _ in run_epochs(trainers("adam"), length, 4, 0.01):
        for block in ("encoder", "heads"):
            moves = moving in ("full", {"encoder": "shared", "heads": "task"}[block])
            old, new = before.model.params[block], after.model.params[block]
            assert same_bits(old, new) != moves
        if length is not None:
            states = (s.opt_state.inner_state.inner_states for s in (before, after))
            # Beside Adam's own state only the learning rate is there, which is set.
            old, new = (
                {label: state.inner_state for label, state in own.items()}
                for own in states
            )
            assert same_bits(old["shared"], new["shared"]) == (moving == "task")
            assert same_bits(old["quad"], new["quad"]) == (moving == "shared")


def test_seeds_equal_single_seed_runs(problem, trainers):
    """Seed 0 of three, and a run of seed 0 alone, agree to rounding; seeds differ."""
    alone = Trainer(problem, "sgd", dataclasses.replace(SCHEDULE, seeds=1))
    for (*_, one), (*_, three) in zip(
        run_epochs(alone, None, 3, 0.1),
        run_epochs(trainers(), None, 3, 0.1),
        strict=True,
    ):
        for a, b in zip(one, three, strict=True):
            np.testing.assert_allclose(a[0], b[0], rtol=1e-4)
        assert (three.validation_loss[0] != three.validation_loss[1]).all()


def callbacks_of_keras(losses, schedule, learning_rate):
    """ReduceLROnPlateau and EarlyStopping, as documented, from validation losses.

    Yields the learning rate of each epoch; returns the best epoch.
    """
    rate, waited, lowest = learning_rate, 0, np.inf
    best, best_epoch, patience = np.inf, 0, 0
    rates = []
    for epoch, loss in enumerate(losses, start=1):
        rates.append(rate)
        if loss < lowest - 1e-4:
            lowest, waited = loss, 0
        else:
            waited += 1
            if waited >= schedule.plateau_patience:
                rate, waited = 0.75 * rate, 0
        if loss < best:
            best, best_epoch, patience = loss, epoch, 0
        else:
            patience += 1
            if patience >= schedule.stop_patience:
                break
    return rates, best_epoch


@pytest.mark.parametrize("length", [None, 2])
def test_plateaus_and_stopping_are_those_of_keras(trainers, length):
    """Each seed for itself: rates, last epoch, best epoch; then it stands still."""
    epochs = list(run_epochs(trainers(), length, 40, 2.0))
    losses = np.array([np.sum(record.validation_loss, 1) for *_, record in epochs])
    rates = np.array([record.learning_rate for *_, record in epochs])
    running = np.array([record.running for *_, record in epochs])
    states = [after for _, _, after, _ in epochs]
    stops = []
    for seed in range(3):
        expected, best_epoch = callbacks_of_keras(losses[:, seed], SCHEDULE, 2.0)
        stop = len(expected)
        stops.append(stop)
        np.testing.assert_allclose(rates[:stop, seed], expected, rtol=1e-6)
        assert running[:, seed].tolist() == [True] * stop + [False] * (40 - stop)
        own = seed_of(states[-1], seed)
        assert (own.epochs, own.best_epoch) == (stop, best_epoch)
        best = seed_of(states[best_epoch - 1].model, seed)
        assert same_bits(own.best_model, best)
        # All but the learning rate, which is set and then read by nobody.
        at_stop = seed_of(states[stop - 1], seed)
        assert same_bits(own, at_stop)
    assert min(stops) < 40


def test_a_broken_run_stops_without_a_best_epoch(problem, trainers, tmp_path):
    """NaN is no lower loss: after the patience the initial model is the best.

    The run ends with its last seed, so does the CSV; tables and figures hold.
    """
    initial = trainers().init(None).model
    *_, (_, _, last, _) = run_epochs(trainers(), None, 7, 1e30)
    assert last.epochs.tolist() == [5] * 3
    assert last.best_epoch.tolist() == [0] * 3
    assert same_bits(last.best_model, initial)

    run = Run("sgd", 1e30, None)
    results = run_all(problem, [run], SCHEDULE, PRICES, tmp_path)
    assert len(results[run].history.seconds) == 5
    assert [row["epoch"] for row in read_csv(tmp_path)] == [
        epoch for epoch in "12345" for _ in range(3)
    ]
    report = make_report(summarize(results, PRICES), PRICES, tuple(TASKS), {}, ["x"])
    assert "nan" in report
    draw_figures(results, PRICES, "x", tmp_path)
    assert (tmp_path / "losses_sgd_1e+30.png").exists()


def test_test_scores_are_those_of_the_best_model(problem, trainers):
    trainer = trainers()
    state = trainer.init(None)
    for epoch in range(2):
        state, *_ = trainer.run_epoch(state, "full", epoch, 0.1)
    scores = trainer.test_scores(state)
    for seed in range(3):
        model = seed_of(state.best_model, seed)
        z = problem.encode(model, problem.test)
        for metric, values in problem.scores(model, z, problem.test).items():
            np.testing.assert_allclose(scores[metric][seed], values, rtol=1e-6)


@pytest.fixture(scope="module")
def norm_problem():
    """A network with BatchNorm, of which 10 examples do not fill the third batch."""
    rng = np.random.default_rng(0)

    def split(num):
        images = rng.normal(size=(num, 8, 8, 1)).astype(np.float32)
        return {INPUTS: images, "a": (images.mean((1, 2, 3)) > 0).astype(np.int32)}

    def make_model(rngs):
        return ResNet(
            (1,), {"a": (1,)}, width=2, in_channels=1, small_images=True, rngs=rngs
        )

    return make_problem(make_model, {"a": yes_or_no()}, [split(10)] * 3)


def test_statistics_move_with_the_shared_parameters_only(norm_problem):
    """And features are those of evaluation mode, by the statistics that stand still."""
    trainer = Trainer(norm_problem, "sgd", Schedule(4, 2, 4, 350, 50))
    for moving, before, after, _ in run_epochs(trainer, 1, 4, 0.1):
        stand = same_bits(before.model.stats, after.model.stats)
        assert stand == (moving == "task")
        if moving == "task":
            features = trainer.features(jax.tree.map(jnp.asarray, before))
            for seed in range(2):
                model = seed_of(before.model, seed)
                z = norm_problem.encode(model, norm_problem.train)
                np.testing.assert_allclose(features.train[seed], z, atol=1e-6)


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
    found = task.losses(jnp.asarray(logits, jnp.float32), jnp.asarray(given))
    np.testing.assert_allclose(found, expected.sum(1), rtol=1e-5)
    assert (task.predict(jnp.asarray(logits)) == (chance > 0.5)).all()


@pytest.mark.parametrize(
    ("make_model", "tasks", "counts"),
    [
        (lambda rngs: MultiTaskMLP(rngs=rngs), TASKS, (526_848, 1_580_037)),
        (
            lambda rngs: SignalNet(rngs=rngs),
            {"mod": one_of(6), "sig": one_of(8)},
            (12_928, 26_382),
        ),
        (NETWORKS["resnet50"], MAMMOGRAPHY_TASKS, (23_534_592, 26_891_892)),
    ],
    ids=["synthetic", "wireless", "mammography"],
)
def test_parameter_costs_are_the_papers(make_model, tasks, counts):
    """Tables 1, 4 and 7, the last without its 53,120 statistics."""
    problem = make_problem(make_model, tasks, [{}, {}, {}])
    assert count_params(problem) == counts
    costs = parameter_costs(problem)
    assert costs.task == 1 - counts[0] / counts[1]
    assert (costs.shared, costs.encode) == (1, 0)


def test_the_small_network_has_about_the_papers_share():
    problem = make_problem(NETWORKS["small"], MAMMOGRAPHY_TASKS, [{}, {}, {}])
    assert 0.1 < parameter_costs(problem).task < 0.25


def test_flop_costs_follow_the_work():
    """A third of the products less in both phases, where wide heads are all the work.

    Of the three products of a head's wide layer (forward, for the data and for the
    kernel) the shared phase leaves out the last. The task phase leaves out that for the
    data: nothing below moves.
    """
    costs = flop_costs(mlp_problem(width=128, num_points=400), 32)
    np.testing.assert_allclose([costs.shared, costs.task], 2 / 3, atol=0.02)
    assert 0 < costs.encode < 0.02


def test_costs_add_up():
    costs = Costs(shared=0.8, task=0.3, encode=0.1)
    expected = np.cumsum([0.8, 0.4, 0.8, 0.4])
    np.testing.assert_allclose(costs.until(4, 1), expected)
    expected = np.cumsum([0.8, 0.8, 0.4, 0.3, 0.8])
    np.testing.assert_allclose(costs.until(5, 2), expected)


RUNS = (Run("sgd", 0.1, 2), Run("sgd", 0.1, None))
SHORT = dataclasses.replace(SCHEDULE, epochs=6)
PRICES = {"parameters": Costs(1.0, 0.5, 0.0), "flops": Costs(0.8, 0.2, 0.1)}


def run(problem, out: Path):
    out.mkdir(exist_ok=True)
    return run_all(problem, RUNS, SHORT, PRICES, out)


def without_times(result):
    return {**vars(result), "history": {**vars(result.history), "seconds": None}}


def read_csv(out: Path):
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds_all_seeds"]
    return rows


@pytest.fixture(scope="module")
def whole(problem, tmp_path_factory):
    """An uninterrupted run: its folder and its results."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(problem, out)


# Of the first run's six epochs: in a shared phase, at its end, in a task phase, at its
# end; and in the second run.
@pytest.mark.parametrize("saves", [1, 2, 3, 4, 8])
def test_killed_run_resumes_to_the_bit(problem, whole, tmp_path, monkeypatch, saves):
    save, done = Checkpoints.save, []

    def save_and_die(self, *args):
        save(self, *args)
        done.append(args[0])
        if len(done) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ate_runs, "CHECKPOINT_SECONDS", 0)
        patch.setattr(ate_runs.Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run(problem, tmp_path)
    resumed = run(problem, tmp_path)
    out, expected = whole
    for key in RUNS:
        assert without_times(resumed[key]) == without_times(expected[key])
    assert read_csv(tmp_path) == read_csv(out)


def test_finished_run_is_not_trained_again(problem, whole, monkeypatch):
    out, expected = whole
    monkeypatch.setattr(Trainer, "run_epoch", None)
    assert run(problem, out) == expected


def test_csv_has_a_row_for_each_run_epoch_and_seed(whole):
    rows = read_csv(whole[0])
    keys = [(row["phase_epochs"], row["epoch"], row["seed"]) for row in rows]
    assert keys == [
        (length, epoch, seed)
        for length in ("2", "")
        for epoch in "123456"
        for seed in "012"
    ]
    assert [row["moving"] for row in rows[::3]] == [
        *["shared"] * 2, *["task"] * 2, *["shared"] * 2, *["full"] * 6
    ]  # fmt: skip
    cost = [float(row["cost_by_parameters"]) for row in rows[::3]]
    assert cost == [1, 2, 2.5, 3, 4, 5, 1, 2, 3, 4, 5, 6]
