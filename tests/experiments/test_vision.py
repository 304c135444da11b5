"""The vision experiments: data, problems, methods, training, the command."""

import csv
import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from flax import nnx

import mtlopt
from experiments.__main__ import NAMES as COMMANDS
from experiments.__main__ import main
from experiments.data.rendered import load_room_views, load_rooms, load_streets
from experiments.data.rendered_samples import (
    attribute_labels,
    pose_labels,
    rendered_samples,
    room_labels,
    street_groups,
    street_labels,
)
from experiments.data.samples import Sample, Samples, make_sample
from experiments.lab.settings import UsageError
from experiments.lab.vision import training as vision_training
from experiments.lab.vision.data import Data, Split, hold_out, make_data
from experiments.lab.vision.experiment import Experiment, Settings, parse, run
from experiments.lab.vision.methods import make_methods, method_names, norm_widths
from experiments.lab.vision.problems import Problem, make_problem
from experiments.lab.vision.report import by_rate, choose, make_rows
from experiments.lab.vision.tasks import (
    ERROR,
    F1,
    attribute_tasks,
    category_tasks,
    pose_tasks,
    room_tasks,
    street_tasks,
)
from experiments.lab.vision.training import History, Run, Schedule, read_run
from mtlopt.models.conv_norm import ConvNorm
from mtlopt.models.layers import Conv
from mtlopt.models.shared_encoder import SharedEncoder

SIZE = (6, 8)
WIDTH = 6  # of the encoder; with a sharing ratio of 0.8 each task has five of it
NAMES = ("mtl_io.nyuv2", "mtl_io.cityscapes7", "mtl_io.celeba_groups")
NAMES += ("aligned_mtl.cityscapes3", "aligned_mtl.celeba", "aligned_mtl.seven_scenes")
METHODS = ("sum_tasks", "io", "pcgrad", "single")


class TinyEncoder(nnx.Module):
    """One layer of 1 x 1."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.layer = ConvNorm(3, WIDTH, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.layer(x))


class Tiny(SharedEncoder):
    """The smallest network with BatchNorm, and a head with statistics of its own."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.encoder = TinyEncoder(rngs=rngs)
        self.heads = nnx.Dict(
            {
                "segmentation": Conv(WIDTH, 13, 1, rngs=rngs),
                "depth": ConvNorm(WIDTH, 1, 1, rngs=rngs),
                "normals": Conv(WIDTH, 3, 1, rngs=rngs),
            }
        )


def make(settings: Any, data: Any) -> Problem:
    del settings, data
    return make_problem(lambda key: Tiny(rngs=nnx.Rngs(key)), room_tasks(13))


def load(settings: Any) -> Data:
    del settings
    rooms = load_rooms(8, 3, 3, size=SIZE)
    return make_data(rendered_samples(rooms, room_labels), rooms.source)


