"""The long table of a vision experiment, told: choices, tables, numbers."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.lab.comparison import delta_m, growth_rate, mean_rank
from experiments.lab.tables import cost_table, markdown_table, number, select
from experiments.lab.vision.methods import SINGLE, SUM
from experiments.lab.vision.problem import Metric

# From the name of a method to the paper's numbers as printed, by metric.
Paper = Mapping[str, Mapping[str, str]]
# By method and metric, the numbers of the seeds.
Scores = Mapping[str, Mapping[str, Sequence[float]]]
Titles = Mapping[str, str]


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows at the rate of the lowest validation loss, mean over seeds.

    Every method has its own rate, and so has every single task.
    """
    losses = select(table, name="best_loss")
    own = losses.groupby(["method", "only", "rate"], sort=False)["value"]
    best = own.agg(statistics.fmean).groupby(["method", "only"], sort=False).idxmin()
    keys = pd.MultiIndex.from_frame(table[["method", "only", "rate"]])
    return table[keys.isin(list(best))]


def in_order(table: pd.DataFrame) -> list[str]:
    """Returns the names of the methods, single tasks first."""
    return sorted(table["method"].unique(), key=lambda name: name != SINGLE)


def in_families(table: pd.DataFrame) -> list[str]:
    """Returns the names of the summed loss, IUS and IO, in groups or not."""
    families = ("sum", "ius", "io")
    return [name for name in in_order(table) if name.split("_")[0] in families]


def scores_by_method(
    chosen: pd.DataFrame, metrics: Sequence[Metric]
) -> dict[str, dict[str, list[float]]]:
    """Returns the test metrics; of single tasks those of the one that was trained.

    Single tasks have none of all tasks together.
    """

    def values(method: str, metric: Metric) -> list[float]:
        only = metric.task if method == SINGLE else ""
        name = f"test_{metric.name}"
        return select(chosen, method=method, only=only, name=name)["value"].tolist()

    whole = any(not metric.task for metric in metrics)
    methods = [name for name in in_order(chosen) if name != SINGLE or not whole]
    return {
        method: {metric.name: values(method, metric) for metric in metrics}
        for method in methods
    }


def make_report(
    table: pd.DataFrame,
    scores: Scores,
    costs: Mapping[str, Mapping[str, float]],
    titles: Titles,
    metrics: Sequence[Metric],
    *,
    heading: str,
    paper: Paper,
    paper_table: str,
    paper_distances: Mapping[str, Sequence[float]],
) -> str:
    """Returns the tables as Markdown."""
    return f"""{heading}

## Test ({paper_table})

At the learning rate and the epoch of the lowest validation loss, mean over the tasks.
Ranks are averaged over the metrics; Δm is the gain over single tasks.

{summary_table(scores, titles, metrics, paper)}

{growth_section(scores, titles, metrics)}## Lowest validation loss by learning rate

{rates_table(table)}

## Choices of validation

Temporary memory is that of the compiled step without its arguments and results.

{choices_table(choose(table), titles)}

## Cost of a step

After the training, methods in turns, the fastest of several; multiples are of the
summed loss, whose program single tasks run, one by one.

{cost_table(costs["seconds"], costs["operations"], titles, SUM)}

## Distance in the shared parameters

{distance_table(table, titles, paper_distances)}
"""


def summary_table(
    scores: Scores, titles: Titles, metrics: Sequence[Metric], paper: Paper
) -> str:
    """Returns the test metrics, the paper's beside them, ranks and gains."""
    in_paper = [m for m in metrics if any(m.name in each for each in paper.values())]
    higher = [metric.higher_is_better for metric in metrics]
    means = _means(scores, metrics)
    ranked = [name for name in scores if name != SINGLE]
    values = np.array([means[name] for name in ranked])
    worst = np.where(higher, -np.inf, np.inf)
    ranks = mean_rank(np.where(np.isnan(values), worst, values), higher)
    rank_of = {name: f"{rank:.2f}" for name, rank in zip(ranked, ranks, strict=True)}
    gains = _gains(means, metrics)
    header = ["method", *(metric.arrow for metric in metrics), "rank"]
    header += ["Δm [%]"] * bool(gains) + [f"{m.title}, paper" for m in in_paper]
    lines = []
    for name, own in scores.items():
        cells = [number(own[m.name], m.factor, m.digits) for m in metrics]
        gain = [gains[name]] if gains else []
        theirs = [paper.get(name, {}).get(m.name, "") for m in in_paper]
        lines.append([titles[name], *cells, rank_of.get(name, ""), *gain, *theirs])
    return markdown_table(header, lines)


