"""The papers' settings of the vision experiments: pretraining, crops, falling rates."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx

import mtlopt
from experiments.aligned_mtl import celeba, cityscapes3, seven_scenes
from experiments.data.seven_scenes import SCENES
from experiments.lab.errors import UsageError
from experiments.lab.vision import pretrained
from experiments.lab.vision.experiment import load_problem, read_settings
from experiments.lab.vision.methods import Method
from experiments.lab.vision.pretrained import PretrainedSettings, prepare
from experiments.lab.vision.report import Outcome, Paper
from experiments.lab.vision.training import make_trainings
from mtlopt.models import ResNet
from tests.experiments.test_vision import TINY
from tests.models.test_pretrained import save, tensors_of, torchvision_shapes

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).random((3, 9, 12, 3), np.float32)


def small(key: jax.Array) -> ResNet:
    return ResNet((1, 1, 1), {"a": (2,)}, width=8, rngs=nnx.Rngs(key))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torchvision's layout for the small network of 7-Scenes."""
    shapes = torchvision_shapes((1, 1, 1), (3, 3), 8, 1)
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    return save(path, tensors_of(shapes))


@pytest.mark.slow
def test_pretrained_weights_change_the_start(weights):
    """The command's network has the file's numbers, and sees standardised images."""
    settings = seven_scenes.Settings(methods=("sum_tasks",), pretrained=str(weights))
    names = ("translation", "rotation")
    build = nnx.jit(seven_scenes.build, static_argnums=(0, 1))
    plain = build(seven_scenes.Settings(methods=()), names, KEY)
    network = build(settings, names, KEY)
    stem = tensors_of(torchvision_shapes((1, 1, 1), (3, 3), 8, 1))["conv1.weight"]
    kernel = network.encoder.encoder.stem.conv.kernel[...]
    np.testing.assert_array_equal(kernel, stem.transpose(2, 3, 1, 0))
    assert (kernel != plain.encoder.stem.conv.kernel[...]).any()
    for model in (network, plain):
        model.eval()
    encode = nnx.jit(lambda model, images: model.encode(images))
    z = encode(network, IMAGES)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    standard = ((IMAGES - mean) / std).astype(np.float32)
    expected = nnx.jit(network.encoder.encoder)(standard)
    np.testing.assert_allclose(z, expected, rtol=1e-5)
    assert not np.allclose(z, encode(plain, IMAGES))


def test_pretrained_weights_must_fit(weights):
    settings = PretrainedSettings(methods=(), pretrained=str(weights))
    with pytest.raises(UsageError, match="another depth or width"):
        jax.eval_shape(lambda: cityscapes3.build(settings, ("a",), KEY))
    absent = PretrainedSettings(methods=(), pretrained=str(weights) + "_")
    with pytest.raises(UsageError, match="No such file"):
        jax.eval_shape(lambda: cityscapes3.build(absent, ("a",), KEY))


def test_crops_are_random_in_training_and_in_the_middle_after():
    """Each is a part of its image; the next step has others."""
    settings = PretrainedSettings(methods=())
    network = prepare(nnx.eval_shape(lambda: small(KEY)), settings, KEY, crop=5)
    network.encoder.encoder = lambda x: x
    first, second = (np.asarray(network.encode(IMAGES)) for _ in range(2))
    assert first.shape == (3, 5, 5, 3)
    assert (first != second).any()
    windows = np.lib.stride_tricks.sliding_window_view(IMAGES, (5, 5), axis=(1, 2))
    for image, crop in zip(windows, first, strict=True):
        crop = crop.transpose(2, 0, 1)
        assert (image == crop).all(axis=(2, 3, 4)).sum() == 1
    network.eval()
    np.testing.assert_array_equal(network.encode(IMAGES), IMAGES[:, 2:7, 3:8])


@pytest.mark.slow
def test_the_learning_rate_falls():
    """A factor of zero from the second epoch on stops the parameters."""
    problem, _ = load_problem(TINY, TINY.quick)
    adam = lambda rate: optax.chain(mtlopt.sum_tasks(3), optax.adam(rate))  # noqa: E731
    methods = {"sum_tasks": Method(problem, "Summed loss", adam)}
    (training,) = make_trainings(
        problem, methods, (0.01,), 1, 4, Path(), lambda epoch: float(epoch == 0)
    )
    states = [training.start()]
    for number in range(2):
        state = jax.device_put(states[-1], may_alias=False)
        states.append(training.epoch(state, number, lambda *_: None)[0])
    start, first, second = (
        jax.device_get(state.now.run.params["encoder"]) for state in states
    )
    equal = lambda a, b: all(  # noqa: E731
        jax.tree.leaves(jax.tree.map(np.array_equal, a, b))
    )
    assert not equal(start, first)
    assert equal(first, second)


