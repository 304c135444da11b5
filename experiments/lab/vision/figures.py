"""Figures of the vision experiments: learning rates, training, and predictions."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.errors import UsageError
from experiments.lab.figures import COLOURS, Curve, draw_panels, drawing
from experiments.lab.tables import curve, select
from experiments.lab.vision.data import Split
from experiments.lab.vision.problem import VisionProblem
from experiments.lab.vision.report import SINGLE, SUM, Outcome, in_families, in_order
from experiments.lab.vision.training import NUM_DRAWN, run_name

_MOST_TASKS = 8  # tasks with panels of their own
BANDS = "line: mean over seeds, band: minimum to maximum"


def draw_learning_rates(outcome: Outcome, tasks: Sequence[str], path: Path) -> None:
    """Draws the lowest validation losses over training (Fig. 1 to 3 of Pascal et al.).

    There is a panel for the mean and, if there are few tasks, for each task. With
    groups, IUS and IO have a panel each.
    """
    names = in_families(outcome.table)
    shown = ("", *tasks) if len(tasks) <= _MOST_TASKS else ("",)
    panels = {task or "average": _lowest_losses(outcome, names, task) for task in shown}
    if any(name[-1].isdigit() for name in names if not name.startswith("sum")):
        panels = {
            kind: _lowest_losses(outcome, [SUM, *own], "")
            for kind in ("IUS", "IO")
            for own in [[n for n in names if n.startswith(kind.lower())]]
        }
    draw_panels(
        path,
        panels,
        xlabel="learning rate",
        title=f"Lowest validation losses over training ({BANDS}). {outcome.source}",
        log=True,
        at_points=True,
        common=False,
    )


def draw(outcome: Outcome, problem: VisionProblem, out: Path) -> None:
    """Draws learning rates, training, and each method's predictions in test images."""
    chosen, titles, source = outcome.chosen, outcome.titles, outcome.source
    tasks = problem.tasks
    if select(outcome.table, method=SUM)["rate"].nunique() > 1:
        draw_learning_rates(outcome, tasks, out / "learning_rates.png")
    losses = select(chosen, name="validation_loss")
    if len(tasks) > len(COLOURS):
        losses, tasks = losses.assign(part="mean"), ("mean",)
    draw_panels(
        out / "training.png",
        {
            titles[name]: [
                Curve(task, *curve(select(losses, method=name, part=task)), colour)
                for task, colour in zip(tasks, COLOURS, strict=False)
            ]
            for name in in_order(chosen)
            if name != SINGLE
        },
        xlabel="epoch",
        ylabel="validation loss",
        title=f"Validation losses at the chosen learning rate ({BANDS}). {source}",
        log=True,
    )
    for name in in_order(chosen):
        rate = select(chosen, method=name)["rate"].iloc[0]
        path = out / "drawn" / f"{run_name(name, '', rate, 0)}.npz"
        if path.exists():
            title = f"{titles[name]}. {source}"
            target = out / f"predictions_{name}.png"
            draw_predictions(target, problem.splits["test"], _read(path), title)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Reads predictions; a damaged file is a UsageError."""
    try:
        with np.load(path) as drawn:
            return dict(drawn)
    except Exception as error:  # damaged bytes may raise any error
        raise UsageError(
            f"{path} is damaged. Delete it, and the next --resume draws no predictions "
            "of this method."
        ) from error


def _lowest_losses(outcome: Outcome, names: Sequence[str], task: str) -> list[Curve]:
    """The lowest losses of a task, or of the mean of all, by rate."""
    own = select(outcome.table, name="best_loss")
    if task:
        own = select(outcome.table, name="validation_loss", part=task)
    lowest = own.groupby(["method", "rate", "seed"])["value"].min().unstack("seed")
    return [
        Curve(outcome.titles[method], list(wide.index), wide.to_numpy(), colour)
        for method, colour in zip(names, itertools.cycle(COLOURS))
        for wide in [lowest.loc[method]]
    ]


def draw_predictions(
    path: Path, split: Split, drawn: Mapping[str, np.ndarray], title: str
) -> None:
    """Draws the first images of a split, with labels and predictions next to them."""
    num = min(NUM_DRAWN, len(split))
    batch = split.batch(np.arange(num))
    images, columns = batch["image"], 1 + 2 * len(drawn)
    width, shape = 1.6 * columns, images.shape[1] / images.shape[2]
    size = (width, 0.8 + (0.1 + 1.6 * shape) * num)
    with drawing(path, title, num, columns, figsize=size) as grid:
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


def _as_label(labels: Mapping[str, np.ndarray], task: str) -> np.ndarray:
    """Returns the labels of a task, or of many tasks that share one map."""
    if task in labels:
        return labels[task]
    whole = np.stack(list(labels.values()), axis=-1)
    return np.where(np.all(whole >= 0, axis=-1), np.argmax(whole, axis=-1), -1)


def _show(axis: Any, image: np.ndarray, label: np.ndarray) -> None:
    """Shows classes, one quantity, the length of two, or three as a colour."""
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
