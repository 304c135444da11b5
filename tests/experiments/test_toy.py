"""The toy landscapes: published formulas, their Pareto sets, and the command."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import mtlopt
from experiments.aligned_mtl import toy
from experiments.aligned_mtl.landscapes import FLOOR, LANDSCAPES
from experiments.lab.errors import UsageError

NAMES = list(LANDSCAPES)
TINY = ("sum_tasks", "aligned_mtl_ub")


def published_yu(x1, x2):
    """Yu et al., appendix on figure 1."""
    first = 20 * np.log(np.maximum(np.abs(0.5 * x1 + np.tanh(x2)), 5e-6))
    second = 25 * np.log(np.maximum(np.abs(0.5 * x1 - np.tanh(x2) + 2), 5e-6))
    return first, second


def published_cagrad(x1, x2):
    """The formula in the code of CAGrad, Nash-MTL and Aligned-MTL."""
    first = np.log(np.maximum(np.abs(0.5 * (-x1 - 7) - np.tanh(-x2)), 5e-6)) + 6
    second = np.log(np.maximum(np.abs(0.5 * (-x1 + 3) + np.tanh(-x2) + 2), 5e-6)) + 6
    up, down = np.maximum(np.tanh(x2 / 2), 0), np.maximum(np.tanh(-x2 / 2), 0)
    first_bowl = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    second_bowl = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    return up * first + down * first_bowl, up * second + down * second_bowl


PUBLISHED = {"yu": published_yu, "cagrad": published_cagrad}


def random_points(name: str, num: int) -> np.ndarray:
    left, right, bottom, top = LANDSCAPES[name].window
    rng = np.random.default_rng(0)
    return rng.uniform((left, bottom), (right, top), (num, 2))


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_the_published(name, float64):
    """Losses equal the formula, gradients its central differences."""
    points = random_points(name, 200)
    step = 1e-6
    for task, loss in enumerate(LANDSCAPES[name].losses):
        values, grads = jax.vmap(jax.value_and_grad(loss))(jnp.asarray(points))
        np.testing.assert_allclose(values, PUBLISHED[name](*points.T)[task], rtol=1e-12)
        for axis in range(2):
            shift = step * np.eye(2)[axis]
            ahead, behind = (
                PUBLISHED[name](*(points + sign * shift).T)[task] for sign in (1, -1)
            )
            slope = (ahead - behind) / (2 * step)
            np.testing.assert_allclose(grads[:, axis], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_pareto_set_is_stationary(name, float64):
    """The shortest convex combination of the two gradients is zero at each point."""
    landscape = LANDSCAPES[name]
    points = landscape.pareto_set
    if name == "yu":  # the first point is a kink, where the cut-off starts
        points = np.add(points, [0, 1e-3])
    first, second = (
        np.asarray(jax.vmap(jax.grad(loss))(jnp.asarray(points)))
        for loss in landscape.losses
    )
    gap = first - second
    square = np.maximum(np.sum(gap**2, axis=1), np.finfo(float).tiny)
    weight = np.clip(-np.sum(second * gap, axis=1) / square, 0, 1)
    shortest = np.linalg.norm(second + weight[:, None] * gap, axis=1)
    assert shortest.max() <= 1e-9
    if name == "cagrad":  # the whole front, from one loss alone to the other alone
        np.testing.assert_allclose(weight[[0, -1]], [1, 0], atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_front_is_the_losses_of_the_pareto_set(name, float64):
    landscape = LANDSCAPES[name]
    losses = np.stack(PUBLISHED[name](*landscape.pareto_set.T), axis=-1)
    np.testing.assert_allclose(landscape.front, losses, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(landscape.distance(losses), 0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_lies_beyond_the_front(name):
    """No point anywhere is better in both losses by more than the stated accuracy."""
    landscape = LANDSCAPES[name]
    near = landscape.pareto_set[:, None] + random_points(name, 100) / 100
    points = np.concatenate([random_points(name, 100_000), near.reshape(-1, 2)])
    losses = np.stack(PUBLISHED[name](*points.T), axis=-1)
    assert landscape.distance(losses).min() >= -1e-5


@pytest.mark.parametrize("name", NAMES)
def test_distance_is_the_smallest_over_the_front(name):
    """It equals the definition on a front a hundred times as dense."""
    landscape = LANDSCAPES[name]
    fine = np.linspace(0, len(landscape.front) - 1, 100_001)
    coarse = np.arange(len(landscape.front))
    dense = [np.interp(fine, coarse, values) for values in landscape.front.T]
    front = np.stack(dense, axis=-1)
    losses = np.stack(PUBLISHED[name](*random_points(name, 50).T), axis=-1)
    expected = [np.max(point - front, axis=1).min() for point in losses]
    np.testing.assert_allclose(landscape.distance(losses), expected, atol=1e-3)
    assert np.isnan(landscape.distance(np.array([np.nan, 0.0])))


def test_front_of_yu_is_one_point():
    """Both losses are cut off together from x_2 = atanh(1 - floor) on, not before."""
    (_, x2), _ = LANDSCAPES["yu"].pareto_set
    assert x2 == pytest.approx(math.atanh(1 - FLOOR))
    at, before = (np.array(published_yu(-2.0, x2 - d)) for d in (0.0, 1e-3))
    np.testing.assert_allclose(at, [20 * math.log(FLOOR), 25 * math.log(FLOOR)])
    assert np.all(before > at)


def test_tolerance_of_yu_is_beyond_the_junction():
    """Near implies x_2 >= 1.37."""
    landscape = LANDSCAPES["yu"]
    points = random_points("yu", 1_000_000)
    near = landscape.distance(np.stack(published_yu(*points.T), axis=-1)) <= 200
    assert near.any()
    assert points[near, 1].min() >= 1.37


def fake(*ends: float) -> np.ndarray:
    """Losses `[starts, 3, 2]` that fall from 5 to these distances from the front."""
    front = LANDSCAPES["yu"].front[0]
    return np.stack(
        [np.stack([front + 500, front + (500 + end) / 2, front + end]) for end in ends]
    )


def test_best_of_grid():
    """More starts first, then fewer steps, then the nearest; NaN is never."""
    losses = np.stack([fake(150, 250), fake(150, 160), fake(150, np.nan)])
    landscape, rates = LANDSCAPES["yu"], (1.0, 2.0, 3.0)
    outcome = toy.best_of_grid(landscape, rates, losses, losses, 0.0)
    assert outcome.learning_rate == 2
    assert outcome.steps == (2, 2)
    faster = np.stack([fake(150, 160), fake(-200, 160)])
    assert toy.best_of_grid(landscape, rates, faster, faster, 0.0).steps == (1, 2)
    never = np.stack([fake(300, 400), fake(300, 350), fake(np.nan, np.nan)])
    outcome = toy.best_of_grid(landscape, rates, never, never, 0.0)
    assert outcome.learning_rate == 2
    assert outcome.steps == (None, None)
    assert outcome.end == pytest.approx((300, 350))
    broken = never[2:]
    outcome = toy.best_of_grid(landscape, rates, broken, broken, 0.0)
    assert outcome.steps == (None, None)
    assert np.isnan(outcome.end).all()


@pytest.fixture(scope="module")
def run():
    """Outcomes of `aligned_mtl` and of the sum with 5,000 steps, as by default."""
    settings = toy.Settings(methods=("aligned_mtl", "sum_tasks"))
    return toy.run_methods(settings)[0]


@pytest.mark.parametrize("name", NAMES)
def test_aligned_mtl_reaches_the_front(run, name):
    """From every start, within the 5,000 steps of the paper; the params confirm it."""
    outcome, landscape = run["aligned_mtl"][name], LANDSCAPES[name]
    assert outcome.params.shape == (5, 5_001, 2)
    np.testing.assert_allclose(outcome.params[:, 0], landscape.starts, rtol=1e-6)
    for path, step in zip(outcome.params, outcome.steps, strict=True):
        assert step is not None
        losses = np.stack(PUBLISHED[name](*path[: step + 1].astype(float).T), axis=-1)
        distance = landscape.distance(losses)
        assert np.all(distance[:-1] > landscape.tolerance - 1e-3)
        assert distance[-1] <= landscape.tolerance + 1e-3


def test_sum_of_losses_fails_where_the_valleys_are_apart(run):
    """On the landscape of Yu et al. it stays in the valley that it falls into."""
    outcome = run["sum_tasks"]["yu"]
    assert outcome.steps[:4] == (None,) * 4
    assert outcome.steps[4] is not None


def test_scale_leaves_the_distance_alone():
    """The recorded losses are those without the scale."""
    settings = toy.Settings(
        methods=("sum_tasks",),
        steps=2,
        scale=0.1,
        optimizer="sgd",
        learning_rates=(1e-3,),
    )
    outcomes, _ = toy.run_methods(settings)
    outcome = outcomes["sum_tasks"]["cagrad"]
    expected = published_cagrad(*outcome.params.astype(float).T)
    np.testing.assert_allclose(outcome.losses.T, expected, rtol=1e-4, atol=1e-5)
    loss = lambda x: sum(  # noqa: E731
        scale * f(x)
        for scale, f in zip((0.1, 0.9), LANDSCAPES["cagrad"].losses, strict=True)
    )
    start = jnp.array(LANDSCAPES["cagrad"].starts[0])
    np.testing.assert_allclose(
        outcome.params[0, 1], start - 1e-3 * jax.grad(loss)(start), rtol=1e-6
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run."""
    folder = tmp_path_factory.mktemp("toy") / "out"
    options = ["--methods", ",".join(TINY), "--steps", "20", "--out", str(folder)]
    toy.main(options)
    return folder


