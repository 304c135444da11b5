"""Figures of the toy landscapes: the paths of all methods as small multiples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from experiments.aligned_mtl.landscapes import LANDSCAPES, Landscape, Outcome
from experiments.lab.figures import COLOURS, FAINT, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 5  # methods side by side
_BANDS = 2  # pairs of rows in a file
_POINTS = 300  # of a path: more are not seen
_REACHED, _FAILED = COLOURS[0], COLOURS[1]


def draw_paths(
    out: Path, name: str, methods: Mapping[str, Outcome], subtitle: str
) -> list[Path]:
    """Draws a column for each method: its paths over the contours, and in the losses.

    Returns the PNG files: one, or several where there are many methods.
    """
    landscape = LANDSCAPES[name]
    columns = list(methods.items())
    size = _COLUMNS * _BANDS
    pages = [columns[i : i + size] for i in range(0, len(columns), size)]
    files = []
    for index, page in enumerate(pages):
        suffix = f"_{index + 1}" if len(pages) > 1 else ""
        title = f"{landscape.title}: paths and Pareto front ({subtitle})"
        if suffix:
            title += f", {index + 1} of {len(pages)}"
        files.append(out / f"{name}{suffix}.png")
        _draw_page(files[-1], landscape, page, title)
    return files


def _draw_page(
    path: Path, landscape: Landscape, page: Sequence[tuple[str, Outcome]], title: str
) -> None:
    width = min(_COLUMNS, len(page))
    bands = -(-len(page) // width)
    contours = _contours(landscape)
    size = (0.6 + 2.2 * max(2, width), 0.9 + 3.9 * bands)
    with drawing(path, title, 2 * bands, width, figsize=size) as grid:
        for axis in grid.flat:
            axis.set_axis_off()
        for index, (label, runs) in enumerate(page):
            band, column = divmod(index, width)
            total = len(runs.steps)
            reached = f"{total - runs.steps.count(None)} of {total} starts"
            over, across = grid[2 * band, column], grid[2 * band + 1, column]
            for axis in (over, across):
                axis.set_axis_on()
                axis.tick_params(labelsize=7)
            over.set_title(f"{label}, {reached}", fontsize=8)
            over.contour(*contours, levels=20, colors=FAINT, linewidths=0.5)
            _draw_in(over, landscape.pareto_set, runs.params, runs.steps)
            _draw_in(across, landscape.front, runs.losses, runs.steps)
            for axis, (left, right, bottom, top), letter in (
                (over, landscape.window, "x"),
                (across, landscape.loss_window, "L"),
            ):
                axis.set(xlim=(left, right), ylim=(bottom, top))
                axis.set_xlabel(f"${letter}_1$", labelpad=0)
                axis.set_ylabel("" if column else f"${letter}_2$")


def _draw_in(
    axis: "Axes", front: np.ndarray, paths: np.ndarray, arrivals: Sequence[int | None]
) -> None:
    """Draws the front and the paths, of parameters or of losses."""
    axis.plot(
        *front.T,
        color="black",
        linewidth=2.5,
        marker="*" if len(front) == 2 else None,
        label="Pareto set and front",
    )
    last = paths.shape[1] - 1
    for run, arrival in zip(paths, arrivals, strict=True):
        if arrival is None:
            color, line, label = _FAILED, "--", "never comes near"
        else:
            color, line, label = _REACHED, "-", "until it comes near the front"
        stop = last if arrival is None else arrival
        axis.plot(*run[_some(0, stop)].T, line, color=color, linewidth=0.9, label=label)
        axis.plot(*run[_some(stop, last)].T, color=color, alpha=0.3, linewidth=0.5)
        axis.plot(*run[0], "o", color="black", markersize=3, label="start")
        axis.plot(*run[stop], "X", color=color, markersize=5)


def _some(first: int, last: int) -> np.ndarray:
    """Steps from the first to the last, denser at first, where most happens."""
    shares = np.linspace(0, 1, _POINTS) ** 2
    return np.unique(first + np.rint((last - first) * shares).astype(int))


def _contours(landscape: Landscape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a mesh of the window and the sum of the losses on it."""
    left, right, bottom, top = landscape.window
    x1, x2 = np.meshgrid(np.linspace(left, right, 161), np.linspace(bottom, top, 161))
    points = jnp.asarray(np.stack([x1.ravel(), x2.ravel()], axis=-1))
    total = sum(jax.vmap(loss)(points) for loss in landscape.losses)
    return x1, x2, np.asarray(total).reshape(x1.shape)
