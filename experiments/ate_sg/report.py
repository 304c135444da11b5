"""The tables of the alternation experiments."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.ate_sg.costs import Costs
from experiments.ate_sg.runs import Result, Run
from experiments.lab.report import markdown_table, percent

METRICS = {"recall": "recall", "precision": "precision", "f1": "F1"}

# For each run the paper's recall, precision and F1, each of all tasks, from 0 to 1.
Paper = Mapping[Run, Sequence[Sequence[float]]]


class Oscillation(NamedTuple):
    """How much a loss goes up and down.

    Attributes:
      change: median absolute change from an epoch to the next, its trend included.
      zigzag: median distance of a loss from the mean of its two neighbours: zero for
        any straight line.
      rises: in what share of the epochs the loss rose.
    """

    change: float
    zigzag: float
    rises: float


def oscillation(loss: Sequence[float]) -> Oscillation:
    """Returns the oscillation in the last third of the epochs.

    Args:
      loss: `[epochs]`.

    Returns:
      The oscillation; NaN for fewer than three epochs, or a loss that is not finite.

    Examples:
      >>> oscillation([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 2.0, 3.0, 2.0])
      Oscillation(change=1.0, zigzag=1.0, rises=0.5)
    """
    last = np.asarray(loss, float)[-max(1, len(loss) // 3) :]
    if len(last) < 3 or not np.isfinite(last).all():
        return Oscillation(math.nan, math.nan, math.nan)
    changes = np.diff(last)
    return Oscillation(
        change=float(np.median(np.abs(changes))),
        zigzag=float(np.median(np.abs(np.diff(changes)))) / 2,
        rises=float(np.mean(changes > 0)),
    )


def summarize(
    results: Mapping[Run, Result], units: Mapping[str, Costs]
) -> dict[Run, dict[str, Any]]:
    """Returns the numbers of the tables, for each run.

    Args:
      results: the finished runs.
      units: what epochs cost, for each unit.
    """
    summary = {}
    for run, result in results.items():
        history = result.history
        seconds = {
            moving: statistics.median(
                time
                for time, now in zip(history.seconds, history.moving, strict=True)
                if now == moving
            )
            for moving in dict.fromkeys(history.moving)
        }
        entry = {
            "training_type": run.training_type,
            "optimizer": run.optimizer,
            "learning_rate": run.learning_rate,
            "phase_epochs": run.length,
            "epochs": result.epochs,
            "best_epoch": result.best_epoch,
            "test": dict(result.test),
            "seconds_per_epoch": seconds,
        }
        for name in ("train_loss", "validation_loss"):
            # [epochs, seeds], summed over the tasks, without what came after the stop.
            losses = np.sum(getattr(history, name), axis=-1)
            own = [losses[:epochs, seed] for seed, epochs in enumerate(result.epochs)]
            entry[f"last_{name}"] = [float(loss[-1]) for loss in own]
            entry[f"best_{name}"] = [
                float(loss[best - 1]) if best else math.nan
                for loss, best in zip(own, result.best_epoch, strict=True)
            ]
            each = map(oscillation, own)
            for field, values in zip(
                Oscillation._fields, zip(*each, strict=True), strict=True
            ):
                entry[f"{name}_{field}"] = list(values)
        for unit, costs in units.items():
            cost = costs.until(len(history.seconds), run.length)
            entry[f"cost_by_{unit}"] = [
                float(cost[best - 1]) if best else math.nan
                for best in result.best_epoch
            ]
        summary[run] = entry
    return summary


def make_report(
    summary: Mapping[Run, Mapping[str, Any]],
    units: Mapping[str, Costs],
    tasks: Sequence[str],
    paper: Paper,
    introduction: Sequence[str],
) -> str:
    """Returns the tables as Markdown.

    Args:
      summary: from `summarize`.
      units: what epochs cost, for each unit.
      tasks: names of the tasks.
      paper: the paper's table.
      introduction: the first paragraphs.
    """
    parts = [*introduction]
    for (optimizer, rate), group in _groups(summary):
        parts += [
            f"## {optimizer.upper()}, starting learning rate {rate:g}",
            "Test scores of the best epoch in percent, averages over the classes "
            "weighted by their sizes (± is the standard deviation of the seeds).",
            _scores_table(group, tasks, paper),
            "Medians of the seeds. The cost is that until the best epoch, in epochs of "
            "the full gradient.",
            _training_table(group),
            "Oscillation of the summed loss in the last third of the epochs: the "
            "median absolute change from an epoch to the next, trend included; zigzag, "
            "the median distance from the mean of both neighbours, without the trend, "
            "and the same relative to the training without phases; and the share of "
            "epochs in which the loss rose.",
            _oscillation_table(group),
        ]
    parts += [
        "## Cost of an epoch, that of the full gradient being 1",
        '"Parameters" is the paper\'s estimate, the share of parameters that '
        "backpropagation passes through. Operations are XLA's count of the compiled "
        "steps with SG; encoding the training data comes at the start of each task "
        "phase. Time is the median epoch of this run, with the evaluation on the "
        "validation split and without that encoding.",
        _cost_table(summary, units),
    ]
    return "\n\n".join(parts) + "\n"


def _groups(
    summary: Mapping[Run, Mapping[str, Any]],
) -> Iterable[tuple[tuple[str, float], dict[Run, Mapping[str, Any]]]]:
    """Yields the runs to be compared: of one optimizer and learning rate."""
    pairs = itertools.groupby(
        summary.items(), lambda item: (item[0].optimizer, item[0].learning_rate)
    )
    for key, items in pairs:
        yield key, dict(items)


def _scores_table(
    group: Mapping[Run, Mapping[str, Any]], tasks: Sequence[str], paper: Paper
) -> str:
    header = ["training type"]
    header += [f"{title}, {task}" for title in METRICS.values() for task in tasks]
    rows = []
    for run, entry in group.items():
        row = [run.training_type]
        for metric in METRICS:
            row += map(percent, zip(*entry["test"][metric], strict=True))
        rows.append(row)
        if run in paper:
            values = itertools.chain.from_iterable(paper[run])
            rows.append(["— paper", *(f"{100 * value:.2f}" for value in values)])
    return markdown_table(header, rows)


def _training_table(group: Mapping[Run, Mapping[str, Any]]) -> str:
    columns = {
        "epochs": "epochs",
        "best epoch": "best_epoch",
        "cost by parameters": "cost_by_parameters",
        "cost by FLOPs": "cost_by_flops",
        "validation loss": "best_validation_loss",
        "training loss": "best_train_loss",
        "at the end": "last_train_loss",
    }
    rows = []
    for run, entry in group.items():
        medians = [statistics.median(entry[name]) for name in columns.values()]
        rows.append([run.training_type, *(f"{value:.4g}" for value in medians)])
    return markdown_table(["training type", *columns], rows)


def _oscillation_table(group: Mapping[Run, Mapping[str, Any]]) -> str:
    header = ["training type"]
    for split in ("training", "validation"):
        header += [f"{split} loss: change", "zigzag", "relative", "rises"]
    (classic,) = (entry for run, entry in group.items() if run.length is None)
    rows = []
    for run, entry in group.items():
        row = [run.training_type]
        for name in ("train_loss", "validation_loss"):
            change, zigzag, rises = (
                statistics.median(entry[f"{name}_{field}"])
                for field in Oscillation._fields
            )
            base = statistics.median(classic[f"{name}_zigzag"])
            relative = zigzag / base if base else math.nan
            row += [f"{change:.2g}", f"{zigzag:.2g}", f"{relative:.2f}", f"{rises:.2f}"]
        rows.append(row)
    return markdown_table(header, rows)


def _cost_table(
    summary: Mapping[Run, Mapping[str, Any]], units: Mapping[str, Costs]
) -> str:
    optimizers = list(dict.fromkeys(run.optimizer for run in summary))
    header = ["epoch of", "parameters", "operations"]
    header += [f"time, {name.upper()}" for name in optimizers]
    rows = []
    for moving, title in (("shared", "shared parameters"), ("task", "heads")):
        row = [title, *(f"{getattr(costs, moving):.3f}" for costs in units.values())]
        for name in optimizers:
            full, own = (_seconds(summary, name, now) for now in ("full", moving))
            row.append(f"{own / full:.3f}")
        rows.append(row)
    encoding = f"{units['flops'].encode:.3f}"
    rows.append(["encoding, once a task phase", "", encoding, *[""] * len(optimizers)])
    return markdown_table(header, rows)


def _seconds(
    summary: Mapping[Run, Mapping[str, Any]], optimizer: str, moving: str
) -> float:
    """Returns the median time of an epoch, NaN if there was none."""
    times = [
        entry["seconds_per_epoch"][moving]
        for run, entry in summary.items()
        if run.optimizer == optimizer and moving in entry["seconds_per_epoch"]
    ]
    return statistics.median(times) if times else math.nan
