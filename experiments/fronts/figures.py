"""The picture of fronts: networks on two losses, and on three along their diagonal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.fronts import problem
from experiments.lab.figures import COLOURS, FAINT, drawing

_COLUMNS = 4  # methods next to each other


def draw_fronts(path: Path, two: Sequence[Any], three: Sequence[Any]) -> None:
    """Draws each `concave.Outcome` with the analytic front."""
    columns = min(_COLUMNS, max(len(two), len(three)))
    above = -(-len(two) // columns)
    rows = above + -(-len(three) // columns)
    size = (0.5 + 2.1 * columns, 0.9 + 2.3 * rows)
    title = "Networks of all preferences and the analytic front: two losses, then three"
    with drawing(path, title, rows, columns, figsize=size) as grid:
        for axis in grid.flat:
            axis.set_axis_off()
        curve = problem.front(2, 501)
        for axis, outcome in zip(grid[:above].flat, two, strict=False):
            axis.plot(*curve.T, color="black", linewidth=1, label="analytic front")
            _draw_networks(axis, outcome, outcome.losses)
            axis.set_axis_on()
            axis.set_xlabel("first loss")
            axis.set_ylabel("second loss")
        surface = problem.coordinates(problem.front(3, 1000))
        for axis, outcome in zip(grid[above:].flat, three, strict=False):
            axis.scatter(*surface.T, s=3, color=FAINT, linewidths=0)
            _draw_networks(axis, outcome, problem.coordinates(outcome.losses))
            axis.set_aspect("equal")


def _draw_networks(axis: Any, outcome: Any, points: np.ndarray) -> None:
    """Those of all seeds, in one colour; the sweep of fixed weights in another."""
    is_sweep = outcome.method == "fixed"
    colour, label = (
        (COLOURS[1], "fixed weights") if is_sweep else (COLOURS[0], "preferences")
    )
    style: Any = {"s": 12, "alpha": 0.6, "linewidths": 0, "zorder": 3}
    axis.scatter(*points.reshape(-1, 2).T, color=colour, label=label, **style)
    axis.set_title(outcome.title)
