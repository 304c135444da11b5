"""Tasks in groups: the attributes, the training in turns, the choices, the command."""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest

import mtlopt
from experiments.__main__ import main
from experiments.data import attributes
from experiments.data.digits import Digits, DigitSet, load_digits
from experiments.lab.checkpoints import Checkpoints
from experiments.lab.settings import UsageError
from experiments.mtl_io import group_training as task_groups_training
from experiments.mtl_io import task_groups
from experiments.mtl_io.group_problems import MIXED_TASKS, PARTS, Part
from experiments.mtl_io.group_training import (
    History,
    Schedule,
    Setting,
    make_groups,
    run_settings,
)
from experiments.mtl_io.task_groups import Settings, conclude

pytestmark = pytest.mark.slow

SCHEDULE = Schedule(epochs=2, seeds=2, batch_size=32, learning_rates=(0.003, 0.03))
SUS, IUS, IO = Setting(1), Setting(4, individual=False), Setting(4)
WAYS = (SUS, IUS, IO)


@pytest.fixture(scope="module")
def digits() -> Digits:
    """A few of the real digits, of every class."""
    whole = load_digits()

    def some(part: DigitSet, num: int) -> DigitSet:
        chosen = np.linspace(0, len(part.labels) - 1, num).astype(int)
        return DigitSet(part.images[chosen], part.labels[chosen])

    return Digits(
        some(whole.train, 96), some(whole.validation, 60), some(whole.test, 60), "some"
    )


@pytest.fixture(scope="module")
def parts(digits: Digits) -> dict[str, Part]:
    return {name: make(digits) for name, make in PARTS.items()}


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory: pytest.TempPathFactory):
    """An uninterrupted run on the attributes: its folder and its histories."""
    out = tmp_path_factory.mktemp("whole")
    return out, run_settings("attributes", parts["attributes"], WAYS, SCHEDULE, out)


# The attributes.


def stroke(lean: float = 0.0) -> np.ndarray:
    """A stroke from top to bottom whose top lies `lean` pixels a row to the right."""
    image = np.zeros([28, 28], np.uint8)
    for row in range(4, 24):
        column = round(13.5 - lean * (row - 13.5))
        image[row, column - 1 : column + 2] = 255
    return image


def test_slant_is_the_lean_of_a_stroke():
    for lean in (-0.5, 0.0, 0.25):
        slant = attributes.measure(stroke(lean)[None])["slant"]
        np.testing.assert_allclose(slant, lean, atol=0.02)


def test_measures_of_known_shapes():
    """A bar, a ring and two bars, by hand."""
    bar, ring, bars = np.zeros([3, 28, 28], np.uint8)
    bar[4:24, 12:16] = 255
    ring[9:19, 9:19] = 255
    ring[11:17, 11:17] = 0
    bars[4:24, 8:10] = bars[4:24, 18:20] = 255
    found = attributes.measure(np.stack([bar, ring, bars]))
    np.testing.assert_allclose(found["ink"], [80, 64, 80])
    np.testing.assert_allclose(found["width"], [4, 10, 12])
    np.testing.assert_allclose(found["filled share of the box"], [1, 0.64, 80 / 240])
    # Ten rows of the ring, six of which are crossed twice.
    np.testing.assert_allclose(found["strokes across a row"], [1, 1.6, 2])
    np.testing.assert_allclose(found["strokes down a column"], [1, 1.6, 1])
    for name in ("left-right", "up-down", "half-turn"):
        np.testing.assert_allclose(found[f"{name} symmetry"], 1)
    for name in ("slant", "skew along x", "skew along y"):
        np.testing.assert_allclose(found[name], 0, atol=1e-12)
    ninths = [values for name, values in found.items() if name.endswith("columns")]
    assert len(ninths) == 9
    np.testing.assert_allclose(sum(ninths), 1)
    np.testing.assert_allclose(found["aspect"][1], 1)


