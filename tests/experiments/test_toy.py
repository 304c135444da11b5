"""The toy landscapes: published formulas, their Pareto sets, and the command."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

import mtlopt
from experiments.aligned_mtl import toy
from experiments.aligned_mtl.landscapes import FLOOR, LANDSCAPES
from experiments.lab.errors import UsageError

pytestmark = pytest.mark.slow

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
        values, grads = jax.jit(jax.vmap(jax.value_and_grad(loss)))(points)
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
        np.asarray(jax.jit(jax.vmap(jax.grad(loss)))(points))
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


def test_follow():
    """The first step that is near, the nearest and the last; NaN is never near."""
    losses = fake(150, -200, 250, np.nan)
    steps, nearest, end, at, params, distance = toy.follow(
        LANDSCAPES["yu"], losses, losses
    )
    assert steps == (2, 1, None, None)
    assert nearest == pytest.approx((150, -200, 250, 500))
    assert end == pytest.approx((150, -200, 250, np.nan), nan_ok=True)
    assert at.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(params, losses)
    np.testing.assert_allclose(distance[:, -1], (150, -200, 250, np.nan))


def test_arrivals_are_among_the_points():
    """Of many steps some are kept, and those at which a run comes near."""
    losses = np.tile(LANDSCAPES["yu"].front[0] + 500.0, (2, 100_001, 1))
    losses[0, 77_777:] -= 400
    steps, *_, at, _, distance = toy.follow(LANDSCAPES["yu"], losses, losses)
    assert steps == (77_777, None)
    assert len(at) < 1_000
    assert distance[0, at == 77_777] == pytest.approx(100)
    assert at[-1] == 100_000


STEPS = {
    "sum_tasks": (None, 10),
    "mgda": (7_000, 9_000),
    "pcgrad": (50_000, 20),
    "cagrad": (1, 1),
    "aligned_mtl": (4_000, 30),
}


@pytest.mark.parametrize(
    ("changes", "most", "holds"),
    [
        ({}, 500_000, [True, True, True]),
        ({"pcgrad": (39_999, 1)}, 500_000, [False, True, True]),
        ({"pcgrad": (None, None)}, 50_000, [True, True, True]),
        ({"aligned_mtl": (5_001, 1)}, 500_000, [False, True, True]),
        ({"mgda": (3_000, 1)}, 500_000, [True, True, False]),
        ({"sum_tasks": (1, None)}, 500_000, [True, False, True]),
        ({"aligned_mtl": (None, 1)}, 500_000, [False, True, False]),
        # Too short to say.
        (dict.fromkeys(STEPS, (None, None)), 4_000, [None, None, None]),
    ],
)
def test_verdicts(changes, most, holds):
    found = toy.verdicts({**STEPS, **changes}, most)
    assert [each.holds for each in found] == holds


@pytest.fixture(scope="module")
def outcomes():
    """Those of `aligned_mtl` and of the sum after 6,500 steps, on both landscapes."""
    settings = toy.Settings(methods=("aligned_mtl", "sum_tasks"), steps=6_500)
    found = {}
    for name in NAMES:
        rates = (1e-3,) if name == "yu" else (1e-2,)
        own = dataclasses.replace(settings, landscape=name, learning_rates=rates)
        found[name] = {each.method: each for each in toy.run_methods(own)}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_aligned_mtl_reaches_the_front(outcomes, name):
    """From every start, from the paper's within 5,000 steps; the params confirm it."""
    outcome, landscape = outcomes[name]["aligned_mtl"], LANDSCAPES[name]
    np.testing.assert_allclose(outcome.params[:, 0], landscape.starts, rtol=1e-6)
    assert outcome.steps[0] <= 5_000
    for path, step in zip(outcome.params, outcome.steps, strict=True):
        assert step is not None
        until = path[outcome.at <= step].astype(float)
        losses = np.stack(PUBLISHED[name](*until.T), axis=-1)
        distance = landscape.distance(losses)
        assert np.all(distance[:-1] > landscape.tolerance - 1e-3)
        assert distance[-1] <= landscape.tolerance + 1e-3


def test_sum_of_losses_fails_where_the_valleys_are_apart(outcomes):
    """On the landscape of Yu et al. it stays in the valley that it falls into."""
    outcome = outcomes["yu"]["sum_tasks"]
    assert outcome.steps[:4] == (None,) * 4
    assert outcome.steps[4] is not None


def test_scale_leaves_the_distance_alone():
    """Recorded losses are without the scale, and steps follow the scaled sum."""
    settings = toy.Settings(
        methods=("sum_tasks",), steps=2, scale=0.1, landscape="cagrad"
    )
    (outcome,) = toy.run_methods(settings)
    landscape = LANDSCAPES["cagrad"]
    losses = np.stack(published_cagrad(*outcome.params.astype(float).T), axis=-1)
    np.testing.assert_allclose(
        outcome.distance.T, landscape.distance(losses), rtol=1e-4, atol=1e-4
    )
    # The first step of Adam is as long as its rate, against the gradient's sign.
    starts = outcome.params[:, 0]
    slopes = [jax.jit(jax.vmap(jax.grad(f)))(starts) for f in landscape.losses]
    moved = outcome.params[:, 1] - outcome.params[:, 0]
    expected = -1e-3 * np.sign(0.1 * slopes[0] + 0.9 * slopes[1])
    np.testing.assert_allclose(moved, expected, rtol=2e-3, atol=1e-6)
    assert (np.sign(0.9 * slopes[0] + 0.1 * slopes[1]) != np.sign(-expected)).any()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run."""
    folder = tmp_path_factory.mktemp("toy") / "out"
    options = ["--methods", ",".join(TINY), "--steps", "20", "--out", str(folder)]
    toy.main([*options, "--learning-rates", "0.1", "0.01"])
    return folder


def test_results(out: Path):
    results = json.loads((out / "results.json").read_text())
    assert results["command"].startswith(
        "python -m experiments aligned_mtl.toy --methods"
    )
    assert results["versions"]["mtlopt"] == mtlopt.__version__
    runs = [(each["method"], each["learning_rate"]) for each in results["runs"]]
    assert runs == [(method, rate) for method in TINY for rate in (0.1, 0.01)]
    for each in results["runs"]:
        assert len(each["steps"]) == len(LANDSCAPES["yu"].starts)


def test_report(out: Path):
    """Without the methods of the paper there is nothing to say on its claims."""
    report = (out / "report.md").read_text()
    assert "`python -m experiments aligned_mtl.toy --methods" in report
    assert "never" in report
    for method in TINY:
        assert report.count(f"| {mtlopt.METHODS[method].title} ") == 2
    assert "Claims" not in report


def test_figure_is_an_image(out: Path):
    assert matplotlib.image.imread(out / "paths.png").std() > 0


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
