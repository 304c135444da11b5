"""Figures of the vision experiments: learning rates, training, and what is seen."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.figures import COLOURS, STYLE, Curve, draw_panels, pyplot
from experiments.lab.vision.data import Split
from experiments.lab.vision.training import NUM_DRAWN, Run
from experiments.mtl_io.group_figures import draw_log_panels

_BANDS = "line: mean over seeds, band: minimum to maximum"


def draw_rates(
    path: Path,
    groups: Mapping[str, Mapping[float, Sequence[Run]]],
    tasks: Sequence[str],
    source: str,
) -> None:
    """Draws the lowest validation losses over the learning rate (Fig. 1 to 3).

    Args:
      path: the PNG file.
      groups: from the title of a method, at most six, to its runs by learning rate.
      tasks: names of the tasks; more than five are drawn by their mean only.
      source: of the data.
    """
    shown = tasks if len(tasks) <= 5 else ()

    def curve(index: int, title: str, task: int | None) -> Curve:
        def lowest(run: Run) -> float:
            losses = run.history.validation_loss
            if task is None:
                return run.best_loss
            return float(np.nanmin(np.array(losses)[:, task]))

        rates = groups[title]
        values = [[lowest(run) for run in runs] for runs in rates.values()]
        return Curve(title, list(rates), values, COLOURS[index])

    panels = {
        name: [curve(index, title, task) for index, title in enumerate(groups)]
        for name, task in [("average", None), *((t, i) for i, t in enumerate(shown))]
    }
    draw_log_panels(
        path,
        panels,
        xlabel="learning rate",
        title=f"Lowest validation losses over training ({_BANDS}). {source}",
    )


def draw_training(
    path: Path, groups: Mapping[str, Sequence[Run]], tasks: Sequence[str], source: str
) -> None:
    """Draws the validation losses of the chosen runs over the epochs.

    Args:
      path: the PNG file.
      groups: from the title of a method to its runs, one a seed.
      tasks: names of the tasks; more than six are drawn by their mean only.
      source: of the data.
    """

    def curves(runs: Sequence[Run]) -> list[Curve]:
        losses = np.array([run.history.validation_loss for run in runs])
        epochs = range(1, losses.shape[1] + 1)
        if len(tasks) > len(COLOURS):
            return [Curve("mean", epochs, losses.mean(axis=2).T, COLOURS[0])]
        return [
            Curve(task, epochs, losses[:, :, index].T, COLOURS[index])
            for index, task in enumerate(tasks)
        ]

    draw_panels(
        path,
        {title: curves(runs) for title, runs in groups.items()},
        xlabel="epoch",
        ylabel="validation loss",
        title=f"Validation losses at the chosen learning rate ({_BANDS}). {source}",
        log=True,
    )


def draw_predictions(
    path: Path, split: Split, drawn: Mapping[str, np.ndarray], title: str
) -> None:
    """Draws test images, with label and prediction of each task beside them.

    Args:
      path: the PNG file.
      split: the test split.
      drawn: from the task to its predictions for the first images.
      title: of the figure.
    """
    num = min(NUM_DRAWN, len(split))
    batch = split.batch(np.arange(num))
    images = batch["image"]
    labels = {task: _as_label(batch["labels"], task) for task in drawn}
    columns, shape = 1 + 2 * len(drawn), images.shape[1] / images.shape[2]
    width = 1.6 * columns
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            num,
            columns,
            figsize=(width, 0.8 + (0.1 + 1.6 * shape) * num),
            squeeze=False,
            layout="constrained",
        )
        for axis in grid.flat:
            axis.set_axis_off()
        for row in range(num):
            grid[row, 0].imshow(images[row])
            for place, (task, predicted) in enumerate(drawn.items()):
                pair = (labels[task][row], predicted[row])
                for side, image in enumerate(pair):
                    axis = grid[row, 1 + 2 * place + side]
                    _show(axis, image, labels[task][row])
                    if row == 0:
                        axis.set_title(f"{task}, {('label', 'predicted')[side]}")
        grid[0, 0].set_title("image")
        figure.suptitle(textwrap.fill(title, width=int(13 * width)), fontsize=9)
        figure.savefig(path)
        plt.close(figure)


def _as_label(labels: Mapping[str, np.ndarray], task: str) -> np.ndarray:
    """The labels of a task, or of many tasks that one map shows."""
    if task in labels:
        return labels[task]
    whole = np.stack(list(labels.values()), axis=-1)
    there = np.all(whole >= 0, axis=-1)
    return np.where(there, np.argmax(whole, axis=-1), -1)


def _show(axis: Any, image: np.ndarray, label: np.ndarray) -> None:
    """Shows classes, one quantity, two as their length, or three as a colour."""
    if image.ndim == 2:
        shown = np.ma.masked_less(image, 0)
        axis.imshow(shown, cmap="tab20", vmin=0, vmax=19, interpolation="nearest")
        return
    if image.shape[-1] == 3:
        length = np.linalg.norm(image, axis=-1, keepdims=True)
        unit = image / np.where(length > 0, length, 1)
        axis.imshow(np.nan_to_num(0.5 + 0.5 * unit))
        return
    low, high = np.nanpercentile(np.linalg.norm(label, axis=-1), [2, 98])
    axis.imshow(np.linalg.norm(image, axis=-1), cmap="viridis", vmin=low, vmax=high)
