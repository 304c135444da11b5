"""Figures of the alternation experiments: losses over epochs and cost, and rates."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.ate_sg.costs import Costs
from experiments.ate_sg.runs import Result, Run
from experiments.lab.figures import COLOURS, FAINT, STYLE, finish, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, eq=False)
class Traces:
    """What is drawn of one training type.

    Attributes:
      costs: for the label of each horizontal axis the values after each epoch,
        `[epochs]`.
      losses: for the label of each vertical axis `[epochs, seeds]`, NaN where a seed
        has stopped.
      learning_rate: `[epochs, seeds]`, likewise.
    """

    costs: Mapping[str, np.ndarray]
    losses: Mapping[str, np.ndarray]
    learning_rate: np.ndarray


def draw_figures(
    results: Mapping[Run, Result], units: Mapping[str, Costs], source: str, out: Path
) -> None:
    """Draws losses and learning rates of every optimizer and learning rate.

    Args:
      results: the finished runs.
      units: what epochs cost, for each unit.
      source: what was trained on what.
      out: folder of the files.
    """
    groups: dict[tuple[str, float], dict[str, Traces]] = {}
    for run, result in results.items():
        group = groups.setdefault((run.optimizer, run.learning_rate), {})
        group[run.training_type] = make_traces(run, result, units)
    for (optimizer, rate), runs in groups.items():
        name = f"{optimizer}_{rate:g}"
        what = f"starting learning rate {rate:g}. {source}"
        draw_losses(
            out / f"losses_{name}.png",
            runs,
            f"Losses (line: median over seeds, band: minimum to maximum), {what}",
        )
        draw_learning_rates(
            out / f"learning_rates_{name}.png", runs, f"Learning rates, {what}"
        )


def make_traces(run: Run, result: Result, units: Mapping[str, Costs]) -> Traces:
    """Returns what is drawn of a run."""
    history = result.history
    epochs = len(history.seconds)
    cost = {unit: costs.until(epochs, run.length) for unit, costs in units.items()}
    return Traces(
        costs={
            "epoch": np.arange(1, epochs + 1),
            "full-gradient epochs, by parameters": cost["parameters"],
            "full-gradient epochs, by FLOPs": cost["flops"],
        },
        losses={
            "training loss": np.sum(history.train_loss, axis=-1),
            "validation loss": np.sum(history.validation_loss, axis=-1),
        },
        learning_rate=np.array(history.learning_rate),
    )


def draw_losses(path: Path, runs: Mapping[str, Traces], title: str) -> None:
    """Draws every loss over every cost: the median and the range of the seeds.

    The paper's figures 3, 4 and 6 to 9.

    Args:
      path: the PNG file.
      runs: from the name of a training type to its traces.
      title: title of the figure.
    """
    first = next(iter(runs.values()))
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(first.losses),
            len(first.costs),
            figsize=(0.6 + 3.2 * len(first.costs), 1.0 + 2.3 * len(first.losses)),
            sharex="col",
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for axes, loss in zip(grid, first.losses, strict=True):
            for axis, cost in zip(axes, first.costs, strict=True):
                axis.set_yscale("log")
                axis.grid(axis="y", color=FAINT, linewidth=0.4)
                for (name, traces), colour in zip(runs.items(), COLOURS, strict=False):
                    x, y = traces.costs[cost], traces.losses[loss]
                    _draw_range(axis, x, y, name, colour)
            axes[0].set_ylabel(loss)
        for axis, cost in zip(grid[-1], first.costs, strict=True):
            axis.set_xlabel(cost)
        finish(figure, list(grid.flat), title, path)
        plt.close(figure)


def draw_learning_rates(path: Path, runs: Mapping[str, Traces], title: str) -> None:
    """Draws the learning rates of every seed, a panel for each training type.

    The paper's figure 5.

    Args:
      path: the PNG file.
      runs: from the name of a training type to its traces.
      title: title of the figure.
    """
    columns = min(2, len(runs))
    rows = -(-len(runs) // columns)
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows,
            columns,
            figsize=(0.6 + 3.2 * columns, 1.0 + 1.75 * rows),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        axes = list(grid.flat)
        for axis, (name, traces) in zip(axes, runs.items(), strict=False):
            axis.set_title(name)
            axis.set_yscale("log")
            axis.grid(axis="y", color=FAINT, linewidth=0.4)
            epochs = np.arange(1, len(traces.learning_rate) + 1)
            for seed, rates in enumerate(traces.learning_rate.T):
                colour = COLOURS[seed % len(COLOURS)]
                # Under each other, so that equal ones are seen.
                width = 4 - 3 * seed / traces.learning_rate.shape[1]
                axis.plot(
                    epochs, rates, color=colour, linewidth=width, label=f"seed {seed}"
                )
        for axis in axes[len(runs) :]:
            axis.set_axis_off()
        for axis in axes[len(runs) - columns : len(runs)]:
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("epoch")
        figure.supylabel("learning rate", fontsize=9)
        finish(figure, axes[:1], title, path)
        plt.close(figure)


def _draw_range(
    axis: "Axes", x: Sequence[float] | np.ndarray, y: Any, name: str, colour: str
) -> None:
    """Draws the median of the seeds that still run, and their range."""
    finite = np.isfinite(y)
    some = finite.any(axis=1)  # nanmedian warns where there is none
    x, values = np.asarray(x)[some], np.where(finite, y, np.nan)[some]
    low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
    axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(x, np.nanmedian(values, axis=1), color=colour, linewidth=1.1, label=name)
