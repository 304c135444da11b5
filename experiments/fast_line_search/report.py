"""Tables and figures of the line-search experiments."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.fast_line_search.methods import BETAS, Method, make_methods
from experiments.fast_line_search.runs import Run, Settings
from experiments.lab.figures import COLOURS, FAINT, Curve, draw_panels
from experiments.lab.report import markdown_table


@dataclasses.dataclass(frozen=True)
class Subject:
    """What the tables of an experiment are about.

    Attributes:
      name: of the experiment.
      title: of the report.
      network: and what else the reader must know, a sentence or two.
      source: where the data come from.
      stand_in: whether they stand in for the official data.
      error: what the error is, with its unit.
      factor: by which errors are multiplied to have that unit.
    """

    name: str
    title: str
    network: str
    source: str
    stand_in: bool
    error: str = "error [%]"
    factor: float = 100.0


def _select(runs: Sequence[Run], method: str, value: float | None = None) -> list[Run]:
    return [run for run in runs if run.method == method and value in (None, run.value)]


def _last(runs: Sequence[Run], name: str) -> list[float]:
    return [run.history.mean(name)[-1] for run in runs]


def best_value(runs: Sequence[Run], method: str) -> float:
    """Returns the value of a method with the least test error after the last epoch.

    Chosen on the test split: a choice in favour of the methods with a learning rate.
    """
    values = dict.fromkeys(run.value for run in _select(runs, method))

    def error(value: float) -> float:
        mean = statistics.fmean(_last(_select(runs, method, value), "test_error"))
        return mean if math.isfinite(mean) else math.inf

    return min(values, key=error)


def _with_spread(values: Sequence[float], digits: int) -> str:
    if not all(map(math.isfinite, values)):
        return "diverged"
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def make_report(
    subject: Subject,
    settings: Settings,
    methods: Mapping[str, Method],
    runs: Sequence[Run],
) -> str:
    """Returns the tables as Markdown."""
    seeds = "1 seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    lines = [
        f"# {subject.title}",
        "",
        f"Data: {subject.source}. {subject.network} Batch {settings.batch_size}, "
        f"{settings.epochs} epochs, {seeds} (± is their standard deviation), direction "
        f"by {settings.direction}. β is the share of the linear decrease that a line "
        "search asks for, η a learning rate. FBLS + decay halves its upper bound every "
        f"{settings.decay_every} epochs.",
        "",
        "## After the last epoch, mean over the tasks",
        "",
        _results_table(subject, methods, runs),
        "",
        *_comparison(subject, methods, runs),
    ]
    if {"fbls", "bls"} <= set(methods):
        lines += ["## FBLS and BLS, over all β (figure 4)", ""]
        lines += [_beta_table(subject, methods, runs), ""]
    return "\n".join(lines)


def _results_table(
    subject: Subject, methods: Mapping[str, Method], runs: Sequence[Run]
) -> str:
    header = ["method", "value"]
    for split in ("train", "test"):
        header += [f"{split} loss", f"{split} {subject.error}"]
    header += ["trials", "step size", "at upper bound", "at floor", "seconds / epoch"]
    rows = []
    for name, method in methods.items():
        for value in method.values:
            chosen = _select(runs, name, value)
            row = [method.title, f"{method.symbol} = {value:.4g}"]
            for split in ("train", "test"):
                row.append(_with_spread(_last(chosen, f"{split}_loss"), 3))
                errors = [
                    subject.factor * error for error in _last(chosen, f"{split}_error")
                ]
                row.append(_with_spread(errors, 2))
            row += _searched(chosen)
            fastest = min(min(run.history.seconds) for run in chosen)
            rows.append([*row, f"{fastest:.2f}"])
    return markdown_table(header, rows)


def _searched(runs: Sequence[Run]) -> list[str]:
    """Returns means over all steps of a line search, as cells."""
    cells = []
    for name, digits in (
        ("trials", "{:.2f}"),
        ("step_size", "{:.3g}"),
        ("at_upper", "{:.0%}"),
        ("at_floor", "{:.0%}"),
    ):
        values = [value for run in runs for value in getattr(run.history, name)]
        cells.append(digits.format(statistics.fmean(values)) if values else "")
    return cells


def _comparison(
    subject: Subject, methods: Mapping[str, Method], runs: Sequence[Run]
) -> list[str]:
    """Returns the sentence that compares FBLS with the best learning rates."""
    if "fbls" not in methods:
        return []
    searched = _last(_select(runs, "fbls", BETAS[0]), "test_error")
    parts = [f"FBLS (β = {BETAS[0]}), no tuning: {_in_unit(subject, searched)}"]
    for name in ("sgd", "mgda_ub"):
        if name in methods:
            value = best_value(runs, name)
            errors = _last(_select(runs, name, value), "test_error")
            parts.append(
                f"best of {len(methods[name].values)} learning rates of "
                f"{methods[name].title}, η = {value:.4g}: {_in_unit(subject, errors)}"
            )
    text = "; ".join(parts)
    return [
        f"Test {subject.error}: {text}. Best is by this very column, which is in "
        "favour of the methods with a learning rate.",
        "",
    ]


def _in_unit(subject: Subject, errors: Sequence[float]) -> str:
    return _with_spread([subject.factor * error for error in errors], 2)


def _beta_table(
    subject: Subject, methods: Mapping[str, Method], runs: Sequence[Run]
) -> str:
    rows = []
    for name in ("fbls", "bls"):
        chosen = _select(runs, name)
        row = [methods[name].title]
        for split in ("train", "test"):
            row.append(_with_spread(_last(chosen, f"{split}_loss"), 3))
            row.append(_in_unit(subject, _last(chosen, f"{split}_error")))
        rows.append(row)
    header = ["method"]
    for split in ("train", "test"):
        header += [f"{split} loss", f"{split} {subject.error}"]
    return markdown_table(header, rows)


# File name of each figure, and its curves: a method at its first beta, or at its best
# learning rate; "*" is a method at all its values.
_FIGURES = {
    "sgd": ("sgd*", "sgd", "fbls", "fbls_decay"),  # figures 3 and 5
    "betas": ("fbls*", "bls*"),  # figure 4
    "methods": ("sgd", "mgda_ub", "bls", "fbls", "fbls_calibrated"),  # figure 6
}


def draw_figures(
    subject: Subject, methods: Mapping[str, Method], runs: Sequence[Run], out: Path
) -> None:
    """Draws the losses and the errors over epochs, for train and test."""
    order = list(make_methods(2, 1))
    for figure, names in _FIGURES.items():
        members = []
        for name in names:
            method = methods.get(name.removesuffix("*"))
            if method is None:
                continue
            colour = COLOURS[order.index(name.removesuffix("*"))]
            if not name.endswith("*"):
                # Short labels: they stand in one row below the panels.
                best, label = method.values[0], method.title
                if method.symbol == "η":
                    best = best_value(runs, name)
                    label = f"{method.title}, {best:.2g}"
                members.append((label, _select(runs, name, best), colour))
            else:
                label = f"{method.title}, all {method.symbol}"
                # The eight learning rates are a backdrop.
                colour = FAINT if method.symbol == "η" else colour
                members.append((label, _select(runs, name[:-1]), colour))
        if not members:
            continue
        for metric, ylabel in (("loss", "loss"), ("error", subject.error)):
            factor = subject.factor if metric == "error" else 1.0
            draw_panels(
                out / f"{figure}_{metric}.png",
                {
                    split: [
                        _curve(label, chosen, f"{split}_{metric}", factor, colour)
                        for label, chosen, colour in members
                    ]
                    for split in ("train", "test")
                },
                xlabel="epoch",
                ylabel=ylabel,
                title=f"{subject.title} (line: mean, band: minimum to maximum). "
                f"Data: {subject.source}",
            )


def _curve(
    label: str, runs: Sequence[Run], name: str, factor: float, colour: str
) -> Curve:
    values = factor * np.array([run.history.mean(name) for run in runs]).T
    return Curve(label, range(1, len(values) + 1), values, colour)
