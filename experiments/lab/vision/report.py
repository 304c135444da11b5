"""The report of a vision experiment, made from its records; each method has a rate."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.lab.comparison import (
    Difference,
    delta_m,
    growth_rate,
    mean_rank,
    paired,
)
from experiments.lab.tables import Frame, count, markdown_table, number, select
from experiments.lab.verdicts import Verdict, verdict_table

SUM, SINGLE = "sum_tasks", "single"
NO_RATE = 0.0  # for methods that search their step size
_VERDICTS = """
## Claims

Differences are means over the same seeds, with their 95 % intervals. If an interval
contains 0, the difference cannot be seen at this size.

"""
_FAMILIES = ("sum", "ius", "io")


class Metric(NamedTuple):
    """A number in the tables, by its name in `scores`; no task means all tasks."""

    name: str
    title: str
    task: str
    higher_is_better: bool
    factor: float = 1.0
    digits: int = 2


class Paper(NamedTuple):
    """The paper's numbers, by method."""

    table: str  # from which the scores are
    scores: Mapping[str, Mapping[str, str]]  # by metric too, as printed
    distances: Mapping[str, Sequence[float]] = {}  # covered, shortest, ratio
    note: str = ""  # a sentence on the scores
    comparable: bool = True  # whether its scores are in our table


class Distances(NamedTuple):
    """The distances that the summed loss, IUS and IO cover, at one rate and epoch."""

    rate: float
    epoch: int
    values: Frame  # `covered`, `shortest` and `ratio` by method and seed


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run."""

    table: Frame  # of all records
    titles: Mapping[str, str]  # of the methods
    metrics: Sequence[Metric]
    paper: Paper
    source: str  # of the data

    @functools.cached_property
    def chosen(self) -> Frame:
        return choose(self.table)

    @functools.cached_property
    def scores(self) -> dict[str, dict[str, list[float]]]:
        return scores_by_method(self.chosen, self.metrics)

    @functools.cached_property
    def means(self) -> Frame:
        """The scores, with a row for each metric and a column for each method."""
        return pd.DataFrame(self.scores).map(statistics.fmean)

    @functools.cached_property
    def distances(self) -> Distances:
        return measure_distances(self.table)

    def gain(self, metric: Metric, new: str, old: str) -> Difference:
        """How much better a method is than another method, with the same seeds."""
        scores = (np.array(self.scores[name][metric.name]) for name in (new, old))
        sign = 1 if metric.higher_is_better else -1
        return paired(*(sign * metric.factor * own for own in scores))

    @property
    def results(self) -> dict[str, Any]:
        """The numbers of the tables, for `results.json`."""
        rate, epoch, values = self.distances
        records = values.reset_index().to_dict("records")
        distances = {"rate": rate, "epoch": epoch, "values": records}
        return {"scores": self.scores, "distances": distances}


def choose(table: Frame) -> Frame:
    """Returns the rows at the rate with the lowest validation loss, a mean over seeds.

    Every method and every single task has its own rate.
    """
    losses = select(table, name="best_loss")
    own = losses.groupby(["method", "only", "rate"], sort=False)["value"]
    best = own.agg(statistics.fmean).groupby(["method", "only"], sort=False).idxmin()
    keys = pd.MultiIndex.from_frame(table[["method", "only", "rate"]])
    return table[keys.isin(list(best))]


def in_order(table: Frame) -> list[str]:
    """Returns the names of the methods, single tasks first."""
    return sorted(table["method"].unique(), key=lambda name: name != SINGLE)


def in_families(table: Frame) -> list[str]:
    """Returns the names of the summed loss, IUS and IO, with and without groups."""
    return [name for name in in_order(table) if name.split("_")[0] in _FAMILIES]


def measure_distances(table: Frame) -> Distances:
    """Returns distances at the lowest validation loss, a mean over the methods."""
    own = table[table["method"].isin(in_families(table))]
    rate = select(own, name="best_loss").groupby("rate")["value"].mean().idxmin()
    losses = select(own, name="validation_loss", rate=rate).fillna(np.inf)
    epoch = losses.groupby("epoch")["value"].mean().idxmin()
    there = select(own, rate=rate, epoch=epoch)
    values = there[there["name"].isin(["covered", "shortest"])].pivot(
        index=["method", "seed"], columns="name", values="value"
    )
    ratio = values["covered"] / values["shortest"]
    return Distances(float(rate), int(epoch), values.assign(ratio=ratio))


def scores_by_method(
    chosen: Frame, metrics: Sequence[Metric]
) -> dict[str, dict[str, list[float]]]:
    """Returns the test metrics; a single task has only the metrics of its own task.

    Single tasks have no metrics of all tasks together.
    """
    values = chosen.groupby(["method", "only", "name"])["value"].agg(list)
    whole = any(not metric.task for metric in metrics)
    return {
        method: {
            metric.name: values[
                method, metric.task if method == SINGLE else "", f"test_{metric.name}"
            ]
            for metric in metrics
        }
        for method in in_order(chosen)
        if method != SINGLE or not whole
    }


def make_report(
    title: str,
    command: str,
    outcome: Outcome,
    costs: str,
    settings: Any,
    verdicts: Sequence[Verdict],
) -> str:
    """Returns the tables as Markdown; the caller gives the table of costs."""
    note = outcome.paper.note if outcome.paper.comparable else ""
    note = note and f"\n{note}"
    claims = _VERDICTS + verdict_table(verdicts) if verdicts else ""
    others = paper_section(outcome) + growth_section(outcome)
    epochs, seeds = count(settings.epochs, "epoch"), count(settings.seeds, "seed")
    return f"""# {title}

