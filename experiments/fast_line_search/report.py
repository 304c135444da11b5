"""The line-search experiments' tables, verdicts and figures."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.fast_line_search.methods import Method, make_methods
from experiments.lab.comparison import paired
from experiments.lab.figures import COLOURS, FAINT, Curve, draw_panels
from experiments.lab.tables import Frame, cost_table, markdown_table, number
from experiments.lab.verdicts import Verdict, verdict_table

# Columns of the table: scores and their digits, and statistics of the steps.
SCORES = {"train_loss": 3, "train_error": 2, "test_loss": 3, "test_error": 2}
STEPS = {"raised_a_loss": ".1%", "trials": ".2f", "step_size": ".3g"}
STEPS |= {"at_upper": ".0%", "at_floor": ".0%"}
# File name of each figure, and its curves: a method with its first beta or its best
# learning rate; "*" means a method with all its values.
FIGURES = {
    "sgd": ("sgd*", "sgd", "fbls", "fbls_decay"),  # figures 3 and 5
    "betas": ("fbls*", "bls*"),  # figure 4
    # Figure 6, and the safeguard.
    "methods": ("sgd", "mgda_ub", "bls", "fbls", "fbls_safe", "fbls_calibrated"),
}
COLOUR = dict(zip(make_methods(2, 1), (*COLOURS, "#333333"), strict=True))

_LEVEL = 0.1  # an error is level with a lower one up to this share above it
_FAILED = 2.0  # a seed that ends with this multiple of the error has failed
_SAME_TIME = 1.15  # times whose ratio is lower count as equal


@dataclasses.dataclass(frozen=True)
class Subject:
    """The subject of an experiment's tables."""

    name: str
    title: str
    network: str  # with other facts that the reader must know, in one or two sentences
    source: str  # of the data
    num_tasks: int = 2
    error: str = "error [%]"  # what it is, with its unit
    factor: float = 100.0  # by which errors are multiplied to have that unit
    # The times of the paper's steps by method, as multiples of SGD's, and their source.
    paper_times: Mapping[str, str] = dataclasses.field(default_factory=dict)
    times_from: str = "Table 1"
    errors_from: str = ""  # FBLS against the rates of SGD, if the paper compares them
    searches_from: str = ""  # FBLS against BLS
    limits: str = ""  # what this run shows if it shows no errors


def wide(records: Frame, factor: float) -> Frame:
    """Returns means over tasks, by run and epoch (rows) and by name (columns).

    Errors are multiplied by a factor. NaN counts as infinite, also in means.
    """
    keys = ["method", "number", "seed", "epoch", "name"]
    numbers = records.fillna({"value": np.inf}).groupby(keys)["value"]
    table = numbers.mean().unstack("name")
    errors = ["train_error", "test_error"]
    return table.assign(**{name: factor * table[name] for name in errors})


def last(table: Frame) -> Frame:
    """Returns the rows of the last epoch."""
    return table.xs(table.index.get_level_values("epoch").max(), level="epoch")


def best_value(table: Frame, method: str) -> float:
    """Returns the value of a method with the lowest test error after the last epoch.

    The test split makes the choice, which favours the methods with a learning rate.
    """
    errors = last(table).loc[method, "test_error"]
    return float(errors.groupby("number").mean().idxmin())