SCHEDULE = Schedule(METHODS, 2, 2, 4, (0.001, 0.01))
TINY = Experiment(
    name="nyuv2",
    description="",
    quick=SCHEDULE,
    full=dataclasses.replace(SCHEDULE, epochs=500),
    load=load,
    make=make,
    num_tasks=3,
    paper=lambda _: {"io": {"mean_iou": "29.48±0.30"}},
    table="Table 1",
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load(None)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make(None, None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    run(TINY, ["--out", str(out)])
    return out


# The data.


@pytest.mark.parametrize(
    ("data", "labels", "shapes"),
    [
        (load_rooms, room_labels, {"segmentation": (), "depth": (1,), "normals": (3,)}),
        (
            load_streets,
            street_labels,
            {"segmentation": (), "instances": (2,), "disparity": (1,)},
        ),
        (load_streets, street_groups, {"segmentation": ()}),
    ],
)
def test_rendered_maps_have_the_form_of_the_loaders(
    data: Callable[..., Any], labels: Callable[..., Any], shapes: dict[str, Any]
):
    drawn = data(2, 1, 1, size=SIZE)
    sample = rendered_samples(drawn, labels)["train"][1]
    assert {k: v.shape for k, v in sample.labels.items()} == {
        task: (*SIZE, *channels) for task, channels in shapes.items()
    }
    np.testing.assert_allclose(sample.image, drawn.train.draw([1]).images[0] / 255)
    assert all(
        label.dtype == (np.int32 if task == "segmentation" else np.float32)
        for task, label in sample.labels.items()
    )


def test_rendered_attributes_and_poses_have_the_form_of_the_loaders():
    rooms = load_rooms(2, 1, 1, size=SIZE)
    names = rooms.attributes
    sample = rendered_samples(rooms, attribute_labels(names))["test"][0]
    assert tuple(sample.labels) == names
    assert {int(label) for label in sample.labels.values()} == {0, 1}
    views = load_room_views(2, 1, 1, size=SIZE)
    pose = rendered_samples(views, pose_labels)["train"][0].labels
    np.testing.assert_allclose(np.linalg.norm(pose["rotation"]), 1, rtol=1e-5)
    assert pose["translation"].shape == (3,)


def counted(num: int) -> tuple[Samples, list[int]]:
    """Samples whose labels are their places, and which of them were read."""
    read: list[int] = []

    def one(place: int) -> Sample:
        read.append(place)
        if place == 7:
            raise ValueError("seven.png is broken.")
        labels = {"place": np.array(place), "half": np.array([place / 2])}
        return make_sample(np.full([2, 3, 3], place / 255), labels)

    return Samples([str(i) for i in range(num)], one, "counted"), read


def test_samples_are_read_once_and_when_asked_for():
    """The first tells the shapes; what was read before is not read again."""
    samples, read = counted(6)
    split = Split(samples)
    assert len(split) == 6
    assert split.tasks == ("place", "half")
    read.clear()
    batch = split.batch(np.array([4, 2, 4]))
    assert sorted(read) == [2, 4]
    assert batch["image"].dtype == np.uint8
    assert batch["labels"]["place"].dtype == np.int8
    assert batch["labels"]["half"].dtype == np.float32
    split.batch(np.array([2, 3]))
    assert sorted(read) == [2, 3, 4]
    for row, place in enumerate((4, 2, 4)):
        np.testing.assert_array_equal(batch["image"][row], np.full([2, 3, 3], place))
        assert batch["labels"]["place"][row] == place
        assert batch["labels"]["half"][row] == place / 2


def test_samples_past_the_end_have_no_label():
    """And what they are made of is not changed by it."""
    split = Split(counted(3)[0])
    batch = split.padded(2, 2)["labels"]
    assert batch["place"].tolist() == [2, -1]
    np.testing.assert_array_equal(batch["half"], [[1.0], [np.nan]])
    assert split.batch(np.arange(3))["labels"]["place"].tolist() == [0, 1, 2]


def test_one_sample_cannot_be_trained_and_validated_on():
    with pytest.raises(ValueError, match="`train` must have 2 samples or more"):
        hold_out(counted(1)[0], counted(1)[0])


def test_a_sample_that_cannot_be_read_is_named():
    split = Split(counted(9)[0])
    split.batch(np.arange(5))
    with pytest.raises(UsageError, match=r"seven\.png is broken"):
        split.batch(np.arange(5, 9))


# Problems.


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batches(problem: Problem, data: Data):
    """A split in one batch and in padded ones: the same losses and metrics."""
    method = make_methods(problem, 8, 2)["sum_tasks"]()
    state = method.start(0)
    found = [
        vision_training.Evaluator(problem, size)(method.predict, state, data.test)
        for size in (3, 2)
    ]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    for name, value in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], value, rtol=1e-3, err_msg=name)