@pytest.mark.parametrize(
    ("module", "factors"),
    [(celeba, {0: 1, 9: 1, 10: 0.85, 19: 0.85}), (seven_scenes, {39: 1, 119: 0.01})],
)
def test_schedules_are_the_papers(module, factors):
    quick = module.EXPERIMENT.quick
    full = type(quick)(methods=(), sizes="paper")
    for epoch, factor in factors.items():
        assert module.EXPERIMENT.decay(full, epoch) == pytest.approx(factor)
        assert module.EXPERIMENT.decay(quick, epoch) == 1


def test_table_of_all_scenes():
    """The paper's mean and growth rate of its Table 6, and ours of made-up errors."""
    one = {"translation": [2.0, 4.0], "rotation": [10.0, 10.0]}
    other = {"translation": [1.5, 1.5], "rotation": [11.0, 11.0]}
    scores = {scene: {"sum_tasks": one, "pcgrad": other} for scene in SCENES}
    table = seven_scenes.scenes_table(scores)
    rows = [[cell.strip() for cell in row.split("|")] for row in table.splitlines()]
    assert rows[2][-5:-1] == ["3.00", "", "0.75", ""]
    # Of the unrounded mean; Table 4 rounds.
    assert rows[4][-5:-1] == ["1.50", "+50.00", "0.27", "+64.07"]
    assert rows[5][-5:-1] == ["11.00", "-10.00", "11.76", "-23.69"]


def test_accuracies_by_attribute_are_of_the_best_epoch():
    keys = {"only": "", "rate": 1e-3, "method": "mgda", "part": ""}
    rows = []
    for seed, best in enumerate((2, 1)):
        rows.append({"epoch": 2, "name": "best_epoch", "value": best, "seed": seed})
        rows.append({"epoch": 2, "name": "best_loss", "value": 0.1, "seed": seed})
        for epoch in (1, 2):
            error = 0.1 * epoch + 0.02 * seed
            name = "validation_error_hat"
            rows.append({"epoch": epoch, "name": name, "value": error, "seed": seed})
    table = pd.DataFrame([{**keys, **row} for row in rows])
    outcome = Outcome(table, {"mgda": "MGDA"}, (), Paper("", {}), "made up")
    # The mean of 0.2 and 0.12.
    assert "| hat       | 84.00 |" in celeba.accuracy_table(outcome)


def test_all_scenes_are_run_and_joined(tmp_path, monkeypatch, capsys):
    """Every scene has its own folder; --full runs all of them."""
    seen = []

    def fake(experiment: Any, argv: list[str]) -> None:
        settings: Any = read_settings(experiment, argv)
        seen.append((settings.scene, settings.epochs, settings.pretrained))
        scores = {"sum_tasks": {"translation": [1.0], "rotation": [2.0]}}
        Path(settings.out).mkdir(parents=True)
        (Path(settings.out) / "results.json").write_text(json.dumps({"scores": scores}))

    monkeypatch.setattr(pretrained, "run", fake)
    seven_scenes.main(["--full", "--out", str(tmp_path), "--pretrained", "file"])
    assert seen == [(scene, 120, "file") for scene in SCENES]
    assert "| Summed loss | r [°] | " in (tmp_path / "scenes.md").read_text()
    assert capsys.readouterr().out.startswith("Rendered images instead of photographs")


@pytest.mark.parametrize(
    ("errors", "source", "holds"),
    [
        ([1.0, 1.1, 1.2], "7-Scenes", True),
        ([1.5, 1.9, 2.3], "7-Scenes", None),
        ([3.0, 3.1, 3.2], "7-Scenes", False),
        ([1.0, 1.1, 1.2], "rendered rooms", None),
    ],
)
def test_verdicts_of_photographs(errors, source, holds):
    """Against the best of the others; rendered images carry nothing."""
    made = {"mgda_ub": [2.0, 2.1, 2.2], "pcgrad": [1.9, 2.0, 2.1]}
    rows = [
        {"method": method, "seed": seed, "name": f"test_{metric}", "value": value}
        for metric in ("translation", "rotation")
        for method, values in {**made, "aligned_mtl_ub": errors}.items()
        for seed, value in enumerate(values)
    ]
    rows += [{**row, "name": "best_loss"} for row in rows[:9]]
    table = pd.DataFrame(rows).assign(only="", rate=1e-3, epoch=1, part="")
    titles = {name: name for name in (*made, "aligned_mtl_ub")}
    metrics = seven_scenes.TASKS.metrics
    outcome = Outcome(table, titles, metrics, Paper("", {}), source)
    found = seven_scenes.verdicts(outcome)
    assert [each.holds for each in found] == [holds, holds]
