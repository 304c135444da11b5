"""Figures of the vision experiments: learning rates, training, and what is seen."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.lab.figures import COLOURS, STYLE, Curve, draw_panels, pyplot
from experiments.lab.tables import curve, select
from experiments.lab.vision.data import Split
from experiments.lab.vision.methods import SINGLE
from experiments.lab.vision.problem import VisionProblem
from experiments.lab.vision.report import Titles, choose, in_families, in_order
from experiments.lab.vision.training import NUM_DRAWN, run_name

_BANDS = "line: mean over seeds, band: minimum to maximum"


def draw(
    problem: VisionProblem, table: pd.DataFrame, titles: Titles, source: str, out: Path
) -> None:
    """Draws learning rates, training, and what each method sees in test images."""
    tasks, chosen = problem.tasks, choose(table)
    if select(table, method=in_families(table)[0])["rate"].nunique() > 1:
        shown = tasks if len(tasks) < len(COLOURS) else ()
        draw_rates(out / "learning_rates.png", table, titles, shown, source)
    shown = tasks if len(tasks) <= len(COLOURS) else ()
    draw_training(out / "training.png", chosen, titles, shown, source)
    for name in in_order(chosen):
        rate = select(chosen, method=name)["rate"].iloc[0]
        path = out / "drawn" / f"{run_name(name, '', rate, 0)}.npz"
        if path.exists():
            with np.load(path) as drawn:
                title = f"{titles[name]}. {source}"
                target = out / f"predictions_{name}.png"
                draw_predictions(target, problem.splits["test"], dict(drawn), title)


def draw_rates(
    path: Path, table: pd.DataFrame, titles: Titles, tasks: Any, source: str
) -> None:
    """Draws the lowest validation losses over the learning rate (Fig. 1 to 3).

    Of the summed loss, IUS and IO: the mean over all tasks, and of each in `tasks`.
    """

    def line(method: str, task: str, colour: str) -> Curve:
        own = select(table, method=method)
        lowest = select(own, name="best_loss")
        if task:
            losses = select(own, name="validation_loss", part=task)
            lowest = losses.groupby(["rate", "seed"], as_index=False)["value"].min()
        wide = lowest.pivot(index="rate", columns="seed", values="value")
        return Curve(titles[method], wide.index.tolist(), wide.to_numpy(), colour)

    pairs = list(zip(in_families(table), COLOURS, strict=False))
    draw_panels(
        path,
        {
            task or "average": [line(method, task, colour) for method, colour in pairs]
            for task in ("", *tasks)
        },
        xlabel="learning rate",
        title=f"Lowest validation losses over training ({_BANDS}). {source}",
        log=True,
        at_points=True,
        common=False,
    )


def draw_training(
    path: Path, chosen: pd.DataFrame, titles: Titles, tasks: Any, source: str
) -> None:
    """Draws the validation losses of the chosen runs: of `tasks`, or their mean."""

    def curves(method: str) -> list[Curve]:
        losses = select(chosen, method=method, name="validation_loss")
        if not tasks:
            return [Curve("mean", *curve(losses), COLOURS[0])]
        return [
            Curve(task, *curve(select(losses, part=task)), colour)
            for task, colour in zip(tasks, COLOURS, strict=False)
        ]

    draw_panels(
        path,
        {titles[name]: curves(name) for name in in_order(chosen) if name != SINGLE},
        xlabel="epoch",
        ylabel="validation loss",
        title=f"Validation losses at the chosen learning rate ({_BANDS}). {source}",
        log=True,
    )


def draw_predictions(
    path: Path, split: Split, drawn: Mapping[str, np.ndarray], title: str
) -> None:
    """Draws the first images of a split, with labels and predictions beside them."""
    num = min(NUM_DRAWN, len(split))
    batch = split.batch(np.arange(num))
    images, columns = batch["image"], 1 + 2 * len(drawn)
    width, shape = 1.6 * columns, images.shape[1] / images.shape[2]
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
        for axis, image in zip(grid[:, 0], images, strict=True):
            axis.imshow(image)
        grid[0, 0].set_title("image")
        for place, (task, predicted) in enumerate(drawn.items()):
            labels = _as_label(batch["labels"], task)
            for side, shown in enumerate((labels, predicted)):
                column = grid[:, 1 + 2 * place + side]
                column[0].set_title(f"{task}, {('label', 'predicted')[side]}")
                for axis, image, label in zip(column, shown, labels, strict=False):
                    _show(axis, image, label)
        figure.suptitle(textwrap.fill(title, width=int(13 * width)), fontsize=9)
        figure.savefig(path)
        plt.close(figure)


def _as_label(labels: Mapping[str, np.ndarray], task: str) -> np.ndarray:
    """The labels of a task, or of many tasks that one map shows."""
    if task in labels:
        return labels[task]
    whole = np.stack(list(labels.values()), axis=-1)
    return np.where(np.all(whole >= 0, axis=-1), np.argmax(whole, axis=-1), -1)


def _show(axis: Any, image: np.ndarray, label: np.ndarray) -> None:
    """Shows classes, one quantity, two as their length, or three as a colour."""
    if image.ndim == 2:
        shown = np.ma.masked_less(image, 0)
        axis.imshow(shown, cmap="tab20", vmin=0, vmax=19, interpolation="nearest")
        return
    length = np.linalg.norm(image, axis=-1, keepdims=True)
    if image.shape[-1] == 3:
        axis.imshow(np.nan_to_num(0.5 + 0.5 * image / np.where(length > 0, length, 1)))
        return
    low, high = np.nanpercentile(np.linalg.norm(label, axis=-1), [2, 98])
    axis.imshow(length[..., 0], cmap="viridis", vmin=low, vmax=high)
