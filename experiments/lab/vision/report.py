"""What the runs of a vision experiment say: choices, tables, numbers."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.lab.comparison import delta_m, growth_rate, mean_rank
from experiments.lab.report import markdown_table
from experiments.lab.vision.methods import SINGLE, SUM
from experiments.lab.vision.problems import Metric
from experiments.lab.vision.training import Run

# From the name of a method to the paper's numbers as printed, by metric.
Paper = Mapping[str, Mapping[str, str]]
# By name of the method and learning rate, one run a seed.
ByRate = Mapping[str, Mapping[float, Sequence[Run]]]


@dataclasses.dataclass(frozen=True)
class Row:
    """A method at the learning rate that validation chose.

    Attributes:
      title: of the method.
      rates: the rate, or that of each single task.
      runs: one a seed; of single tasks, of each task one a seed.
      scores: test metrics, by name one number a seed.
    """

    title: str
    rates: tuple[float, ...]
    runs: tuple[Run, ...]
    scores: dict[str, list[float]]


def read_table(metrics: Sequence[str], text: str) -> dict[str, dict[str, str]]:
    """Reads a paper's table: a line for each method, a column for each metric.

    Examples:
      >>> read_table(["error", "f1"], "ius 9.1 69.0")
      {'ius': {'error': '9.1', 'f1': '69.0'}}
    """
    lines = (line.split() for line in text.strip().splitlines())
    return {name: dict(zip(metrics, cells, strict=True)) for name, *cells in lines}


def by_rate(runs: Sequence[Run]) -> dict[str, dict[float, list[Run]]]:
    """Sorts the runs by method (and task, of single ones) and learning rate."""
    sorted_runs: dict[str, dict[float, list[Run]]] = {}
    for run in runs:
        name = f"{run.method}_{run.only}" if run.only else run.method
        sorted_runs.setdefault(name, {}).setdefault(run.rate, []).append(run)
    return sorted_runs


def choose(rates: Mapping[float, Sequence[Run]]) -> float:
    """Returns the learning rate with the lowest validation loss, mean over seeds."""
    means = {
        rate: statistics.fmean(run.best_loss for run in runs)
        for rate, runs in rates.items()
    }
    return min(means, key=lambda rate: means[rate])


def make_rows(
    runs: Sequence[Run], tasks: Sequence[str], metrics: Sequence[Metric]
) -> dict[str, Row]:
    """Returns the rows of the table by name of the method, the single tasks first."""
    groups = by_rate(runs)
    chosen = {name: groups[name][choose(rates)] for name, rates in groups.items()}
    rows = {}
    singles = [chosen.pop(f"{SINGLE}_{task}", None) for task in tasks]
    if singles[0] is not None:
        each = {task: own or [] for task, own in zip(tasks, singles, strict=True)}
        rows[SINGLE] = Row(
            each[tasks[0]][0].title,
            tuple(own[0].rate for own in each.values()),
            tuple(run for own in each.values() for run in own),
            {m.name: [run.test[m.name] for run in each[m.task]] for m in metrics},
        )
    for name, own in chosen.items():
        scores = {m.name: [run.test[m.name] for run in own] for m in metrics}
        rows[name] = Row(own[0].title, (own[0].rate,), tuple(own), scores)
    return rows


def summary_table(
    rows: Mapping[str, Row], metrics: Sequence[Metric], paper: Paper
) -> str:
    """Returns the test metrics, the paper's beside them, ranks and gains."""
    arrows = [f"{m.title} {'↑' if m.higher_is_better else '↓'}" for m in metrics]
    in_paper = [m for m in metrics if any(m.name in each for each in paper.values())]
    header = ["method", *arrows, "rank"]
    higher = [metric.higher_is_better for metric in metrics]
    means = {
        name: [statistics.fmean(row.scores[m.name]) for m in metrics]
        for name, row in rows.items()
    }
    ranked = [name for name in rows if name != SINGLE]
    with_nan = np.array([means[name] for name in ranked])
    worst = np.where(higher, -np.inf, np.inf)
    ranks = mean_rank(np.where(np.isnan(with_nan), worst, with_nan), higher)
    rank_of = dict(zip(ranked, ranks, strict=True))
    gains = _gains(rows, means, metrics)
    header += ["Δm [%]"] * bool(gains) + [f"{m.title}, paper" for m in in_paper]
    lines = []
    for name, row in rows.items():
        cells = [number(row.scores[m.name], m.factor, m.digits) for m in metrics]
        rank = f"{rank_of[name]:.2f}" if name in rank_of else ""
        gain = [gains[name]] if gains else []
        theirs = [paper.get(name, {}).get(m.name, "") for m in in_paper]
        lines.append([row.title, *cells, rank, *gain, *theirs])
    return markdown_table(header, lines)