`{command}`

{outcome.source}. Adam, batch {settings.batch_size}, {epochs}, {seeds} (± is their
standard deviation).

## Test ({outcome.paper.table})

Scores are measured at the learning rate and the epoch of the lowest validation loss,
which is a mean over the tasks. Ranks are means over the metrics; methods share a rank
if the seeds show no clear difference. Δm is the relative gain over single tasks.{note}

{summary_table(outcome)}

{others}## Lowest validation loss by learning rate

{rates_table(outcome)}

## Choices of validation

A rate at the edge of the grid may not be the best. Temporary memory is the memory of
the compiled program without its arguments and results.

{choices_table(outcome)}

## Cost

{costs}

## Distance in the shared parameters

{distance_table(outcome)}
{claims}
"""


def summary_table(outcome: Outcome) -> str:
    """Returns the test metrics, with the paper's metrics, ranks and gains."""
    metrics, theirs = outcome.metrics, outcome.paper.scores
    in_paper = _in_paper(outcome) if outcome.paper.comparable else []
    ranked = [name for name in outcome.scores if name != SINGLE]
    scores = [[outcome.scores[name][m.name] for m in metrics] for name in ranked]
    ranks = mean_rank(scores, [metric.higher_is_better for metric in metrics])
    rank_of = dict(zip(ranked, ranks, strict=True))
    gains = gains_over_single(outcome.means, metrics)
    arrows = [f"{m.title} {'↑' if m.higher_is_better else '↓'}" for m in metrics]
    header = ["method", *arrows, "rank"]
    header += ["Δm [%]"] * bool(gains) + [f"{m.title}, paper" for m in in_paper]
    rows = []
    for name, own in outcome.scores.items():
        cells = [number(own[m.name], m.factor, m.digits) for m in metrics]
        cells += [f"{rank_of[name]:.2f}" if name in rank_of else ""]
        cells += [f"{100 * gains[name]:+.2f}"] if gains else []
        cells += [theirs.get(name, {}).get(m.name, "") for m in in_paper]
        rows.append([outcome.titles[name], *cells])
    return markdown_table(header, rows)


def paper_section(outcome: Outcome) -> str:
    """Returns the paper's scores, if they use other measures than ours."""
    if outcome.paper.comparable:
        return ""
    metrics, scores = _in_paper(outcome), outcome.paper.scores
    header = ["method", *(metric.title.split(" [")[0] for metric in metrics)]
    rows = [
        [outcome.titles[name], *(scores[name].get(m.name, "") for m in metrics)]
        for name in outcome.scores
        if name in scores
    ]
    title = "## The paper's scores, of other measures"
    return f"{title}\n\n{outcome.paper.note}\n\n{markdown_table(header, rows)}\n\n"


