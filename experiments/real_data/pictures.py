"""The figure of a table: the errors of each row, seed by seed."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.lab.figures import COLOURS, FAINT, drawing, readable_log_axis
from experiments.real_data.choice import Standing


def draw_ratios(
    path: Path, problem: str, outcomes: Iterable[tuple[str, str, Standing]]
) -> None:
    """Draws a line for each row, and on it a dot for each seed that is not lost.

    A dot is the ratio to the tuned weights with the same seed, as in the table; the bar
    is the geometric mean. The rows with the lowest errors come first.
    """
    shown = [(title, own.ratios) for title, _, own in outcomes if own.ratios]
    shown.sort(key=lambda row: float(np.mean(row[1])))
    size = (6.4, 1.2 + 0.26 * len(shown))
    title = f"{problem}: error relative to tuned weights, by seed"
    with drawing(path, title, figsize=size) as grid:
        axis = grid[0, 0]
        places = np.arange(len(shown))[::-1]
        axis.axvline(1, color=FAINT, linewidth=1)
        for place, (_, logs) in zip(places, shown, strict=True):
            ratios, middle = np.exp(logs), np.exp(np.mean(logs))
            axis.plot(ratios, [place] * len(logs), "o", color=COLOURS[0], alpha=0.5)
            axis.plot([middle, middle], [place - 0.3, place + 0.3], color=COLOURS[1])
        axis.set_yticks(places, [title for title, _ in shown])
        axis.set_xscale("log")
        readable_log_axis(axis, "x")
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color=FAINT, linewidth=0.4)
        axis.set_axisbelow(True)
