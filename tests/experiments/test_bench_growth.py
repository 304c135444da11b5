"""The benchmark of growth: its sizes, its memory, its tables and figure."""

import jax
import matplotlib.image
import pytest

from experiments.bench import growth
from experiments.bench.growth import PLAIN, Point, make_workload, measure, table

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [10_000, 1_000_000])
def test_the_trunk_has_about_so_many_parameters(number):
    encoder = make_workload(2, number).params["encoder"]
    count = sum(leaf.size for leaf in jax.tree.leaves(encoder))
    assert count == pytest.approx(number, rel=0.02)


def test_streaming_keeps_fewer_rows():
    variants = {"kept": ("mgda", {}), "streaming": ("mgda", {"streaming": True})}
    points = {point.step: point for point in measure(12, 20_000, variants, 0)}
    assert points[PLAIN].memory == 1
    assert points["streaming"].memory < points["kept"].memory
    assert points["kept"].time is None


@pytest.mark.parametrize("method", ["mgda", "upgrad", "aligned_mtl"])
def test_streaming_needs_little_more_than_a_plain_step(method):
    """At forty tasks and a million parameters at most half as much again."""
    variants = {method: (method, {"streaming": True})}
    points = list(measure(40, 1_000_000, variants, 0))
    assert points[0].peak == 1
    assert 1 < points[1].peak <= 1.5


def test_tables_and_figure(tmp_path):
    points = [
        Point(step, size, 10, 2.0 * size, 1.0 * size, 1.0, 1.0, 0.5)
        for step in (PLAIN, "θ-aligned")
        for size in (2, 1_000)
    ]
    lines = table(points, "num_tasks", "milliseconds").splitlines()
    assert lines[0].split("|")[1:4] == [" milliseconds ", "  2 ", " 1,000 "]
    assert lines[3].split("|")[2:4] == ["  4 ", " 2e+03 "]
    growth.draw(tmp_path / "growth.png", [("num_tasks", "time", points)] * 2)
    assert matplotlib.image.imread(tmp_path / "growth.png").std() > 0
