"""Figures of the experiments (Matplotlib, no display needed)."""

import contextlib
import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can distinguish too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK = "#333333"
FAINT = "#BBBBBB"
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line (the mean over seeds) and its band (from minimum to maximum)."""

    label: str
    x: Any  # `[points]`
    y: Any  # `[points, seeds]`
    colour: str
    width: float = 1.4  # a wide line is visible under a narrow line
    middle: Callable[..., Any] = np.mean  # values of the line, if it is not the mean


@contextlib.contextmanager
def drawing(
    path: Path, title: str, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[np.ndarray]:
    """Yields axes `[rows, columns]` to draw on, and then writes the file."""
    import matplotlib as mpl

    mpl.use("Agg")  # needs no display
    import matplotlib.pyplot as plt

    options |= {"squeeze": False, "layout": "constrained"}
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(rows, columns, **options)
        yield grid
        _finish(figure, grid.flat, title, path)
        plt.close(figure)


def draw_panels(
    path: Path,
    panels: Mapping[str, Sequence[Curve]],
    *,
    xlabel: str,
    title: str,
    ylabel: str = "",
    log: bool = False,
    at_points: bool = False,
    common: bool = True,
) -> None:
    """Draws small multiples: for each title a panel with its curves.

    If `common`, all panels share the vertical axis; if `log`, the vertical axis is
    logarithmic. With `at_points`, the horizontal axis is logarithmic with ticks at the
    points of the first curve, for example for learning rates. Otherwise its ticks are
    whole numbers, for example for epochs.
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    width, height = (3.1, 2.5) if at_points else (2.6, 1.75)
    options = {
        "figsize": (0.6 + width * columns, 1.0 + height * rows),
        "sharex": True,
        "sharey": common,
    }
    with drawing(path, title, rows, columns, **options) as grid:
        axes = list(grid.flat)
        for axis, (name, curves) in zip(axes, panels.items(), strict=False):
            axis.set_title(name)
            axis.grid(axis="y", color=FAINT, linewidth=0.4)
            for curve in curves:
                draw_curve(axis, curve)
            if log:
                axis.set_yscale("log")
                readable_log_axis(axis)
            if at_points:
                points = list(curves[0].x)
                axis.set_xscale("log")
                axis.set_xticks(points, [f"{point:g}" for point in points])
                axis.set_xticks([], minor=True)
                axis.tick_params(axis="both", which="both", labelsize=7)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis in axes[len(panels) - columns : len(panels)]:
            axis.tick_params(labelbottom=True)
            axis.set_xlabel(xlabel)
        if not at_points:
            whole_numbers(axes[0])
        axes[0].figure.supylabel(ylabel, fontsize=9, color=_INK)


def draw_dots(
    path: Path,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    xlabel: str,
    title: str,
) -> None:
    """Draws a line for each method, and on it a dot for each task.

    The values map method and task to the values of the seeds. The dot is their mean,
    and the bar goes from minimum to maximum.
    """
    with drawing(path, title, figsize=(6.4, 1.3 + 0.32 * len(groups))) as grid:
        axis = grid[0, 0]
        tasks = list(next(iter(groups.values())))
        rows = np.arange(len(groups))[::-1]
        for index, task in enumerate(tasks):
            values = np.array([group[task] for group in groups.values()])
            mean = values.mean(axis=1)
            reach = [mean - values.min(axis=1), values.max(axis=1) - mean]
            # Side by side, so that no bar hides another.
            offset = 0.12 * ((len(tasks) - 1) / 2 - index)
            style: Any = {"fmt": "o", "markersize": 5, "linewidth": 1.2}
            style |= {"color": COLOURS[index], "label": task}
            axis.errorbar(mean, rows + offset, xerr=reach, **style)
        axis.set_yticks(rows, list(groups))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="both", color=FAINT, linewidth=0.4)
        axis.set_axisbelow(True)
        axis.set_ylim(-0.6, len(groups) - 0.4)
        axis.set_xlabel(xlabel)


def draw_curve(axis: "Axes", curve: Curve) -> None:
    """Draws a curve and its band; values that are not finite are gaps."""
    values = np.asarray(curve.y, float)
    values = np.where(np.isfinite(values), values, np.nan)
    # Only of finite values.
    least, most = (each.reduce(values, axis=1) for each in (np.fmin, np.fmax))
    axis.fill_between(curve.x, least, most, color=curve.colour, alpha=0.2, linewidth=0)
    style: Any = {"color": curve.colour, "linewidth": curve.width, "markersize": 3}
    style["marker"] = "o" if len(curve.x) <= 12 else None
    axis.plot(curve.x, curve.middle(values, axis=1), label=curve.label, **style)


def whole_numbers(axis: "Axes") -> None:
    """Puts the horizontal ticks at whole numbers, for epochs and steps."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def readable_log_axis(axis: "Axes", along: str = "y") -> None:
    """Labels a logarithmic axis by plain numbers: 1, 1.5, 2, 3 and not 10^0.

    If the axis has more decades, each decade has fewer numbers.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = getattr(axis, f"get_{along}lim")()
    few = (1.0,) if high > 1e3 * low else (1, 3)
    subs = few if high > 20 * low else (1, 1.5, 2, 3, 5)
    ticks = getattr(axis, f"{along}axis")
    ticks.set_major_locator(LogLocator(subs=subs))
    ticks.set_major_formatter(StrMethodFormatter("{x:g}"))
    ticks.set_minor_formatter(NullFormatter())


def _finish(figure: Any, axes: Iterable["Axes"], title: str, path: Path) -> None:
    """Adds a title and one legend for all panels, and writes the file."""
    wrapped = textwrap.fill(title, width=int(13 * figure.get_figwidth()))
    figure.suptitle(wrapped, fontsize=10, color=_INK)
    entries = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(dict(zip(labels, handles, strict=True)))
    if entries:
        columns = min(len(entries), len(COLOURS))
        place: Any = {"loc": "outside lower center", "ncols": columns}
        figure.legend(entries.values(), entries.keys(), **place)
    figure.savefig(path)