def _means(scores: Scores, metrics: Sequence[Metric]) -> dict[str, list[float]]:
    return {
        name: [statistics.fmean(own[metric.name]) for metric in metrics]
        for name, own in scores.items()
    }


def _gains(
    means: Mapping[str, Sequence[float]], metrics: Sequence[Metric]
) -> dict[str, str]:
    """Relative gains over single tasks in percent; a task counts as one."""
    if SINGLE not in means:
        return {}
    values, parts = np.array(list(means.values())), []
    for task in dict.fromkeys(metric.task for metric in metrics):
        own = [i for i, metric in enumerate(metrics) if metric.task == task]
        base = np.array([means[SINGLE][i] for i in own])
        if not np.all(np.isfinite(base) & (base != 0)):
            return {}
        higher = [metrics[i].higher_is_better for i in own]
        parts.append(delta_m(values[:, own], base, higher))
    gains = np.mean(parts, axis=0)
    return {name: f"{100 * gain:+.2f}" for name, gain in zip(means, gains, strict=True)}


def growth_section(scores: Scores, titles: Titles, metrics: Sequence[Metric]) -> str:
    """Returns growth rates over the summed loss, if all metrics are errors."""
    if any(metric.higher_is_better for metric in metrics):
        return ""
    means = _means(scores, metrics)
    lines = []
    for name, own in means.items():
        growths = 100 * growth_rate(own, means[SUM])
        lines.append([titles[name], *(f"{growth:+.2f}" for growth in growths)])
    header = ["method", *(metric.title.split(" [")[0] for metric in metrics)]
    title = "## Growth rate over the summed loss [%]"
    return f"{title}\n\n{markdown_table(header, lines)}\n\n"


def rates_table(table: pd.DataFrame) -> str:
    """Returns the lowest validation losses by learning rate."""
    losses = select(table, name="best_loss")
    rates = sorted(losses["rate"].unique())
    lines = []
    for (method, only), own in losses.groupby(["method", "only"], sort=False):
        found = [select(own, rate=rate)["value"].tolist() for rate in rates]
        cells = [number(each, 1, 4) if each else "" for each in found]
        lines.append([f"{method}_{only}" if only else method, *cells])
    return markdown_table(["method", *(f"{rate:g}" for rate in rates)], lines)


def choices_table(chosen: pd.DataFrame, titles: Titles) -> str:
    """Returns what validation chose, and what the compiled step needs."""
    lines = []
    for method in in_order(chosen):
        own = select(chosen, method=method)
        epochs = select(own, name="best_epoch")
        rates = epochs.drop_duplicates("only")["rate"]
        memory = select(own, name="temporary_bytes")["value"].max() / 2**20
        compilation = select(own, name="compile_seconds")["value"].max()
        cells = [
            ", ".join(f"{choice:g}" for choice in choices)
            for choices in (rates, epochs["value"])
        ]
        lines.append([titles[method], *cells, f"{memory:.1f}", f"{compilation:.1f}"])
    header = ["method", "learning rate", "best epochs"]
    header += ["temporary memory [MiB]", "compilation [s]"]
    return markdown_table(header, lines)


def distance_table(
    table: pd.DataFrame, titles: Titles, paper: Mapping[str, Sequence[float]]
) -> str:
    """Returns distances in the shared parameters, all at one rate and epoch (Table 4).

    Rate and epoch are those that validation chose for the summed loss.
    """
    best = select(choose(table), method=SUM, name="best_epoch")
    rate, epoch = best["rate"].iloc[0], round(statistics.median(best["value"]))
    header = ["method", "covered", "shortest", "ratio"]
    header += [f"{name}, paper" for name in header[1:]]
    lines = []
    for name in in_families(table):
        at = select(table, method=name, rate=rate, epoch=epoch)
        covered = select(at, name="covered")["value"].to_numpy()
        shortest = select(at, name="shortest")["value"].to_numpy()
        numbers = [number(each) for each in (covered, shortest, covered / shortest)]
        theirs = [f"{value:.2f}" for value in paper.get(name, ())] or [""] * 3
        lines.append([titles[name], *numbers, *theirs])
    caption = f"Learning rate {rate:g}, after epoch {epoch}."
    return f"{caption}\n\n{markdown_table(header, lines)}"
