"""The concave front: what is best, what sums reach, and the command."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import ConvexHull

import mtlopt
from experiments.fronts import concave, problem, training


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_the_front_is_what_is_best(num_tasks, monkeypatch):
    """The same place between the targets for all inputs is on it; nothing is below."""
    monkeypatch.setattr(
        problem, "network", lambda places, x: problem.common(x) + places
    )
    losses, x = problem.make_losses(num_tasks), problem.draw(0, 16)
    shares = problem.preferences(num_tasks, 12)
    for share, expected in zip(shares, problem.front(num_tasks, 12), strict=True):
        found = losses(jnp.asarray(share @ problem.corners(num_tasks)), x)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    front = problem.front(num_tasks, 400)
    rng = np.random.default_rng(0)
    for size in (0.1, 0.3, 1.0):
        places = rng.normal(size=(16, 2)) * size + rng.normal(size=2) * 0.5
        found = np.asarray(losses(jnp.asarray(places), x))
        assert np.all(np.any(found > front - 1e-6, axis=1))


@pytest.mark.slow
def test_the_middle_is_off_the_convex_hull():
    """Weighted sums have their minima at the vertices of the hull of the front."""
    curve = problem.front(2, 4001)
    below = np.concatenate([curve, [[1, 1]]])  # the hull's other side
    vertices = [v for v in ConvexHull(below).vertices if v < len(curve)]
    places = problem.place(curve[vertices])
    ends = np.minimum(places, 1 - places)
    np.testing.assert_allclose(np.max(ends), problem.supported_end(), atol=1e-3)
    share = np.linspace(0, 1, 11)
    np.testing.assert_allclose(
        problem.place(problem.front(2, 11)), 1 - share, atol=1e-6
    )


def test_grids_of_preferences():
    """They sum to one, are all different, and three tasks get at least as many."""
    for num_tasks, points in ((2, 32), (3, 32), (3, 36), (3, 37)):
        grid = problem.preferences(num_tasks, points)
        assert len(np.unique(grid.round(9), axis=0)) == len(grid) >= points
        np.testing.assert_allclose(grid.sum(axis=1), 1)
    assert len(problem.preferences(3, 36)) == 36


def test_verdicts():
    """They follow the losses and the times; a short run says nothing."""
    settings = concave.Settings()
    ends = np.tile([[0.0, 0.98], [0.98, 0.0]], (16, 1))
    shares = problem.preferences(2, 32)
    ray = 0.5 / np.maximum(shares, 1e-3)  # exactly p L = 1 / 2, not near the front
    made = {"fixed": ends, "stch": problem.front(2, 32), "epo": ray}
    two = [concave.Outcome(name, losses[None], 1.0) for name, losses in made.items()]
    times = concave.Times((1.0, 8.0), (3.0, 4.0), (4.0, 20.0), 1e6)
    said = [verdict.holds for verdict in concave.verdicts(two, times, settings)]
    assert said == [True, False, True, False, True, False]
    assert times.ratios == (8.0, 3.0, 5.0)
    short = concave.Settings(steps=10)
    assert {v.holds for v in concave.verdicts(two, times, short)} == {None}


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
    """Few steps: tables, losses and the picture; no process of its own is timed."""
    monkeypatch.setattr(training, "seconds_of_process", lambda *_: 1.0)
    options = ["--methods", "stch", "--three", "pbi", "--preferences", "3"]
    options += ["--steps", "2", "--batch", "8", "--seeds", "1", "--out", str(tmp_path)]
    concave.main(options)
    report = (tmp_path / "report.md").read_text()
    assert report.count("| Fixed weights") == 2
    assert "cannot be seen at this size" in report
    results = json.loads((tmp_path / "results.json").read_text())
    assert np.shape(results["losses"]["two"]["stch"]) == (1, 3, 2)
    assert np.shape(results["losses"]["three"]["pbi"]) == (1, 3, 3)
    assert (tmp_path / "fronts.png").stat().st_size > 10_000
    assert mtlopt.METHODS["mgda"].title not in report