def test_mirrored_digits_have_mirrored_measures(digits):
    """Slant and horizontal skew change their sign, symmetries and sizes do not."""
    images = digits.train.images
    found, mirrored = (
        attributes.measure(each) for each in (images, images[:, :, ::-1])
    )
    for name in ("slant", "skew along x"):
        np.testing.assert_allclose(mirrored[name], -found[name], atol=1e-9)
    for name in ("ink", "width", "aspect", "thickness", "left-right symmetry"):
        np.testing.assert_allclose(mirrored[name], found[name], rtol=1e-9)


def test_attributes_are_forty_and_balanced(digits):
    """Ten have a digit's share, six follow from it, 24 split the training digits."""
    images, classes = digits.train
    thresholds = attributes.medians(images)
    answers = attributes.label(images, classes, thresholds)
    assert len(answers) == task_groups.NUM_ATTRIBUTES
    assert all(answer.dtype == bool for answer in answers.values())
    one_hot = np.stack([answers[f"digit {k}"] for k in range(10)], axis=1)
    np.testing.assert_array_equal(one_hot.argmax(axis=1), classes)
    np.testing.assert_array_equal(answers["even"], classes % 2 == 0)
    shape = [v for name, v in answers.items() if name.startswith("above")]
    assert len(shape) == 24
    # `width` is a whole number, of which many digits have the median.
    assert all(0.25 <= answer.mean() <= 0.5 for answer in shape)
    # Thresholds are those given, not those of the images at hand.
    few = attributes.label(images[:5], classes[:5], thresholds)
    for name, answer in few.items():
        np.testing.assert_array_equal(answer, answers[name][:5])


# The problems.


def test_stacked_heads_equal_a_loop_over_tasks(parts):
    """Losses of the oracle and scores are those of each head written out."""
    problem = parts["attributes"].problem
    params = problem.init(jax.random.key(0))
    batch = jax.tree.map(lambda leaf: leaf[:7], problem.train)
    encoder, head = params["encoder"], params["heads"]["stacked"]["dense1"]
    z = batch["image"]
    for layer in ("dense1", "dense2"):
        z = jax.nn.relu(z @ encoder[layer]["kernel"] + encoder[layer]["bias"])
    scores = jax.jit(problem.score)(params, batch)
    losses = jax.jit(problem.oracle.losses)(params, batch)
    for task in (0, 11, 39):
        logits = z @ head["kernel"][task, :, 0] + head["bias"][task, 0]
        answers = batch["answers"][:, task]
        expected = optax.sigmoid_binary_cross_entropy(logits, answers)
        np.testing.assert_allclose(scores["loss"][task], expected, rtol=1e-4)
        np.testing.assert_allclose(losses[task], expected.mean(), rtol=1e-4)
        wrong = (logits > 0) != (answers == 1)
        np.testing.assert_array_equal(scores["error"][task], wrong)


def test_f1_is_that_of_the_positive_answers(parts):
    """2 TP / (2 TP + FP + FN) by attribute, 0 where nothing is positive."""
    said = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
    true = np.array([[1, 0, 0, 1], [0, 0, 0, 0]])
    metrics = {"said": said, "true": true, "hit": said * true}
    metrics |= {"loss": said, "error": said != true}
    means = {name: values.mean(axis=1)[None] for name, values in metrics.items()}
    found = parts["attributes"].measures(means)
    np.testing.assert_allclose(found["f1"], [(2 / (2 + 1 + 1) + 0) / 2])
    np.testing.assert_allclose(found["error"], [0.25])