def test_results(out: Path):
    results = json.loads((out / "results.json").read_text())
    assert results["command"].startswith(
        "python -m experiments aligned_mtl.toy --methods"
    )
    assert results["settings"]["learning_rates"] == list(toy.LEARNING_RATES)
    assert results["versions"]["mtlopt"] == mtlopt.__version__
    assert tuple(results["methods"]) == TINY
    for entry in results["methods"].values():
        for name in NAMES:
            assert len(entry[name]["steps"]) == len(LANDSCAPES[name].starts)
            assert entry[name]["learning_rate"] in toy.LEARNING_RATES


def test_report(out: Path):
    report = (out / "report.md").read_text()
    assert "`python -m experiments aligned_mtl.toy --methods" in report
    assert "never" in report
    for method in TINY:
        assert report.count(f"| {mtlopt.METHODS[method].title} ") == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_images(out: Path, name: str):
    assert matplotlib.image.imread(out / f"{name}.png").std() > 0


def test_many_methods_make_several_figures(tmp_path: Path):
    """Eleven columns do not fit into one file."""
    still = np.zeros((1, 3, 2))
    outcome = toy.Outcome(0.1, (None,), (1.0,), (1.0,), 0.0, still, still)
    methods = {f"method {i}": outcome for i in range(11)}
    files = toy.draw_paths(tmp_path, "yu", methods, "nothing")
    assert [file.name for file in files] == ["yu_1.png", "yu_2.png"]
    assert all(file.exists() for file in files)


def test_unwritable_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out must be a writable folder"):
        toy.main(["--out", str(tmp_path / "file" / "below")])


@pytest.mark.parametrize("value", ["1", "1.5"])
def test_scale_is_a_share(value: str):
    with pytest.raises(
        UsageError, match=f"--scale must be between 0 and 1, got {value}"
    ):
        toy.main(["--scale", value])
