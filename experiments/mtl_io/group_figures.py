"""Figures of `task_groups`: curves over learning rates and over numbers of groups."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.lab.figures import FAINT, STYLE, Curve, finish, pyplot


def draw_log_panels(
    path: Path,
    panels: Mapping[str, Sequence[Curve]],
    *,
    xlabel: str,
    title: str,
    common: bool = False,
) -> None:
    """Draws panels, at most three in a row, both axes logarithmic.

    Args:
      path: the PNG file.
      panels: from a panel's title to its curves; values that are not finite are gaps.
      xlabel: label of the horizontal axes, whose ticks are the first curve's points.
      title: title of the figure.
      common: whether the panels have a common vertical axis.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows,
            columns,
            figsize=(0.6 + 3.1 * columns, 1.0 + 2.5 * rows),
            sharey=common,
            squeeze=False,
            layout="constrained",
        )
        axes = list(grid.flat)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis, (name, curves) in zip(axes, panels.items(), strict=False):
            axis.set_title(name)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.grid(axis="y", color=FAINT, linewidth=0.4)
            for curve in curves:
                values = np.asarray(curve.y, float)
                values = np.where(np.isfinite(values), values, np.nan)
                axis.fill_between(
                    curve.x,
                    values.min(axis=1),
                    values.max(axis=1),
                    color=curve.colour,
                    alpha=0.2,
                    linewidth=0,
                )
                axis.plot(
                    curve.x,
                    values.mean(axis=1),
                    color=curve.colour,
                    linewidth=1.4,
                    marker="o",
                    markersize=3,
                    label=curve.label,
                )
            ticks = list(curves[0].x)
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            axis.set_xticks([], minor=True)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(axis="both", which="both", labelsize=7)
            axis.set_xlabel(xlabel)
        finish(figure, axes, title, path)
        plt.close(figure)