def test_relative_losses_of_constant_predictions_are_one(parts, digits):
    """The best constants have exactly the losses that the others are divided by."""
    problem = parts["mixed"].problem
    params = jax.tree.map(jnp.zeros_like, problem.init(jax.random.key(0)))
    shares = np.bincount(digits.train.labels, minlength=10) / len(digits.train.labels)
    params["heads"]["digit"]["dense1"]["bias"] = jnp.log(shares)
    scores = jax.jit(problem.score)(params, problem.train)
    means = {
        name: np.asarray(values.mean(axis=1))[None] for name, values in scores.items()
    }
    measures = parts["mixed"].measures(means)
    np.testing.assert_allclose(measures["relative_loss"], 1, rtol=1e-5)
    assert measures["ink_loss"] > 50 * measures["slant_loss"]  # of different scale
    assert set(MIXED_TASKS) == set(problem.oracle.tasks)


# The training.


def test_groups_are_dealt_anew_for_every_seed():
    groups = make_groups(40, 8, seeds=3)
    assert groups.shape == (3, 40)
    for row in np.asarray(groups):
        np.testing.assert_array_equal(np.bincount(row), [5] * 8)
    assert len({tuple(row) for row in np.asarray(groups)}) == 3


def test_run_is_the_loop_over_its_groups(parts, whole):
    """Losses and distances of one run, by hand: Adam on each group's summed loss."""
    part = parts["attributes"]
    problem, rate, seed = part.problem, 1, 1
    groups = make_groups(40, 4, SCHEDULE.seeds)[seed]
    order = task_groups_training.epoch_order(96, 32, SCHEDULE.seeds, epoch=0)[seed]
    inner = optax.adam(SCHEDULE.learning_rates[rate])
    params = problem.init(jax.random.key(seed))
    start = params["encoder"]
    # A head is in one group only, and has no gradient in the others.
    states = [
        mtlopt.per_label(inner, {"encoder": "encoder", "heads": "stacked"}).init(params)
        for _ in range(4)
    ]

    @jax.jit
    def turn(params, state, rows, members):
        batch = jax.tree.map(lambda leaf: leaf[rows], problem.train)

        def total(params):
            return jnp.sum(members * problem.oracle.losses(params, batch))

        loss, grads = jax.value_and_grad(total)(params)
        updates, state = mtlopt.per_label(
            inner, {"encoder": "encoder", "heads": "stacked"}
        ).update(
            grads, state, params, active={"encoder": True, "stacked": members == 1}
        )
        return optax.apply_updates(params, updates), state, loss

    def distance(a, b):
        return float(optax.tree.norm(jax.tree.map(jnp.subtract, a, b)))

    covered, losses = 0.0, []
    for rows in order:
        total = 0.0
        for group in range(4):
            before = params["encoder"]
            members = (groups == group).astype(float)
            params, states[group], loss = turn(params, states[group], rows, members)
            covered += distance(params["encoder"], before)
            total += float(loss)
        losses.append(total)
    history, run = whole[1][IO], rate * SCHEDULE.seeds + seed
    np.testing.assert_allclose(history.train_loss[0][run], np.mean(losses), rtol=1e-3)
    np.testing.assert_allclose(history.covered[0][run], covered, rtol=1e-3)
    shortest = distance(params["encoder"], start)
    np.testing.assert_allclose(history.shortest[0][run], shortest, rtol=1e-3)


def test_distances_are_consistent(whole):
    """Covered never falls and is never below shortest; more turns travel farther."""
    for history in whole[1].values():
        covered, shortest = np.array(history.covered), np.array(history.shortest)
        assert (np.diff(covered, axis=0) > 0).all()
        assert (covered >= shortest).all()
    sus, io = (np.array(whole[1][way].covered) for way in (SUS, IO))
    assert (io > sus).all()


def test_memory_of_io_is_a_state_for_each_group(whole, parts):
    """Adam: 2 N P numbers and N counts for the trunk, whose P are known."""
    trunk = 196 * 32 + 32 + 32 * 32 + 32
    for way in WAYS:
        copies = way.groups if way.individual else 1
        assert whole[1][way].shared_bytes == 4 * copies * (2 * trunk + 1)
    heads = [whole[1][way].heads_bytes for way in WAYS]
    assert heads[0] == heads[1] == heads[2]
    assert heads[0] >= 4 * 2 * 40 * 33