def test_scores_of_right_answers():
    """Perfect outputs have perfect metrics, for every kind of tasks."""
    rng = np.random.default_rng(0)
    yes = {name: rng.integers(0, 2, 20) for name in "ab"}
    tasks = attribute_tasks("ab", (ERROR, F1), outputs=1)
    logits = {name: 2.0 * label[:, None] - 1 for name, label in yes.items()}
    scores = tasks.scores([tasks.count(logits, yes)])
    assert scores["error"] == scores["error_a"] == 0
    assert scores["f1"] == scores["accuracy"] == 1
    two = attribute_tasks("ab", (ERROR,), outputs=2)
    pairs = {name: np.concatenate([-x, x], -1) for name, x in logits.items()}
    assert two.scores([two.count(pairs, yes)])["error"] == 0

    seg = rng.integers(0, 3, [2, 4, 4])
    one_hot = {n: np.where(seg == k, 1, 0) for k, n in enumerate("abc")}
    maps = {name: 1.0 * label[..., None] for name, label in one_hot.items()}
    categories = category_tasks("abc")
    assert categories.scores([categories.count(maps, one_hot)])["mean_iou"] == 1

    streets = street_tasks(3)
    labels = {"segmentation": seg, "instances": rng.normal(size=[2, 4, 4, 2])}
    labels["disparity"] = rng.normal(size=[2, 4, 4, 1])
    outputs = {task: labels[task] / 10 for task in ("instances", "disparity")}
    outputs["segmentation"] = np.eye(3)[seg]
    outputs = jax.tree.map(jnp.asarray, outputs)
    found = streets.scores([streets.count(outputs, labels)])
    np.testing.assert_allclose(
        [found["mean_iou"], found["offset"], found["disparity"]], [1, 0, 0], atol=1e-6
    )

    poses = pose_tasks()
    pose = {"translation": np.ones([3, 3]), "rotation": np.eye(4)[:3]}
    pose["translation"][2] = pose["rotation"][2] = np.nan
    moved = {"translation": np.zeros([3, 3]), "rotation": -2 * np.eye(4)[:3]}
    found = poses.scores([poses.count(moved, pose)])
    np.testing.assert_allclose(found["translation"], np.sqrt(3))
    assert found["rotation"] == 0


# Methods.


@pytest.mark.slow
def test_absent_labels_move_no_head(problem: Problem, data: Data):
    """With no depth in a batch its head stays, in a chain and in turns."""
    batch = data.train.batch(np.arange(4))
    batch["labels"]["depth"] = np.full_like(batch["labels"]["depth"], np.nan)
    batch["labels"]["segmentation"][:2] = -1
    for name in ("sum_tasks", "io"):
        method = make_methods(problem, 8, 2)[name]()
        state = method.start(0)
        after, losses = jax.jit(method.step)(
            state, batch, jnp.float32(0.1), jnp.ones(3, bool)
        )
        moved = {
            task: any(
                jax.tree.leaves(
                    jax.tree.map(
                        lambda a, b: bool(np.any(a != b)),
                        state.params["heads"][task],
                        after.params["heads"][task],
                    )
                )
            )
            for task in problem.names
        }
        assert moved == {"segmentation": True, "depth": False, "normals": True}
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
        assert np.isfinite(losses).all()


@pytest.mark.slow
def test_statistics_move_once_a_forward_pass(problem: Problem, data: Data):
    """The encoder's running mean is 0.9 of the old one, in each turn of IUS anew.

    A head's moves in its own turn only, and not without labels of its task.
    """
    batch, means = data.train.batch(np.arange(4)), []
    for name, turns in (("sum_tasks", 1), ("ius", 3)):
        method = make_methods(problem, 8, 2)[name]()
        step = jax.jit(method.step)
        state, rate = method.start(0), jnp.float32(0.0)
        after, _ = step(state, batch, rate, jnp.ones(3, bool))
        moved = after.stats["encoder"]["layer"]["norm"]["mean"]
        means.append((moved / (1 - 0.9**turns), after.stats["heads"]["depth"]))
        after, _ = step(state, batch, rate, jnp.array([True, False, True]))
        for leaf in jax.tree.leaves(after.stats["heads"]["depth"]["norm"]):
            assert leaf in (0, 1)
    for left, right in zip(*map(jax.tree.leaves, means), strict=True):
        assert np.all(left != 0)
        np.testing.assert_allclose(left, right, rtol=1e-5)