def _in_paper(outcome: Outcome) -> list[Metric]:
    names = set().union(*outcome.paper.scores.values())
    return [metric for metric in outcome.metrics if metric.name in names]


def gains_over_single(means: Frame, metrics: Sequence[Metric]) -> dict[str, float]:
    """Returns relative gains over single tasks, if any; all tasks weigh the same."""
    if SINGLE not in means:
        return {}
    if not np.all(np.isfinite(means[SINGLE]) & (means[SINGLE] != 0)):
        return {}
    higher, parts = np.array([metric.higher_is_better for metric in metrics]), []
    for task in dict.fromkeys(metric.task for metric in metrics):
        own = np.array([metric.task == task for metric in metrics])
        parts.append(delta_m(means[own].T, means[own][SINGLE], higher[own]))
    return dict(zip(means, np.mean(parts, axis=0), strict=True))


def growth_section(outcome: Outcome) -> str:
    """Returns growth rates over the summed loss, if all metrics are errors."""
    if any(metric.higher_is_better for metric in outcome.metrics):
        return ""
    header = ["method", *(metric.title.split(" [")[0] for metric in outcome.metrics)]
    rows = []
    for name in outcome.scores:
        rates = 100 * growth_rate(outcome.means[name], outcome.means[SUM])
        rows.append([outcome.titles[name], *(f"{rate:+.2f}" for rate in rates)])
    title = "## Growth rate over the summed loss [%]"
    return f"{title}\n\n{markdown_table(header, rows)}\n\n"


def rates_table(outcome: Outcome) -> str:
    """Returns the lowest validation losses by learning rate."""
    losses = select(outcome.table, name="best_loss")
    rates = sorted(losses["rate"].unique())
    rows = []
    for (method, only), own in losses.groupby(["method", "only"], sort=False):
        found = own.groupby("rate")["value"].agg(lambda values: number(values, 1, 4))
        name = f"{only}, single" if only else outcome.titles[method]
        rows.append([name, *(found.get(rate, "") for rate in rates)])
    return markdown_table(["method", *map(_name_of, rates)], rows)


def choices_table(outcome: Outcome) -> str:
    """Returns the choices of validation, and the memory of the compiled step."""
    header = ["method", "learning rate", "best epochs"]
    header += ["temporary memory [MiB]", "compilation [s]"]
    rows = []
    for method in in_order(outcome.chosen):
        own = select(outcome.chosen, method=method)
        epochs = select(own, name="best_epoch")
        tried = select(outcome.table, method=method)["rate"]
        edges = (tried.min(), tried.max()) if tried.nunique() > 1 else ()
        rates = [
            f"{_name_of(rate)}{' (edge)' * (rate in edges)}"
            for rate in epochs.drop_duplicates("only")["rate"]
        ]
        cells = [", ".join(rates), ", ".join(f"{own:g}" for own in epochs["value"])]
        memory = select(own, name="temporary_bytes")["value"].max() / 2**20
        compilation = select(own, name="compile_seconds")["value"].max()
        cells += [f"{memory:.1f}", f"{compilation:.1f}"]
        rows.append([outcome.titles[method], *cells])
    return markdown_table(header, rows)


def _name_of(rate: float) -> str:
    return "none" if rate == NO_RATE else f"{rate:g}"


def distance_table(outcome: Outcome) -> str:
    """Returns distances in the shared parameters (Table 4 of Pascal et al.)."""
    rate, epoch, values = outcome.distances
    header = ["method", *values, *(f"{name}, paper" for name in values)]
    rows = []
    for name in in_families(outcome.table):
        numbers = [number(values.loc[name, column]) for column in values]
        theirs = [f"{value:.2f}" for value in outcome.paper.distances.get(name, ())]
        rows.append([outcome.titles[name], *numbers, *(theirs or [""] * 3)])
    caption = f"Learning rate {rate:g}, after epoch {epoch}."
    return f"{caption}\n\n{markdown_table(header, rows)}"
