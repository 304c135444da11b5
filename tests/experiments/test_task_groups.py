"""Tasks in groups: the attributes, the training in turns, the choices, the command."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pandas as pd
import pytest

import mtlopt
from experiments.__main__ import main
from experiments.data import attributes
from experiments.data.digits import Digits, DigitSet, load_digits
from experiments.lab.batches import epoch_order
from experiments.lab.errors import UsageError
from experiments.lab.vision.report import SUM, measure_distances
from experiments.mtl_io import celeba_groups, nyuv2, task_groups
from experiments.mtl_io.group_problems import (
    MIXED_TASKS,
    NUM_ATTRIBUTES,
    PARTS,
    Part,
)
from experiments.mtl_io.group_training import Settings, make_groups
from tests.experiments.event_files import read_runs

pytestmark = pytest.mark.slow

SEEDS, RATES = 2, (0.003, 0.03)
KEYS = ["method", "rate", "seed", "epoch"]
WAYS = Settings(groups=(4,)).ways("attributes")
RECORDED = ("train_loss", "validation_loss", "validation_error", "validation_f1")
RECORDED += ("covered", "shortest")
OPTIONS = ["mtl_io.task_groups", "--groups", "4", "--epochs", "2"]
OPTIONS += [
    "--seeds",
    "2",
    "--mixed-epochs",
    "1",
    "--batch-size",
    "32",
    "--tensorboard",
]
OPTIONS += ["--learning-rates", "0.03", "0.003"]


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
def out(digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run of both parts."""
    folder = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_groups, "load_digits", lambda _: digits)
        assert main([*OPTIONS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def table(out: Path) -> pd.DataFrame:
    """What was recorded of the attributes, mean over these: by run and epoch."""
    records = pd.read_csv(out / "attributes_metrics.csv", keep_default_na=False)
    means = records.groupby([*KEYS, "name"])["value"].mean()
    return means.unstack("name")[list(RECORDED)]


@pytest.fixture(scope="module")
def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


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
    assert len(answers) == NUM_ATTRIBUTES
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
    params, state = problem.init(0)
    batch = jax.tree.map(lambda leaf: leaf[:7], problem.splits["train"])
    encoder, head = params["encoder"], params["heads"]["stacked"]["dense1"]
    z = batch["image"]
    for layer in ("dense1", "dense2"):
        z = jax.nn.relu(z @ encoder[layer]["kernel"] + encoder[layer]["bias"])
    scores = jax.jit(parts["attributes"].score)(params, state, batch)
    losses = jax.jit(problem.oracle.losses)(params, batch, state)
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
    params, state = jax.tree.map(jnp.zeros_like, problem.init(0))
    shares = np.bincount(digits.train.labels, minlength=10) / len(digits.train.labels)
    params["heads"]["digit"]["dense1"]["bias"] = jnp.log(shares)
    scores = jax.jit(parts["mixed"].score)(params, state, problem.splits["train"])
    means = {
        name: np.asarray(values.mean(axis=1))[None] for name, values in scores.items()
    }
    measures = parts["mixed"].measures(means)
    np.testing.assert_allclose(measures["relative_loss"], 1, rtol=1e-5)
    np.testing.assert_allclose(measures["loss"], 1, rtol=1e-5)
    losses = dict(zip(problem.tasks, means["loss"][0], strict=True))
    assert losses["ink"] > 50 * losses["slant"]  # of different scale
    assert set(MIXED_TASKS) == set(problem.oracle.tasks)


# The training.


def test_groups_are_dealt_anew_for_every_seed():
    groups = make_groups(40, 8, seeds=3)
    assert groups.shape == (3, 40)
    for row in np.asarray(groups):
        np.testing.assert_array_equal(np.bincount(row), [5] * 8)
    assert len({tuple(row) for row in np.asarray(groups)}) == 3


def test_run_is_the_loop_over_its_groups(parts, table):
    """Losses and distances of one run, by hand: Adam on each group's summed loss."""
    problem, rate, seed = parts["attributes"].problem, RATES[1], 1
    groups = make_groups(40, 4, SEEDS)[seed]
    order = epoch_order(96, 32, SEEDS, epoch=0)[seed]
    # A head is in one group only, and has no gradient in the others.
    inner = mtlopt.per_label(
        optax.adam(rate), {"encoder": "encoder", "heads": "stacked"}
    )
    params, model_state = problem.init(seed)
    start = params["encoder"]
    states = [inner.init(params) for _ in range(4)]

    @jax.jit
    def turn(params, state, rows, members):
        batch = jax.tree.map(lambda leaf: leaf[rows], problem.splits["train"])

        def total(params):
            losses = problem.oracle.losses(params, batch, model_state)
            return jnp.sum(members * losses)

        loss, grads = jax.value_and_grad(total)(params)
        active = {"encoder": True, "stacked": members == 1}
        updates, state = inner.update(grads, state, params, active=active)
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
    found = table.loc["io_4", rate, seed, 1]
    np.testing.assert_allclose(found["train_loss"], np.mean(losses), rtol=1e-3)
    np.testing.assert_allclose(found["covered"], covered, rtol=1e-3)
    shortest = distance(params["encoder"], start)
    np.testing.assert_allclose(found["shortest"], shortest, rtol=1e-3)


def test_the_control_moves_by_the_sum_on_every_batch_again(parts, table):
    """Losses of one run, by hand: Adam on the summed loss, four times a batch."""
    problem, rate, seed = parts["attributes"].problem, RATES[0], 0
    order = epoch_order(96, 32, SEEDS, epoch=0)[seed]
    optimizer = optax.adam(rate)
    params, state = problem.init(seed)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, rows):
        batch = jax.tree.map(lambda leaf: leaf[rows], problem.splits["train"])
        loss, grads = jax.value_and_grad(
            lambda params: jnp.sum(problem.oracle.losses(params, batch, state))
        )(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for rows in order:
        for _ in range(4):
            params, opt_state, loss = step(params, opt_state, rows)
            losses.append(float(loss))
    found = table.loc["sum_4", rate, seed, 1]["train_loss"]
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-3)


def test_distances_are_consistent(table):
    """Covered never falls and is never below shortest; more turns travel farther."""
    covered = table["covered"].unstack("epoch")
    assert (covered[2] > covered[1]).all()
    assert (table["covered"] >= table["shortest"]).all()
    assert (table["covered"]["io_4"] > table["covered"][SUM]).all()


def test_memory_of_io_is_a_state_for_each_group(results):
    """Adam: 2 N P numbers and N counts for the trunk, whose P are known."""
    trunk = 196 * 32 + 32 + 32 * 32 + 32
    costs = results["parts"]["attributes"]["costs"]
    for way in WAYS:
        copies = way.groups if way.individual else 1
        assert costs["shared"][way.name] == 4 * copies * (2 * trunk + 1)
        assert costs["seconds"][way.name] > 0
    (heads,) = {costs["heads"][way.name] for way in WAYS}
    assert heads >= 4 * 2 * 40 * 33


def test_more_groups_learn_faster_at_low_learning_rates(table):
    """Four times as many updates: a lower loss at the lower rate."""
    losses = table["validation_loss"].xs((RATES[0], 2), level=["rate", "epoch"])
    assert (losses["io_4"] < losses[SUM]).all()


def test_every_setting_rate_seed_and_epoch_is_recorded(table):
    names = [way.name for way in WAYS]
    expected = pd.MultiIndex.from_product([names, RATES, range(SEEDS), (1, 2)])
    assert set(table.index) == set(expected)
    assert not table.isna().any(axis=None)


# The choices.


def records_of(method: str, losses: np.ndarray) -> list[dict]:
    """Records whose numbers tell where they are from, `[epochs, rates, seeds]`."""
    rows = []
    for place, (at, loss) in enumerate(np.ndenumerate(losses)):
        epoch, rate, seed = at
        keys = {"method": method, "only": "", "rate": (0.1, 0.2)[rate], "seed": seed}
        numbers = {"validation_loss": loss, "covered": 10 + place, "shortest": 1}
        if epoch == 0:
            numbers["best_loss"] = np.fmin.reduce(losses[:, rate, seed], initial=np.inf)
        for name, value in numbers.items():
            rows.append({**keys, "epoch": epoch + 1, "name": name, "value": value})
    return rows


def test_distances_are_at_one_rate_and_epoch():
    """Those of the lowest validation loss, mean over the methods; NaN is the worst."""
    losses = np.array([[[3, 3], [5, 2]], [[2, 4], [1, 4]], [[3, 5], [np.nan, 5]]])
    broken = np.full((3, 2, 2), np.nan)
    broken[:, 0] = [[9, 9], [8, 8], [9, 9]]
    other = records_of("mgda", 0 * losses[::-1])  # of another family: does not count
    records = records_of(SUM, losses) + records_of("io", broken) + other
    # Rate 0.2 never works for IO, so the common one is 0.1, at its lowest mean.
    rate, epoch, values = measure_distances(pd.DataFrame(records))
    assert (rate, epoch) == (0.1, 2)
    assert values.loc[SUM, "covered"].tolist() == [10 + 4, 10 + 5]
    assert values.loc[SUM, "ratio"].tolist() == [14, 15]


@pytest.mark.parametrize("part", PARTS)
def test_test_is_read_at_the_best_epoch_of_each_run(out: Path, part: str):
    """The first with the lowest validation loss, mean over the tasks."""
    records = pd.read_csv(out / f"{part}_metrics.csv", keep_default_na=False)
    means = records.groupby([*KEYS, "name"])["value"].mean().unstack("name")
    losses = means["validation_loss"].unstack("epoch")
    runs = KEYS[:-1]
    best = means.groupby(runs)[["best_loss", "best_epoch"]].max()
    np.testing.assert_allclose(best["best_loss"], losses.min(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(best["best_epoch"], losses.idxmin(axis=1))
    if part == "mixed":  # the mean of the losses relative to constants chooses
        relative = means["validation_relative_loss"].unstack("epoch")
        np.testing.assert_allclose(relative, losses, rtol=1e-6)


# The command.


def test_results(results):
    assert results["command"].startswith(
        "python -m experiments mtl_io.task_groups --groups"
    )
    assert results["versions"]["mtlopt"] == mtlopt.__version__
    assert results["settings"]["learning_rates"] == list(RATES)  # in order
    names = {
        "attributes": ["sum_tasks", "sum_4", "ius_4", "io_4"],
        "mixed": ["sum_tasks", "sum_3", "ius", "io"],
    }
    for name, part in results["parts"].items():
        assert list(part["costs"]["seconds"]) == list(part["scores"]) == names[name]
        distances = part["distances"]
        assert distances["rate"] in RATES
        assert len(distances["values"]) == 4 * SEEDS
        assert all(row["ratio"] >= 1 for row in distances["values"])
        for scores in part["scores"].values():
            assert {len(values) for values in scores.values()} == {SEEDS}


def test_each_part_has_event_files(out: Path):
    """Those of the second part do not replace those of the first."""
    for name, num_ways in (("attributes", 4), ("mixed", 4)):
        runs = read_runs(out / "tensorboard" / f"{name}_metrics")
        assert len(runs) == num_ways * len(RATES) * SEEDS


def test_report(out: Path):
    report = (out / "report.md").read_text()
    assert "40 attributes of some" in report
    for claim in ("IUS in few groups improves", "control: IO", "IO is best (Table 1)"):
        assert claim in report
    for title in ("IUS (4 groups)", "IO (4 groups)", "IO (3 groups)"):
        assert report.count(f"| {title} ") >= 4  # tables
    for number in ("9.11±0.02", "69.48±0.15", "5636.18", "6560.56"):
        assert number in report
    assert "67.44" in report


@pytest.mark.parametrize(
    "name", ["attributes_learning_rate", "attributes_distance", "mixed_learning_rate"]
)
def test_figures_are_images(out: Path, name: str):
    assert matplotlib.image.imread(out / f"{name}.png").std() > 0


def test_every_setting_is_an_option():
    settings = task_groups.read([])
    assert dataclasses.replace(settings, out="") == Settings()
    flags = ("resume", "tensorboard", "full")
    for field in dataclasses.fields(settings):
        option = f"--{field.name.replace('_', '-')}"
        value = {"problem": "mixed"}.get(field.name, "6")
        changed = task_groups.read([option, *([] if field.name in flags else [value])])
        assert getattr(changed, field.name) != getattr(settings, field.name)


def test_full_has_the_papers_counts():
    settings = task_groups.read(["--full"])
    assert (settings.epochs, settings.seeds) == (15, 3)
    for part, full in (("attributes", celeba_groups), ("mixed", nyuv2)):
        ways = settings.ways(part)
        names = {way.name for way in ways if way.repeats == 1}
        assert set(full.DISTANCES) <= names
        assert names <= {*full.SCORES}


def test_bad_arguments(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(task_groups, "load_digits", lambda _: digits)
    with pytest.raises(UsageError, match="--groups must be from 2 to 40, got 1 41"):
        task_groups.read(["--groups", "1", "41"])
    with pytest.raises(UsageError, match="--batch-size must be at most 96"):
        task_groups.main(["--batch-size", "97", "--out", str(tmp_path / "out")])
    monkeypatch.undo()
    with pytest.raises(UsageError, match="`data_dir` must be a folder"):
        task_groups.main(["--data-dir", str(tmp_path / "none")])