@pytest.mark.slow
def test_uncertainty_is_told_the_kind_of_each_loss(problem: Problem):
    """Factor 1 for a cross-entropy, 1/2 for an error."""
    start = make_methods(problem, 4, 2)["uncertainty"]().start
    weights = mtlopt.task_weights(start(0).opt_state)
    factors = dict(zip(problem.names, weights.tolist(), strict=True))
    assert factors == {"segmentation": 1.0, "depth": 0.5, "normals": 0.5}


def test_roaming_masks_channels(problem: Problem, data: Data):
    """Each task trains and predicts by its own channels, and statistics of its own."""
    method = make_methods(problem, 8, 2)["roaming"]()
    state = method.start(0)
    params, _ = problem.init(0)
    assert norm_widths(params["encoder"]) == {"layer/norm": WIDTH}
    after, losses = jax.jit(method.step)(
        state, data.train.batch(np.arange(4)), jnp.float32(0.01), jnp.ones(3, bool)
    )
    assert np.isfinite(losses).all()
    assert set(after.stats) == set(problem.names)
    images = data.test.batch(np.arange(len(data.test)))["image"]
    outputs = method.predict(after, images)
    assert {task: out.shape for task, out in outputs.items()} == {
        "segmentation": (3, *SIZE, 13),
        "depth": (3, *SIZE, 1),
        "normals": (3, *SIZE, 3),
    }
    masks = np.asarray(after.more.masks["layer/norm"])
    assert np.all(np.sum(masks, axis=1) == WIDTH - 1)
    for channel in range(WIDTH):
        moved = jax.tree.map(jnp.copy, after.params)
        conv = moved["encoder"]["layer"]["conv"]
        conv["kernel"] = conv["kernel"].at[..., channel].add(1.0)
        there = method.predict(after._replace(params=moved), images)
        for task, mask in zip(problem.names, masks, strict=True):
            is_same = np.array_equal(outputs[task], there[task])
            assert is_same == (not mask[channel]), (task, channel)


