"""The figure of `doctor`: six views of the task gradients over a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.lab.figures import (
    COLOURS,
    FAINT,
    STYLE,
    Curve,
    draw_curve,
    finish,
    pyplot,
    readable_log_axis,
    whole_numbers,
)
from mtlopt import Diagnosis

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_doctor(
    path: Path,
    steps: Sequence[int],
    diagnosis: Diagnosis,
    losses: np.ndarray,
    weights: np.ndarray,
    tasks: Sequence[str],
    title: str,
) -> None:
    """Draws losses and weights, and all that a diagnosis holds.

    Args:
      path: the PNG file.
      steps: of the measurements.
      diagnosis: its arrays have leading axes of measurements and seeds.
      losses: `[measurements, seeds, tasks]`.
      weights: of the gradients, likewise.
      tasks: names of the tasks.
      title: title of the figure.
    """

    def curves(values: Any) -> list[Curve]:
        values = np.asarray(values)
        return [
            Curve(task, steps, values[..., index], COLOURS[index])
            for index, task in enumerate(tasks)
        ]

    ratios = {"norm ratio": diagnosis.norm_ratio, "dominance": diagnosis.dominance_rate}
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 3, figsize=(9.0, 5.0), layout="constrained")
        matrix, *axes = grid.flat
        _draw_matrix(matrix, np.mean(diagnosis.cosines, axis=(0, 1)), tasks)
        _draw(axes[0], "training loss", curves(losses))
        _draw(axes[1], "gradient norm", curves(diagnosis.norms), log=True)
        _draw(
            axes[2],
            "norm ratio, dominance rate",
            [
                Curve(name, steps, values, COLOURS[index])
                for index, (name, values) in enumerate(ratios.items(), start=2)
            ],
            log=True,
        )
        gap = [Curve("relative gap", steps, diagnosis.relative_gap, COLOURS[4])]
        _draw(axes[3], "stationarity gap over mean norm", gap)
        axes[3].axhline(
            len(tasks) ** -0.5,
            color=FAINT,
            linestyle="--",
            linewidth=1,
            label="gap of orthogonal ones",
        )
        axes[3].set_ylim(bottom=0)
        _draw(axes[4], "weight of the gradient", curves(weights))
        for axis in axes:
            axis.set_xlabel("step")
        finish(figure, axes, title, path)
        plt.close(figure)


def _draw(axis: "Axes", title: str, curves: Sequence[Curve], log: bool = False) -> None:
    axis.set_title(title)
    axis.grid(axis="y", color=FAINT, linewidth=0.4)
    for curve in curves:
        draw_curve(axis, curve)
    whole_numbers(axis)
    if log:
        axis.set_yscale("log")
        readable_log_axis(axis)


def _draw_matrix(axis: "Axes", cosines: np.ndarray, tasks: Sequence[str]) -> None:
    """Draws the cosines, from -1 (conflict) to 1, with their numbers."""
    axis.set_title("cosines, mean")
    axis.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
    axis.set_xticks(range(len(tasks)), list(tasks))
    axis.set_yticks(range(len(tasks)), list(tasks))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    for (row, column), value in np.ndenumerate(cosines):
        dark = abs(value) > 0.6
        axis.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="white" if dark else "black",
        )
