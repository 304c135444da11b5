"""The vision experiments: data, problems, methods, training, the command."""

import dataclasses
import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx

import mtlopt
from experiments.__main__ import NAMES as COMMANDS
from experiments.__main__ import main
from experiments.aligned_mtl import cityscapes3, seven_scenes
from experiments.data.rendered import load_rooms
from experiments.data.rendered_samples import (
    rendered_samples,
    room_labels,
)
from experiments.data.samples import Sample, Samples, make_sample
from experiments.data.seven_scenes import SCENES
from experiments.lab import loop
from experiments.lab.errors import UsageError
from experiments.lab.tables import select
from experiments.lab.vision import experiment, training
from experiments.lab.vision.experiment import (
    Experiment,
    Settings,
    load_problem,
    read_settings,
    run,
)
from experiments.lab.vision.methods import (
    Method,
    make_methods,
    norm_widths,
)
from experiments.lab.vision.problem import VisionProblem
from experiments.lab.vision.report import Paper, choose
from experiments.mtl_io import cityscapes7, nyuv2
from experiments.mtl_io.attributes import ERROR, F1, attribute_tasks
from mtlopt.models.conv_norm import ConvNorm
from mtlopt.models.layers import Conv
from mtlopt.models.resnet import _VARIANTS, ResidualBlock
from mtlopt.models.shared_encoder import SharedEncoder
from mtlopt.models.stack_heads import stack_heads

SIZE = (6, 8)
WIDTH = 6  # of the encoder; with a sharing ratio of 0.8 each task has five of it
NAMES = ("mtl_io.nyuv2", "mtl_io.cityscapes7", "mtl_io.celeba_groups")
NAMES += ("aligned_mtl.cityscapes3", "aligned_mtl.celeba", "aligned_mtl.seven_scenes")
METHODS = ("sum_tasks", "io", "pcgrad", "single")
# Of the runs: two steps an epoch, two epochs, the half of them with moving masks.
OPTIONS = {"steps_per_epoch": 2, "roaming_steps": 2, "alpha": 1.5}


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


