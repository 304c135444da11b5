"""The quadrants and circle set: the labels of the points, the split, the scaler."""

import numpy as np
import pytest

from experiments.data import quadrants
from experiments.data.quadrants import label_points, load_quadrants
from experiments.data.splits import cut, scaler


@pytest.fixture(scope="module")
def data():
    return load_quadrants()


@pytest.fixture
def unscaled(monkeypatch):
    """Points of the splits stay as they are drawn."""
    monkeypatch.setattr(quadrants, "scaler", lambda train: (0, 1))


def parts(data):
    return (data.train, data.validation, data.test)


@pytest.mark.parametrize(
    ("num", "sizes"), [(10_000, (5600, 1400, 3000)), (63_000, (35_280, 8820, 18_900))]
)
def test_sizes_are_those_of_the_paper(num, sizes):
    assert tuple(map(len, cut(np.arange(num)))) == sizes


@pytest.mark.parametrize("num", [10, 11, 99, 12_345])
def test_sizes_sum_to_the_whole_and_none_is_empty(num):
    order = np.arange(num)
    sizes = [len(part) for part in cut(order)]
    np.testing.assert_array_equal(np.concatenate(cut(order)), order)
    assert min(sizes) >= 1
    np.testing.assert_allclose(np.array(sizes) / num, (0.56, 0.14, 0.3), atol=1 / num)


def test_shapes_dtypes_and_source(data):
    for part, num in zip(parts(data), (5600, 1400, 3000), strict=True):
        assert part.points.shape == (num, 2)
        assert part.points.dtype == np.float32
        for labels in part[1:]:
            assert labels.shape == (num,)
            assert labels.dtype == np.int32
    assert data.source == (
        "points of the square [-2, 2]^2 (5,600 train / 1,400 validation / 3,000 test)"
    )


@pytest.mark.usefixtures("unscaled")
def test_labels_are_those_of_the_points():
    """The angle gives the quadrant, the radius the circle."""
    for part in parts(load_quadrants()):
        x, y = part.points.astype(np.float64).T
        assert np.abs([x, y]).max() <= 2
        quarter_turns = np.floor(np.arctan2(y, x) / (np.pi / 2)).astype(int) % 4
        np.testing.assert_array_equal(part.quadrants, quarter_turns)
        np.testing.assert_array_equal(part.circles, np.hypot(x, y) < 1)


@pytest.mark.usefixtures("unscaled")
def test_points_are_uniform():
    """Each of 8 x 8 equal cells has its share, up to five standard deviations."""
    data = load_quadrants(64_000, seed=3)
    points = np.concatenate([part.points for part in parts(data)])
    cells = np.floor((points + 2) * 2).clip(0, 7).astype(int)
    counts = np.bincount(cells[:, 0] * 8 + cells[:, 1], minlength=64)
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000))


def test_shares_of_the_labels(data):
    """A quarter in each quadrant and pi / 16 in the circle, to five deviations."""
    quadrants = np.concatenate([part.quadrants for part in parts(data)])
    circles = np.concatenate([part.circles for part in parts(data)])
    shares = np.bincount(quadrants) / 10_000
    np.testing.assert_allclose(shares, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 1e4))
    np.testing.assert_allclose(circles.mean(), np.pi / 16, atol=5 * 0.4 / 100)


def test_scaling_is_that_of_the_train_points_only(data):
    np.testing.assert_allclose(data.train.points.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.points.std(axis=0), 1, rtol=1e-5)
    # Of the other two it is not: their own mean is off by about 1 / sqrt(num).
    assert np.all(data.test.points.mean(axis=0) != 0)


def test_scaler_leaves_a_constant_input_finite():
    train = np.stack([np.full(100, 0.1), np.arange(100.0)], axis=1)
    mean, std = scaler(train)
    assert std[0] == 1
    np.testing.assert_allclose(std[1], np.arange(100).std(), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_points_on_a_border():
    """A zero counts as positive, and the circle belongs to its inside."""
    border = np.array([[0, 0], [0, -1], [-1, 0], [1, 0], [-0.0, 2]])
    quadrants, circles = label_points(border)
    np.testing.assert_array_equal(quadrants, [0, 3, 1, 0, 0])
    np.testing.assert_array_equal(circles, [1, 1, 1, 1, 0])


def test_seed_picks_the_points():
    first, again, other = (load_quadrants(100, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.test.points, again.test.points)
    assert not np.array_equal(first.test.points, other.test.points)


@pytest.mark.parametrize("num", [-1, 0, 9])
def test_too_few_points(num):
    with pytest.raises(
        ValueError, match=f"`num_points` must be at least 10, got {num}"
    ):
        load_quadrants(num)