def _gains(
    rows: Mapping[str, Row],
    means: Mapping[str, Sequence[float]],
    metrics: Sequence[Metric],
) -> dict[str, str]:
    """Relative gains over single tasks in percent; a task counts as one."""
    if SINGLE not in rows:
        return {}
    tasks = dict.fromkeys(metric.task for metric in metrics)
    parts = {name: [] for name in rows}
    for task in tasks:
        own = [i for i, metric in enumerate(metrics) if metric.task == task]
        higher = np.array([metrics[i].higher_is_better for i in own])
        base = np.array([means[SINGLE][i] for i in own])
        if not np.all(np.isfinite(base) & (base != 0)):
            return {}
        for name in rows:
            scores = np.array([means[name][i] for i in own])
            parts[name].append(float(delta_m(scores, base, higher)))
    return {
        name: f"{100 * statistics.fmean(each):+.2f}" for name, each in parts.items()
    }


def growth_section(rows: Mapping[str, Row], metrics: Sequence[Metric]) -> list[str]:
    """Returns growth rates over the summed loss, where all metrics are errors."""
    if any(metric.higher_is_better for metric in metrics):
        return []
    base = {m.name: statistics.fmean(rows[SUM].scores[m.name]) for m in metrics}
    lines = []
    for row in rows.values():
        means = [(statistics.fmean(row.scores[m.name]), base[m.name]) for m in metrics]
        growths = [float(growth_rate(own, sums)) for own, sums in means]
        lines.append([row.title, *(f"{100 * growth:+.2f}" for growth in growths)])
    header = ["method", *(metric.title.split(" [")[0] for metric in metrics)]
    title = "## Growth rate over the summed loss [%]"
    return [title, "", markdown_table(header, lines), ""]


def rates_table(runs: Sequence[Run]) -> str:
    """Returns the lowest validation losses by learning rate."""
    groups = by_rate(runs)
    rates = sorted({rate for each in groups.values() for rate in each})
    lines = [
        [name]
        + [
            number([run.best_loss for run in each[rate]], 1, 4) if rate in each else ""
            for rate in rates
        ]
        for name, each in groups.items()
    ]
    return markdown_table(["method", *(f"{rate:g}" for rate in rates)], lines)


def cost_table(rows: Mapping[str, Row]) -> str:
    """Returns what training cost, and the choices of validation."""
    base = _seconds(rows[SUM])
    lines = []
    for row in rows.values():
        memory = max(run.temporary_bytes for run in row.runs) / 2**20
        lines.append(
            [
                row.title,
                ", ".join(f"{rate:g}" for rate in row.rates),
                ", ".join(str(run.best_epoch) for run in row.runs),
                f"{_seconds(row):.2f}",
                f"{_seconds(row) / base:.2f}",
                f"{memory:.1f}",
                f"{max(run.compile_seconds for run in row.runs):.1f}",
            ]
        )
    header = ["method", "learning rate", "best epochs", "seconds an epoch"]
    header += ["relative", "temporary memory [MiB]", "compilation [s]"]
    return markdown_table(header, lines)


def _seconds(row: Row) -> float:
    """The fastest epoch; of single tasks, of all of them together."""
    fastest: dict[str, float] = {}
    for run in row.runs:
        seconds = min(run.history.seconds)
        fastest[run.only] = min(seconds, fastest.get(run.only, seconds))
    return sum(fastest.values())


def distance_table(runs: Sequence[Run], paper: Mapping[str, Sequence[float]]) -> str:
    """Returns distances in the shared parameters, all at one rate and epoch (Table 4).

    Rate and epoch are those that validation chose for the summed loss.
    """
    groups = by_rate(runs)
    rate = choose(groups[SUM])
    epoch = round(statistics.median(run.best_epoch for run in groups[SUM][rate]))
    header = ["method", "covered", "shortest", "ratio"]
    header += [f"{name}, paper" for name in header[1:]]
    lines = []
    for name, each in groups.items():
        if name.split("_")[0] not in ("sum", "ius", "io"):
            continue
        covered, shortest = (
            [getattr(run.history, kind)[epoch - 1] for run in each[rate]]
            for kind in ("covered", "shortest")
        )
        ratio = [a / b for a, b in zip(covered, shortest, strict=True)]
        numbers = [number(values, 1, 2) for values in (covered, shortest, ratio)]
        theirs = [f"{value:.2f}" for value in paper.get(name, ())] or [""] * 3
        lines.append([each[rate][0].title, *numbers, *theirs])
    caption = f"Learning rate {rate:g}, after epoch {epoch}."
    return f"{caption}\n\n{markdown_table(header, lines)}"


def number(values: Sequence[float], factor: float, digits: int) -> str:
    """Returns mean and, of several seeds, standard deviation.

    Examples:
      >>> number([0.5, 0.7], 100, 1), number([2.0], 1, 2)
      ('60.0 ± 14.1', '2.00')
    """
    mean = f"{factor * statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {factor * float(np.std(values, ddof=1)):.{digits}f}"


def summarize(rows: Mapping[str, Row], runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the numbers of the tables, and all that was recorded."""
    return {
        "rows": {
            name: {"title": row.title, "rates": row.rates, "test": row.scores}
            for name, row in rows.items()
        },
        "runs": [dataclasses.asdict(run) for run in runs],
    }