def make_report(
    subject: Subject,
    settings: str,
    methods: Mapping[str, Method],
    table: Frame,
    costs: Mapping[str, Mapping[str, float]],
) -> str:
    """Returns the tables of losses, errors, costs and verdicts as Markdown."""
    ends = last(table)
    titles = {name: method.title for name, method in methods.items()}
    scores, steps = (
        [name.replace("_", " ").replace("error", subject.error) for name in names]
        for names in (SCORES, STEPS)
    )
    rows = [
        [
            method.title,
            f"{method.symbol} = {value:.4g}",
            *_scores(ends.loc[name, value]),
            *_steps(table.loc[name, value]),
        ]
        for name, method in methods.items()
        for value in method.values
    ]
    parts = [
        f"# {subject.title}",
        *([f"**{subject.limits}**"] if subject.limits else []),
        f"Data: {subject.source}. {subject.network} {settings} β is the share of the "
        "linear decrease that a line search demands, and η is a learning rate.",
        "## After the last epoch, mean over the tasks",
        "Train scores use the first train examples, as many as the smaller split has. "
        "A step raised a loss if the loss of any task, on the batch of the step, was "
        "higher after the step than before. Trials, step sizes and shares are means "
        "over all steps. One step in four is checked for raised losses.",
        markdown_table(["method", "value", *scores, *steps], rows),
    ]
    if {"fbls", "bls"} <= methods.keys():
        rows = [[titles[name], *_scores(ends.loc[name])] for name in ("fbls", "bls")]
        parts.append("## FBLS and BLS, over all β and seeds (figure 4)")
        parts.append(markdown_table(["method", *scores], rows))
    base = "sgd" if "sgd" in methods else next(iter(methods))
    paper = subject.paper_times if base == "sgd" else None  # multiples of SGD's
    parts += [
        "## Cost of a step",
        "A step is measured after the training. The methods take turns, and the "
        "fastest of several rounds counts. Multiples are relative to "
        f"{titles[base]}. XLA counts one trial.",
        cost_table(costs["seconds"], costs["operations"], titles, base, paper),
        "## The paper's claims",
        "± after a difference is half its 95 % interval over the seeds. The best rate "
        "has the lowest test error of this table, which favours SGD. The paper does "
        "not say whether its SGD makes a step on the summed loss or one for each task. "
        f"Its times hold if all are within {_SAME_TIME - 1:.0%} in one reading. A "
        f"search needs tuning if a seed ends with more than {_FAILED:g} times the "
        "error of the best rate.",
        verdict_table(verdicts(subject, methods, table, costs["seconds"])),
    ]
    return "\n\n".join(parts) + "\n"


def _scores(ends: Frame) -> list[str]:
    return [number(ends[name], 1, digits) for name, digits in SCORES.items()]


def _steps(rows: Frame) -> list[str]:
    """Returns the means over all steps as cells of the table."""
    means = rows.reindex(columns=list(STEPS)).mean()
    cells = zip(means, STEPS.values(), strict=True)
    return ["" if np.isnan(mean) else format(mean, form) for mean, form in cells]


def verdicts(
    subject: Subject,
    methods: Mapping[str, Method],
    table: Frame,
    seconds: Mapping[str, float],
) -> list[Verdict]:
    """Returns the paper's claims about these methods, with our measurements."""
    errors, found = last(table)["test_error"], []
    if "fbls" in methods:
        raised = table["raised_a_loss"].groupby("method").mean()
        names = [name for name in ("fbls", "fbls_safe", "bls") if name in methods]
        shares = (f"{methods[name].title} {raised[name]:.1%}" for name in names)
        claim = "every accepted step of FBLS lowers every loss (Eq. 2, Theorem 1)"
        measured = f"steps that raised a loss: {', '.join(shares)}"
        holds = False if raised["fbls"] > 0 else None if subject.limits else True
        found.append(Verdict(claim, measured, holds))
    for name in ("fbls", "fbls_decay"):
        if subject.errors_from and {name, "sgd"} <= methods.keys():
            rate, rates = best_value(table, "sgd"), methods["sgd"].values
            own, best = errors[name, methods[name].values[0]], errors["sgd", rate]
            apart = paired(own, best)
            holds = apart.mean + apart.half <= _LEVEL * best.mean() or None
            if apart.sign > 0 or (own.to_numpy() > _FAILED * best.to_numpy()).any():
                holds = False
            edge = ", an edge of the grid" if rate in (rates[0], rates[-1]) else ""
            claim = f"{methods[name].title}, not tuned: as good as the best of "
            claim += f"{len(rates)} rates ({subject.errors_from})"
            measured = f"{number(own)}, SGD {number(best)} at η = {rate:.2g}{edge}"
            measured += f", difference {apart:.2f}"
            found.append(Verdict(claim, measured, None if subject.limits else holds))
    if subject.searches_from and {"fbls", "bls"} <= methods.keys():
        own, other = (errors[name].groupby("seed").mean() for name in ("fbls", "bls"))
        apart = paired(own, other)
        holds = {-1: True, 0: None, 1: False}[apart.sign]
        claim = f"FBLS beats BLS, mean over β ({subject.searches_from})"
        measured = f"{number(own)}, BLS {number(other)}, difference {apart:.2f}"
        found.append(Verdict(claim, measured, holds))
    timed = [name for name in subject.paper_times if name in methods]
    if timed and "sgd" in methods:

        def listed(times: Mapping[str, float]) -> str:
            return ", ".join(
                f"{methods[name].title} {times[name]:.2f}" for name in timed
            )

        theirs = {name: float(subject.paper_times[name]) for name in timed}
        measured, holds = [], False
        readings = {"a summed step": 1, "a step for each task": subject.num_tasks}
        for reading, steps in readings.items():
            ours = {name: seconds[name] / (steps * seconds["sgd"]) for name in timed}
            ratios = [ours[name] / theirs[name] for name in timed]
            holds |= all(1 / _SAME_TIME <= ratio <= _SAME_TIME for ratio in ratios)
            measured.append(f"{listed(ours)} of {reading}")
        claim = f"times as shares of SGD's: {listed(theirs)} ({subject.times_from})"
        found.append(Verdict(claim, "; ".join(measured), holds))
    return found