def test_more_groups_learn_faster_at_low_learning_rates(whole):
    """Four times as many updates: a lower loss at the lower rate."""
    rate = slice(0, SCHEDULE.seeds)
    sus, io = (
        np.array(whole[1][way].validation["loss"])[-1, rate] for way in (SUS, IO)
    )
    assert (io < sus).all()


def without_times(history: History) -> dict:
    numbers = dataclasses.asdict(history)
    return {name: v for name, v in numbers.items() if "seconds" not in name}


def read_csv(out: Path) -> list[dict[str, str]]:
    with (out / "attributes_metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds_all_runs"]
    return rows


def test_killed_run_resumes_to_the_bit(parts, whole, tmp_path, monkeypatch):
    """Killed after the first epoch, which is not repeated."""
    save, order, trained = Checkpoints.save, task_groups_training.epoch_order, []

    def save_and_die(self, *args):
        save(self, *args)
        raise KeyboardInterrupt

    def recorded_order(*args):
        trained.append(args[-1])
        return order(*args)

    def run() -> dict[Setting, History]:
        part = parts["attributes"]
        return run_settings("attributes", part, (IO,), SCHEDULE, tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run()
    monkeypatch.setattr(task_groups_training, "epoch_order", recorded_order)
    resumed = run()
    assert trained == [1]
    out, expected = whole
    assert without_times(resumed[IO]) == without_times(expected[IO])
    assert read_csv(tmp_path) == [r for r in read_csv(out) if r["setting"] == IO.title]
    assert run() == resumed  # a finished run is not trained again
    assert trained == [1]


def test_csv_has_a_row_for_each_setting_epoch_and_run(whole):
    rows = read_csv(whole[0])
    keys = [(r["setting"], r["epoch"], r["learning_rate"], r["seed"]) for r in rows]
    assert keys == [
        (way.title, epoch, rate, seed)
        for way in WAYS
        for epoch in "12"
        for rate in ("0.003", "0.03")
        for seed in "01"
    ]


# The choices.


def history_of(losses: np.ndarray) -> History:
    """A history whose numbers tell where they are from, `[epochs, rates, seeds]`."""
    runs = losses.reshape(len(losses), -1)
    index = np.arange(runs.size).reshape(runs.shape)
    return History(
        validation={"loss": runs.tolist()},
        test={"loss": (100 + index).tolist()},
        covered=(10 + index).tolist(),
        shortest=np.ones(runs.shape).tolist(),
    )


def test_choices_are_by_validation(parts):
    """The rate by the mean over the seeds of each one's best; NaN is never best."""
    schedule = Schedule(epochs=3, seeds=2, batch_size=1, learning_rates=(0.1, 0.2))
    losses = np.array([[[3, 3], [5, 2]], [[2, 4], [1, 4]], [[3, 5], [np.nan, 5]]])
    broken = np.full((3, 2, 2), np.nan)
    broken[:, 0] = [[9, 9], [8, 8], [9, 9]]
    histories = {SUS: history_of(losses), IO: history_of(broken)}
    outcome = conclude(parts["attributes"], schedule, histories)
    choice = outcome.choices[SUS]
    assert (choice.learning_rate, choice.best_epoch) == (0.2, [2, 1])
    assert choice.validation["loss"] == [1, 2]
    assert choice.test["loss"] == [100 + 6, 100 + 3]
    assert outcome.choices[IO].learning_rate == 0.1
    assert outcome.choices[IO].best_epoch == [2, 2]
    # Rate 0.2 never works for IO, so the common one is 0.1, at its lowest mean.
    assert (outcome.common_rate, outcome.common_epoch) == (0.1, 2)
    assert outcome.travels[SUS].covered == [10 + 4, 10 + 5]
    assert outcome.travels[SUS].ratio == [14, 15]


# The command.

OPTIONS = [
    "mtl_io.task_groups",
    "--groups",
    "4",
    "--epochs",
    "2",
    "--mixed-epochs",
    "1",
]
OPTIONS += ["--batch-size", "32", "--learning-rates", "0.003", "0.03"]


@pytest.fixture(scope="module")
def out(digits, whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run."""
    folder = tmp_path_factory.mktemp("run") / "out"

    def run(name, part, ways, schedule, out):
        if name == "mixed":
            return run_settings(name, part, ways, schedule, out)
        # Trained already, and this is what the options ask for.
        assert (tuple(ways), schedule) == (WAYS, SCHEDULE)
        return whole[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_groups, "load", lambda _: digits)
        patch.setattr(task_groups, "run_settings", run)
        assert main([*OPTIONS, "--out", str(folder)]) == 0
    return folder


def test_results(out: Path):
    results = json.loads((out / "results.json").read_text())
    assert results["command"].startswith(
        "python -m experiments mtl_io.task_groups --groups"
    )
    assert results["versions"]["mtlopt"] == mtlopt.__version__
    titles = {
        "attributes": "SUS, IUS (4 groups), IO (4 groups)",
        "mixed": "SUS, IUS (3 groups), IO (3 groups)",
    }
    for name, part in results["parts"].items():
        assert ", ".join(part["settings"]) == titles[name]
        assert part["distances_at"]["learning_rate"] in (0.003, 0.03)
        for entry in part["settings"].values():
            assert len(entry["best_epoch"]) == 2  # seeds
            assert all(ratio >= 1 for ratio in entry["distances"]["ratio"])
    entry = results["parts"]["attributes"]["settings"]["IO (4 groups)"]
    assert entry["paper_table_3"] == [9.11, 69.48]
    assert entry["paper_table_4"] == [6560.56, 242.55, 27.05]


def test_report(out: Path):
    report = (out / "report.md").read_text()
    assert "40 attributes of some" in report
    for title in ("IUS (4 groups)", "IO (4 groups)", "IO (3 groups)"):
        assert report.count(f"| {title} ") == 4  # tables
    assert "5636.18" in report
    assert "67.44" in report


@pytest.mark.parametrize(
    "name", ["attributes_learning_rate", "attributes_distance", "mixed_learning_rate"]
)
def test_figures_are_images(out: Path, name: str):
    assert matplotlib.image.imread(out / f"{name}.png").std() > 0


def test_every_setting_is_an_option():
    settings, _, _ = task_groups.parse([])
    assert settings == Settings()
    for field in dataclasses.fields(settings):
        option = f"--{field.name.replace('_', '-')}"
        value = {"problem": "mixed"}.get(field.name, "5")
        changed, _, _ = task_groups.parse([option, value])
        assert getattr(changed, field.name) != getattr(settings, field.name)


def test_full_has_the_papers_counts():
    settings, _, _ = task_groups.parse(["--full"])
    assert (settings.epochs, settings.seeds) == (15, 3)
    titles = {way.title for way in settings.ways("attributes")}
    assert titles == set(task_groups.PAPER_SCORES)
    assert set(task_groups.PAPER_DISTANCES["attributes"]) <= titles
    mixed = {way.title for way in settings.ways("mixed")}
    assert mixed == set(task_groups.PAPER_DISTANCES["mixed"])


def test_bad_arguments(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(task_groups, "load", lambda _: digits)
    with pytest.raises(UsageError, match="--groups must be from 2 to 40, got 1 41"):
        task_groups.parse(["--groups", "1", "41"])
    with pytest.raises(UsageError, match="--batch-size must be at most 96"):
        task_groups.main(["--batch-size", "97", "--out", str(tmp_path / "out")])
    monkeypatch.undo()
    with pytest.raises(UsageError, match="`data_dir` must be a folder"):
        task_groups.main(["--data-dir", str(tmp_path / "none")])