class TinyAttributes(SharedEncoder):
    """The same encoder, its mean over pixels, and three alike heads."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.encoder = TinyEncoder(rngs=rngs)
        heads = {task: nnx.Linear(WIDTH, 1, rngs=rngs) for task in "abc"}
        self.heads = nnx.Dict(heads)

    def encode(self, x: jax.Array) -> jax.Array:
        return jnp.mean(self.encoder(x), axis=(1, 2))


def load_answers(settings: Any) -> dict[str, Samples]:
    del settings
    rng = np.random.default_rng(0)
    images, answers = rng.uniform(size=[8, *SIZE, 3]), rng.integers(0, 2, [8, 3])

    def read(place: int) -> Sample:
        labels = dict(zip("abc", answers[place], strict=True))
        return make_sample(images[place], {t: np.array(y) for t, y in labels.items()})

    names = [str(place) for place in range(8)]
    parts = ("train", "validation", "test")
    return {part: Samples(names, read, "answers") for part in parts}


def build_answers(settings: Any, names: Any, key: jax.Array) -> Any:
    del names
    model = TinyAttributes(rngs=nnx.Rngs(key))
    return stack_heads(model) if settings.batch_size == 4 else model


def load(settings: Any) -> dict[str, Samples]:
    del settings
    return rendered_samples(load_rooms(8, 3, 3, size=SIZE), room_labels)


TINY = Experiment(
    name="nyuv2",
    description="",
    quick=Settings(methods=METHODS, epochs=2, batch_size=4),
    full={"epochs": 500},
    load=load,
    tasks=lambda _: nyuv2.TASKS,
    build=lambda settings, names, key: Tiny(rngs=nnx.Rngs(key)),
    num_tasks=3,
    roams=0.5,
    paper=lambda _: Paper("Table 1", {"io": {"mean_iou": "29.48±0.30"}}),
)


ATTRIBUTES = dataclasses.replace(
    TINY,
    load=load_answers,
    tasks=functools.partial(attribute_tasks, shown=(ERROR,), outputs=1),
    build=build_answers,
)


@pytest.fixture(scope="module")
def loaded() -> tuple[VisionProblem, str]:
    return load_problem(TINY, TINY.quick)


@pytest.fixture(scope="module")
def problem(loaded: tuple[VisionProblem, str]) -> VisionProblem:
    return loaded[0]


@pytest.fixture(scope="module")
def methods(problem: VisionProblem) -> dict[str, Method]:
    """Those of all tests and runs, whose steps are compiled once."""
    names = (*METHODS, "roaming", "uncertainty")
    return make_methods(problem, names, **OPTIONS)


def step(method: Method, state: Any, batch: Any, rate: float, members: Any) -> Any:
    state = jax.device_put(state, may_alias=False)  # the program donates it
    return method.program(state, batch, jnp.float32(rate), jnp.array(members))


@pytest.fixture(scope="module")
def run_tiny(loaded: Any, methods: dict[str, Method]) -> Callable[[list[str]], None]:
    """Runs the command with the compiled steps of the tests."""

    def made(problem: Any, names: Any, **options: Any) -> dict[str, Method]:
        assert problem is loaded[0]
        assert options == OPTIONS
        return {name: methods[name] for name in names}

    def run_shared(argv: list[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "load_problem", lambda *_: loaded)
            patch.setattr(experiment, "make_methods", made)
            run(TINY, argv)

    return run_shared


@pytest.fixture(scope="module")
def whole(run_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_tiny(["--out", str(out)])
    return out


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv", keep_default_na=False)


# Problems.


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batches(problem: VisionProblem, methods: Any):
    """A split in one batch and in padded ones: the same losses and metrics."""
    method = methods["sum_tasks"]
    state, test = method.start(0), problem.splits["test"]
    found = [
        training.make_evaluate(problem, size)(method, state, test) for size in (3, 2)
    ]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    for name, value in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], value, rtol=1e-3, err_msg=name)


def test_scores_of_right_answers():
    """Perfect outputs have perfect metrics, for every kind of tasks."""

    def scores_of(tasks: Any, *args: Any) -> Any:
        return tasks.scores([jax.jit(tasks.count)(*args)])

    rng = np.random.default_rng(0)
    yes = {name: rng.integers(0, 2, 20) for name in "ab"}
    tasks = attribute_tasks("ab", (ERROR, F1), outputs=1)
    logits = {name: 2.0 * label[:, None] - 1 for name, label in yes.items()}
    scores = scores_of(tasks, logits, yes)
    assert scores["error"] == scores["error_a"] == 0
    assert scores["f1"] == scores["accuracy"] == 1
    two = attribute_tasks("ab", (ERROR,), outputs=2)
    pairs = {name: np.concatenate([-x, x], -1) for name, x in logits.items()}
    assert scores_of(two, pairs, yes)["error"] == 0

    names = cityscapes7.CATEGORIES
    seg = rng.integers(0, len(names), [2, 4, 4])
    one_hot = {name: np.where(seg == k, 1, 0) for k, name in enumerate(names)}
    maps = {name: 1.0 * label[..., None] for name, label in one_hot.items()}
    categories = cityscapes7.TASKS
    assert scores_of(categories, maps, one_hot)["mean_iou"] == 1

    labels = {"segmentation": seg, "instances": rng.normal(size=[2, 4, 4, 2])}
    labels["disparity"] = rng.normal(size=[2, 4, 4, 1])
    outputs = {task: labels[task] / 10 for task in ("instances", "disparity")}
    outputs["segmentation"] = np.eye(len(cityscapes3.CLASSES))[seg]
    found = scores_of(cityscapes3.TASKS, outputs, labels)
    np.testing.assert_allclose(
        [found["mean_iou"], found["offset"], found["disparity"]], [1, 0, 0], atol=1e-6
    )

    pose = {"translation": np.ones([3, 3]), "rotation": np.eye(4)[:3]}
    pose["translation"][2] = pose["rotation"][2] = np.nan
    moved = {"translation": np.zeros([3, 3]), "rotation": -2 * np.eye(4)[:3]}
    found = scores_of(seven_scenes.TASKS, moved, pose)
    np.testing.assert_allclose(found["translation"], np.sqrt(3))
    assert found["rotation"] == 0


# Methods.


@pytest.mark.slow
def test_absent_labels_move_no_head(problem: VisionProblem, methods: Any):
    """With no depth in a batch its head stays, in a chain and in turns."""
    batch = problem.splits["train"].batch(np.arange(4))
    batch["labels"]["depth"] = np.full_like(batch["labels"]["depth"], np.nan)
    batch["labels"]["segmentation"][:2] = -1
    for name in ("sum_tasks", "io"):
        state = methods[name].start(0)
        after, losses, present = step(methods[name], state, batch, 0.1, [True] * 3)
        moved = {
            task: any(
                jax.tree.leaves(
                    jax.tree.map(
                        lambda a, b: bool(np.any(a != b)),
                        state.run.params["heads"][task],
                        after.run.params["heads"][task],
                    )
                )
            )
            for task in problem.tasks
        }
        assert moved == {"segmentation": True, "depth": False, "normals": True}
        assert all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.run.params)
        )
        assert np.isfinite(losses).all()
        assert present.tolist() == [True, False, True]


@pytest.mark.slow
def test_statistics_move_once_a_forward_pass(problem: VisionProblem, methods: Any):
    """The encoder's running mean is 0.9 of the old one, in each turn of IO anew.

    A head's moves in its own turn only, and not without labels of its task.
    """
    batch, means = problem.splits["train"].batch(np.arange(4)), []
    for name, turns in (("sum_tasks", 1), ("io", 3)):
        state = methods[name].start(0)
        after, *_ = step(methods[name], state, batch, 0.0, [True] * 3)
        moved = after.run.state["encoder"]["layer"]["norm"]["mean"]
        means.append((moved / (1 - 0.9**turns), after.run.state["heads"]["depth"]))
        after, *_ = step(methods[name], state, batch, 0.0, [True, False, True])
        for leaf in jax.tree.leaves(after.run.state["heads"]["depth"]["norm"]):
            assert leaf in (0, 1)
    for left, right in zip(*map(jax.tree.leaves, means), strict=True):
        assert np.all(left != 0)
        np.testing.assert_allclose(left, right, rtol=1e-5)


@pytest.mark.slow
def test_uncertainty_is_told_the_kind_of_each_loss(problem: Any, methods: Any):
    """Factor 1 for a cross-entropy, 1/2 for an error."""
    start = methods["uncertainty"].start
    weights = mtlopt.task_weights(start(0).run.opt_state)
    factors = dict(zip(problem.tasks, weights.tolist(), strict=True))
    assert factors == {"segmentation": 1.0, "depth": 0.5, "normals": 0.5}


@pytest.mark.slow
def test_roaming_masks_channels(problem: VisionProblem, methods: dict[str, Method]):
    """Each task trains and predicts by its own channels, and statistics of its own."""
    method = methods["roaming"]
    state = method.start(0)
    params, _ = problem.init(0)
    assert norm_widths(params["encoder"]) == {"layer/norm": WIDTH}
    batch = problem.splits["train"].batch(np.arange(4))
    after, losses, _ = step(method, state, batch, 0.01, [True] * 3)
    assert np.isfinite(losses).all()
    moved = after.run.state["encoder"]["layer"]["norm"]["mean"]
    assert np.all(np.any(moved != 0, axis=1))
    assert moved.shape == (3, WIDTH)
    images = problem.splits["test"].batch(np.arange(3))["image"]
    outputs = method.predict(after, images)
    assert {task: out.shape for task, out in outputs.items()} == {
        "segmentation": (3, *SIZE, 13),
        "depth": (3, *SIZE, 1),
        "normals": (3, *SIZE, 3),
    }
    masks = np.asarray(after.more.masks["layer/norm"])
    assert np.all(np.sum(masks, axis=1) == WIDTH - 1)
    for channel in range(WIDTH):
        moved = jax.tree.map(jnp.copy, after.run.params)
        conv = moved["encoder"]["layer"]["conv"]
        conv["kernel"] = conv["kernel"].at[..., channel].add(1.0)
        run_there = after.run._replace(params=moved)
        there = method.predict(after._replace(run=run_there), images)
        for task, mask in zip(problem.tasks, masks, strict=True):
            is_same = np.array_equal(outputs[task], there[task])
            assert is_same == (not mask[channel]), (task, channel)


@pytest.mark.slow
def test_roaming_of_stacked_heads_is_that_of_named_ones():
    """Losses of a step, and outputs after it, with the same parameters and masks."""
    problems = [
        load_problem(
            dataclasses.replace(ATTRIBUTES, stacked=stacked),
            Settings(methods=("roaming",), batch_size=4 if stacked else 5),
        )[0]
        for stacked in (False, True)
    ]
    options = {**OPTIONS, "roaming_steps": 1}
    named, stacked = (
        make_methods(problem, ["roaming"], **options)["roaming"] for problem in problems
    )
    state = named.start(0)
    heads = [state.run.params["heads"][task] for task in problems[0].tasks]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *heads)
    leaves = jax.tree.leaves((state.run.params["encoder"], together))
    start = stacked.start(0)
    params = jax.tree.unflatten(jax.tree.structure(start.run.params), leaves)
    start = start._replace(run=start.run._replace(params=params))
    batch = problems[0].splits["train"].batch(np.arange(4))
    batch["labels"]["b"][:] = -1
    members = jnp.ones(3, bool)
    outputs = []
    for method, before in ((named, state), (stacked, start)):
        after, losses, present = jax.jit(method.step)(before, batch, 0.01, members)
        assert present.tolist() == [True, False, True]
        outputs.append([losses, *method.predict(after, batch["image"]).values()])
    for left, right in zip(*outputs, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_the_control_calls_the_step_of_the_sum_again(problem: VisionProblem):
    """Three times on every batch, each from the state of the one before."""
    own = make_methods(problem, ["sum_3"], **OPTIONS)["sum_3"]
    calls: list[int] = []

    class Counted:
        operations = 5.0

        def __call__(self, state: int, *_: Any) -> Any:
            calls.append(state)
            return state + 1, np.ones(3), np.ones(3, bool)

    own.start, own.program = lambda _: np.array(0), Counted()
    costs = training.measure_costs(problem, {"sum_3": own}, 4)
    assert costs["operations"] == {"sum_3": 15.0}
    assert calls == list(range(3 * 6))  # once to warm up, and in five rounds


def test_alpha_of_gradnorm_is_that_of_the_experiment(problem, monkeypatch):
    """The published ones are 0.2 for forty attributes, and 1.5."""
    told: list[Any] = []

    def make(*_: Any, **options: Any) -> Any:
        told.append(options["alpha"])
        return optax.identity()

    known = {name: mtlopt.METHODS[name] for name in ("sum_tasks", "uncertainty")}
    known["gradnorm"] = SimpleNamespace(title="GradNorm", make=make)
    monkeypatch.setattr(mtlopt, "METHODS", known)
    options = {**OPTIONS, "alpha": 0.7}
    make_methods(problem, ["gradnorm"], **options)["gradnorm"]._make(0.1)
    assert told == [0.7]
    modules = [importlib.import_module(f"experiments.{name}") for name in NAMES]
    alphas = [module.EXPERIMENT.alpha for module in modules]
    assert alphas == [1.5, 1.5, 0.2, 1.5, 1.5, 1.5]


def test_roaming_is_refused_where_a_shortcut_passes_by_its_masks():
    """In a residual block the identity adds what the mask of its last layer took."""
    rng = np.random.default_rng(0)
    block = ResidualBlock(4, 4, 1, 1, False, _VARIANTS["keras"], rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.uniform(1, 2, [1, 3, 3, 4]))
    norm = block.layer2.norm
    norm.scale[...], norm.bias[...] = jnp.zeros(4), jnp.zeros(4)
    np.testing.assert_array_equal(block(x), x)  # all masked, and all there
    for name in ("cityscapes3", "seven_scenes", "celeba"):
        own = importlib.import_module(f"experiments.aligned_mtl.{name}").EXPERIMENT
        with pytest.raises(UsageError, match="got 'roaming'"):
            read_settings(own, ["--methods", "roaming"])


# Training.


def test_a_task_without_labels_is_left_out_of_its_training_loss(problem: Any):
    """In the batch in which it has none its loss of 0 is no loss; NaN stays visible."""
    losses = iter(2 * [[1.0, 2.0, 5.0]] + 2 * [[3.0, 0.0, np.nan]])
    present = iter(2 * [[True, True, True]] + 2 * [[True, False, True]])

    def program(state: Any, *_: Any) -> Any:
        return state, np.array(next(losses)), np.array(next(present))

    program.compile = lambda *_: None
    run = mtlopt.Run({}, (SimpleNamespace(covered=1.0, shortest=1.0),), {})
    start = SimpleNamespace(run=run)
    method = SimpleNamespace(program=program, searches=False, repeats=2)
    made = training._training(
        problem,
        4,
        method,
        {"method": "io", "only": "", "rate": 0.1, "seed": 0},
        lambda *_: (np.ones(3), {}),
        Path(),
    )
    state = training.State(start, start, np.array(0.0), np.array(0))
    _, values = made.epoch(state, 0, lambda *_: None)
    np.testing.assert_allclose(values["train_loss"], [[2.0, 2.0, np.nan]])
    assert next(losses, None) is None  # two steps on each of two batches


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(
    whole: Path, run_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed within an epoch, after a checkpoint: the same numbers and choices."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    original, calls = training.host_order, []

    def order(*args: Any) -> np.ndarray:
        calls.append(args)
        if len(calls) == 6:  # the second epoch of the third run
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(training, "host_order", order)
    argv = ["--out", str(tmp_path / "run"), "--resume", "--methods", "io"]
    with pytest.raises(KeyboardInterrupt):
        run_tiny(argv)
    run_tiny(argv)
    assert len(calls) == 6 + 2 * 8 - 5  # two methods, two rates, two seeds
    found, expected = (
        table[~table["name"].isin(["seconds", "compile_seconds", "temporary_bytes"])]
        for table in (read(tmp_path / "run"), read(whole))
    )
    kept = expected[expected["method"].isin(["sum_tasks", "io"])]
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), kept.reset_index(drop=True)
    )


@pytest.mark.slow
def test_single_tasks_train_one_head(whole: Path):
    """Losses and tests of a single task are its own."""
    table = select(read(whole), method="single")
    assert set(table["only"]) == {"segmentation", "depth", "normals"}
    losses = select(table, name="train_loss")
    assert (losses["part"] == losses["only"]).all()
    assert len(losses) == 3 * 2 * 2 * 2  # tasks, rates, seeds, epochs
    scores = json.loads((whole / "results.json").read_text())["scores"]["single"]
    chosen = select(choose(table), only="depth", name="test_absolute")
    assert scores["absolute"] == chosen["value"].tolist()


# The report.


@pytest.mark.slow
def test_best_epoch_is_the_last_of_the_lowest_validation_loss(whole: Path):
    """Mean over the tasks."""
    table = read(whole)
    keys = ["method", "only", "rate", "seed"]
    losses = select(table, name="validation_loss")
    means = losses.groupby([*keys, "epoch"])["value"].mean().unstack()
    for name, expected in (
        ("best_loss", means.min(axis=1)),
        ("best_epoch", means.iloc[:, ::-1].idxmin(axis=1)),
    ):
        found = select(table, name=name).set_index(keys)["value"].sort_index()
        np.testing.assert_allclose(found, expected.sort_index(), rtol=1e-12)


@pytest.mark.slow
def test_files_of_a_run(whole: Path):
    report = (whole / "report.md").read_text()
    for text in ("rendered rooms", "29.48±0.30", "Δm", "Summed loss", "IO", "PCGrad"):
        assert text in report
    results = json.loads((whole / "results.json").read_text())
    assert results["data"].startswith("rendered rooms")
    assert list(results["scores"]) == ["single", "sum_tasks", "io", "pcgrad"]
    assert set(results["costs"]["seconds"]) == {"sum_tasks", "io", "pcgrad"}
    assert all(value > 0 for value in results["costs"]["operations"].values())
    for name in ("learning_rates", "training", "predictions_io"):
        assert matplotlib.image.imread(whole / f"{name}.png").ndim == 3
    assert not list(whole.rglob("*.partial*"))
    assert (select(read(whole), name="temporary_bytes")["value"] > 0).all()


# The command.


def test_options():
    """The summed loss is always among the methods; --full changes the sizes too."""
    settings = read_settings(TINY, ["--methods", "io,mgda"])
    assert settings.methods == ("sum_tasks", "io", "mgda")
    options = ["--full", "--seeds", "5", "--learning-rates", "1", "0.1"]
    settings = read_settings(TINY, options)
    assert (settings.epochs, settings.seeds, settings.batch_size) == (500, 5, 4)
    assert settings.learning_rates == (0.1, 1.0)
    assert not settings.small
    assert settings.out == "results/nyuv2"
    with pytest.raises(UsageError, match="--methods must name"):
        read_settings(TINY, ["--methods", "none"])


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
    own = importlib.import_module(f"experiments.{name}").EXPERIMENT
    known = own.methods
    settings = read_settings(own, ["--data-dir", "nowhere"])
    for methods in (settings.methods, own.full.get("methods", ["sum_tasks"])):
        assert set(methods) <= set(known)
        assert methods[0] == "sum_tasks"
    paper = own.paper(settings)
    assert {*paper.scores, *paper.distances} <= set(known)
    with pytest.raises(FileNotFoundError):
        own.load(settings)


def test_scenes_are_those_of_the_release():
    scenes = get_type_hints(seven_scenes.Settings)["scene"].__args__
    assert scenes == (*SCENES, "all")


@pytest.mark.slow
def test_a_trial_on_few_images(tmp_path: Path):
    """The option reaches every split, and the report says so."""
    options = ["--num-images", "2", "--batch-size", "2", "--seeds", "1"]
    out = tmp_path / "few"
    run(TINY, [*options, "--methods", "sum_tasks", "--out", str(out)])
    report = (out / "report.md").read_text()
    assert "at most 2 of each split" in report
    assert "(edge)" in report
    assert not report.rstrip().endswith("]")  # no claims, no section
    assert len(select(read(out), name="seconds")) == 2 * 2  # rates, epochs
    assert (out / "predictions_sum_tasks.png").exists()
    problem, _ = load_problem(TINY, read_settings(TINY, options))
    assert [len(split) for split in problem.splits.values()] == [2, 2, 2]