def draw_figures(
    subject: Subject, methods: Mapping[str, Method], table: Frame, out: Path
) -> None:
    """Draws losses and errors over epochs, and the last errors over learning rates."""
    about = f"(line: mean, band: minimum to maximum). Data: {subject.source}"

    def drawn(member: str) -> tuple[str, Frame, str]:
        name, all_values = member.removesuffix("*"), member.endswith("*")
        method, is_rate = methods[name], methods[name].symbol == "η"
        if all_values:  # all eight learning rates are a backdrop
            label = f"{method.title}, all {method.symbol}"
            return label, table.loc[name], FAINT if is_rate else COLOUR[name]
        value = best_value(table, name) if is_rate else method.values[0]
        label = f"{method.title}, {value:.2g}" if is_rate else method.title
        return label, table.loc[name, value], COLOUR[name]

    for figure, members in FIGURES.items():
        lines = [drawn(name) for name in members if name.strip("*") in methods]
        for metric, ylabel in (("loss", "loss"), ("error", subject.error)):
            panels: dict[str, list[Curve]] = {"train": [], "test": []}
            for split, curves in panels.items():
                for label, rows, colour in lines:
                    own = rows[f"{split}_{metric}"].unstack("epoch")
                    curves.append(Curve(label, list(own), own.to_numpy().T, colour))
            if lines:
                draw_panels(
                    out / f"{figure}_{metric}.png",
                    panels,
                    xlabel="epoch",
                    ylabel=ylabel,
                    title=f"{subject.title} {about}",
                )
    draw_rates(subject, methods, last(table), out / "rates_error.png", about)


def draw_rates(
    subject: Subject, methods: Mapping[str, Method], ends: Frame, path: Path, about: str
) -> None:
    """Draws the last errors over the learning rate, if a method has one."""
    rates = [method.values for method in methods.values() if method.symbol == "η"]
    if not rates:
        return
    ticks = [float(f"{rate:.2g}") for rate in rates[0]]  # that a reader can see
    over: dict[str, list[Curve]] = {"train": [], "test": []}
    for split, curves in over.items():
        errors = ends[f"{split}_error"].unstack("seed")
        for name, method in methods.items():
            values = errors.loc[name].to_numpy()
            if method.symbol == "β":  # a search has no rate
                values = np.tile(values[0], (len(ticks), 1))
            curves.append(Curve(method.title, ticks, values, COLOUR[name]))
    draw_panels(
        path,
        over,
        xlabel="learning rate, which line searches have not",
        ylabel=f"final {subject.error}",
        title=f"{subject.title}, after the last epoch {about}",
        log=True,
        at_points=True,
    )
