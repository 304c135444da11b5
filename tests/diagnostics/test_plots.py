"""Pictures: their lines and points are the numbers, and mistakes are named."""

import importlib.util

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import mtlopt


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def seen():
    """Diagnoses of five steps with three tasks, the last of which is absent twice."""
    rows = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    present = np.ones((5, 3), bool)
    present[1:3, 2] = False

    @jax.jit
    @jax.vmap
    def look(rows, present):
        grads = mtlopt.TaskGrads.from_rows(rows, present=present, tasks=("a", "b", "c"))
        return mtlopt.diagnose(grads)

    return look(rows, present)


def test_diagnosis(seen):
    """Every line is what was measured; an absent task leaves a hole."""
    steps = [0, 10, 20, 30, 50]
    cosine, norm, gap, dominance = mtlopt.plot_diagnosis(seen, steps).axes
    for axes in (cosine, norm, gap, dominance):
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), steps)
    lines = {
        line.get_label(): line.get_ydata() for line in (*cosine.lines, *norm.lines)
    }
    np.testing.assert_array_equal(lines["a, b"], seen.cosines[:, 0, 1])
    np.testing.assert_array_equal(lines["b"], seen.norms[:, 1])
    here = [0, 3, 4]
    for label, numbers in {
        "a, c": seen.cosines[:, 0, 2],
        "c": seen.norms[:, 2],
    }.items():
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(lines[label])), here)
        np.testing.assert_array_equal(lines[label][here], numbers[np.array(here)])
    measured, orthogonal = gap.lines
    np.testing.assert_array_equal(measured.get_ydata(), seen.relative_gap)
    np.testing.assert_allclose(
        orthogonal.get_ydata(), 1 / np.sqrt([3, 2, 2, 3, 3]), rtol=1e-12
    )
    np.testing.assert_array_equal(dominance.lines[0].get_ydata(), seen.dominance_rate)


def test_a_list_of_diagnoses(seen):
    """Is the same as they are stacked, for the figure and for the suggestions."""
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], seen) for i in range(5)]
    found, expected = mtlopt.plot_diagnosis(each), mtlopt.plot_diagnosis(seen)
    for one, other in zip(found.axes, expected.axes, strict=True):
        for line, its in zip(one.lines, other.lines, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), its.get_ydata())
    assert mtlopt.suggestions(each) == mtlopt.suggestions(seen)


def test_trade_off():
    """A panel for each pair; what a point of any label dominates is hollow."""
    losses = {"sum": [[1, 5, 2], [2, 2, 2]], "mgda": [2, 3, 2], "mine": [3, 1, 4]}
    figure = mtlopt.plot_trade_off(losses, ["x", "y", "z"])
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    assert labels == [("x", "y"), ("x", "z"), ("y", "z")]
    filled, hollow = set(), set()
    for line in figure.axes[0].lines:
        into = hollow if line.get_markerfacecolor() == "none" else filled
        into |= set(zip(*line.get_data(), strict=True))
    assert filled == {(1, 5), (2, 2), (3, 1)}
    assert hollow == {(2, 3)}


def test_mistakes(seen, monkeypatch):
    one = jax.tree.map(lambda leaf: leaf[0], seen)
    with pytest.raises(
        TypeError, match=r"`diagnosis` must be a result of .*, got dict"
    ):
        mtlopt.plot_diagnosis({})
    with pytest.raises(ValueError, match=r"\[steps, tasks\], got shape \(3,\)"):
        mtlopt.plot_diagnosis(one)
    with pytest.raises(ValueError, match=r"`steps` must .* \[5\], got shape \(4,\)"):
        mtlopt.plot_diagnosis(seen, range(4))
    with pytest.raises(TypeError, match="`losses` must map labels to arrays, got nd"):
        mtlopt.plot_trade_off(np.ones((3, 2)))
    for losses in ({}, {"a": [1.0]}, {"a": [1, 2], "b": [1, 2, 3]}, {"a": np.ones(5)}):
        with pytest.raises(ValueError, match="`losses` must map labels to arrays"):
            mtlopt.plot_trade_off(losses)
    with pytest.raises(ValueError, match="one name per task, 2, got 1"):
        mtlopt.plot_trade_off({"a": [1, 2]}, ["x"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        mtlopt.plot_diagnosis(seen)
