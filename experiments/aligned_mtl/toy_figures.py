"""Figures of the toy landscapes: the paths of all methods as small multiples."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from experiments.aligned_mtl.landscapes import LANDSCAPES, Landscape
from experiments.lab.figures import COLOURS, FAINT, STYLE, finish, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 5  # methods side by side
_BANDS = 2  # pairs of rows in a file
_POINTS = 300  # of a path: more are not seen
_REACHED, _FAILED = COLOURS[0], COLOURS[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """The runs of one method.

    Attributes:
      params: `[starts, steps, 2]`.
      losses: `[starts, steps, 2]`.
      arrivals: for each start the step at which the run comes near the front; None for
        never.
    """

    params: np.ndarray
    losses: np.ndarray
    arrivals: Sequence[int | None]


def draw_paths(
    out: Path, name: str, methods: Mapping[str, Paths], subtitle: str
) -> list[Path]:
    """Draws a column for each method: its paths over the contours, and in the losses.

    Args:
      out: folder of the files.
      name: the landscape, a name in `LANDSCAPES`.
      methods: from a column's title to the paths.
      subtitle: what the runs have in common.

    Returns:
      The PNG files: one, or several where there are many methods.
    """
    landscape = LANDSCAPES[name]
    contours = _contours(landscape)
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
        _draw_page(files[-1], landscape, contours, page, title)
    return files


def _draw_page(
    path: Path,
    landscape: Landscape,
    contours: tuple[np.ndarray, np.ndarray, np.ndarray],
    page: Sequence[tuple[str, Paths]],
    title: str,
) -> None:
    width = min(_COLUMNS, len(page))
    bands = -(-len(page) // width)
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            2 * bands,
            width,
            figsize=(0.6 + 2.2 * max(2, width), 0.9 + 3.9 * bands),
            squeeze=False,
            layout="constrained",
        )
        for axis in grid.flat:
            axis.set_axis_off()
        for index, (label, paths) in enumerate(page):
            band, column = divmod(index, width)
            total = len(paths.arrivals)
            reached = f"{total - paths.arrivals.count(None)} of {total} starts"
            over, across = grid[2 * band, column], grid[2 * band + 1, column]
            for axis in (over, across):
                axis.set_axis_on()
                axis.tick_params(labelsize=7)
            over.set_title(f"{label}, {reached}", fontsize=8)
            over.contour(*contours, levels=20, colors=FAINT, linewidths=0.5)
            _draw_in(over, landscape.pareto_set, paths.params, paths.arrivals)
            _draw_in(across, landscape.front, paths.losses, paths.arrivals)
            _set_window(over, landscape.window)
            _set_window(across, landscape.loss_window)
            if column == 0:
                over.set_ylabel("$x_2$")
                across.set_ylabel("$L_2$")
            over.set_xlabel("$x_1$", labelpad=0)
            across.set_xlabel("$L_1$", labelpad=0)
        finish(figure, list(grid.flat), title, path)
        plt.close(figure)


def _draw_in(
    axis: "Axes",
    front: np.ndarray,
    paths: np.ndarray,
    arrivals: Sequence[int | None],
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


def _set_window(axis: "Axes", window: tuple[float, float, float, float]) -> None:
    axis.set_xlim(window[0], window[1])
    axis.set_ylim(window[2], window[3])


def _contours(landscape: Landscape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a mesh of the window and the sum of the losses on it."""
    left, right, bottom, top = landscape.window
    x1, x2 = np.meshgrid(np.linspace(left, right, 161), np.linspace(bottom, top, 161))
    points = jnp.asarray(np.stack([x1.ravel(), x2.ravel()], axis=-1))
    total = sum(jax.vmap(loss)(points) for loss in landscape.losses)
    return x1, x2, np.asarray(total).reshape(x1.shape)