# Training.


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed within an epoch, after a checkpoint: the same rows, tests and choices."""
    monkeypatch.setattr(vision_training, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    original, calls = vision_training.Trainer._validate, []

    def validate(self: Any, *args: Any) -> None:
        calls.append(0)
        if len(calls) == 6:  # in the second epoch of the third run
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(vision_training.Trainer, "_validate", validate)
    argv = ["--out", str(tmp_path / "run"), "--resume", "--methods", "io"]
    with pytest.raises(KeyboardInterrupt):
        run(TINY, argv)
    run(TINY, argv)
    names = sorted(path.name for path in (tmp_path / "run" / "runs").glob("*.json"))
    assert len(names) == 8
    for name in names:
        ours, theirs = (read_run(f / "runs" / name) for f in (tmp_path / "run", whole))
        assert ours.test == theirs.test
        assert ours.best_epoch == theirs.best_epoch
        for field in ("train_loss", "validation_loss", "validation", "covered"):
            assert getattr(ours.history, field) == getattr(theirs.history, field)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert (
        len(
            {tuple(row[k] for k in ("method", "rate", "seed", "epoch")) for row in rows}
        )
        == 16
    )


@pytest.mark.slow
def test_single_tasks_train_one_head(whole: Path):
    """The other heads of a single-task run keep their initial outputs."""
    runs = [read_run(path) for path in (whole / "runs").glob("single_*.json")]
    assert {each.only for each in runs} == {"segmentation", "depth", "normals"}
    assert all(len(each.history.train_loss[0]) == 1 for each in runs)


# The report.


def made_run(method: str, rate: float, seed: int, losses: list[float], test: float):
    history = History(validation_loss=[[loss] for loss in losses])
    return Run(method, method, "", rate, seed, history, 1, {"error": test})


def test_validation_chooses_the_rate():
    """By the lowest validation loss, mean over seeds; not by the test, nor with NaN."""
    runs = [
        made_run("sum_tasks", 0.1, 0, [3.0, 1.0], 0.9),
        made_run("sum_tasks", 0.1, 1, [3.0, 2.0], 0.8),
        made_run("sum_tasks", 1.0, 0, [0.5, 4.0], 0.1),
        made_run("sum_tasks", 1.0, 1, [4.0, float("nan")], 0.1),
    ]
    assert choose(by_rate(runs)["sum_tasks"]) == 0.1
    (row,) = make_rows(runs, ["a"], [ERROR]).values()
    assert row.scores == {"error": [0.9, 0.8]}


@pytest.mark.slow
def test_files_of_a_run(whole: Path):
    report = (whole / "report.md").read_text()
    for text in ("rendered rooms", "29.48±0.30", "Δm", "Summed loss", "IO", "PCGrad"):
        assert text in report
    results = json.loads((whole / "results.json").read_text())
    assert results["data"].startswith("rendered rooms")
    assert list(results["rows"]) == ["single", "sum_tasks", "io", "pcgrad"]
    for name in ("learning_rates", "training", "predictions_io"):
        assert matplotlib.image.imread(whole / f"{name}.png").ndim == 3
    assert not list(whole.rglob("*.partial*"))
    assert all(each["temporary_bytes"] > 0 for each in results["runs"])


# The command.


def test_the_summed_loss_is_always_a_row():
    settings, _, _ = parse(TINY, ["--methods", "io", "mgda"])
    assert settings.methods == ("sum_tasks", "io", "mgda")


def test_options():
    settings, out, start = parse(
        TINY, ["--full", "--seeds", "5", "--learning-rates", "1", "0.1", "--resume"]
    )
    assert settings == Settings(METHODS, 500, 5, 4, (0.1, 1.0), full=True)
    assert out == Path("results/nyuv2")
    assert start.resume
    with pytest.raises(UsageError, match="--methods must name"):
        parse(TINY, ["--methods", "none"])


def test_a_batch_larger_than_the_split_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="--batch-size must be at most 8"):
        run(TINY, ["--batch-size", "9", "--out", str(tmp_path / "x")])


@pytest.mark.parametrize("name", NAMES)
def test_experiments_are_whole(name: str, capsys: pytest.CaptureFixture[str]):
    """Registered; help; methods and the paper's rows exist; a release is looked for."""
    assert name in COMMANDS
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert "sum_tasks" in capsys.readouterr().out
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    known = method_names(experiment.num_tasks, stacked=experiment.stacked)
    settings, _, _ = parse(experiment, ["--data-dir", "nowhere"])
    for each in (experiment.quick, experiment.full):
        assert set(each.methods) <= set(known)
        assert each.methods[0] == "sum_tasks"
    assert set(experiment.paper(settings)) <= set(known)
    with pytest.raises(FileNotFoundError):
        experiment.load(settings)


def test_a_trial_on_few_images(tmp_path: Path):
    """The option reaches every split, and the report says so."""
    options = ["--num-images", "2", "--batch-size", "2", "--seeds", "1"]
    out = tmp_path / "few"
    run(TINY, [*options, "--methods", "sum_tasks", "--out", str(out)])
    assert "at most 2 of each split" in (out / "report.md").read_text()
    lines = (out / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2  # rates, epochs
    assert (out / "predictions_sum_tasks.png").exists()
    data = load(None).first(2)
    assert [len(part) for part in data[:3]] == [2, 2, 2]
