"""Tables, figures and verdicts of MultiMNIST, compared with Table 2 of Aligned-MTL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import mtlopt
from experiments.lab.comparison import paired
from experiments.lab.figures import COLOURS, Curve, draw_dots, draw_panels
from experiments.lab.tables import (
    Frame,
    cost_table,
    count,
    curve,
    markdown_table,
    number,
    select,
)
from experiments.lab.verdicts import Verdict, verdict_table

TASKS = ("left", "right")
SPREAD = ("mean", "std", "max", "min")

# Table 2 of the paper: accuracy of the left and the right digit in percent, and mean,
# standard deviation, maximum and minimum of the dominance rate. For the aligned methods
# the table gives the rate after alignment.
PAPER = {
    "mgda": ((96.83, 95.06), (1.63, 1.45, 38.03, 1.004)),
    "mgda_ub": ((96.76, 94.96), (1.41, 0.36, 4.00, 1.004)),
    "pcgrad": ((97.04, 95.29), (1.45, 0.37, 3.76, 1.005)),
    "gradnorm": ((96.51, 95.31), (3.12, 0.83, 8.91, 1.704)),
    "uncertainty": ((97.03, 95.06), (1.47, 0.44, 5.17, 1.007)),
    "aligned_mtl": ((97.10, 95.45), (1.00, 0.0, 1.00, 1.000)),
    "aligned_mtl_ub": ((96.98, 95.45), (1.36, 0.29, 3.17, 1.005)),
}


def make_report(
    table: Frame,
    costs: Mapping[str, Mapping[str, float]],
    settings: Any,
    source: str,
) -> str:
    """Returns the tables as Markdown."""
    titles = {name: mtlopt.METHODS[name].title for name in settings.methods}
    base = "sum_tasks" if "sum_tasks" in titles else settings.methods[0]
    return "\n\n".join(
        [
            "# MultiMNIST",
            f"Data: {source}. LeNet, Adam, learning rate {settings.learning_rate:g} "
            f"({settings.decay}), batch {settings.batch_size}, "
            f"{count(settings.epochs, 'epoch')}, {count(settings.seeds, 'seed')} (± is "
            'their standard deviation). "Paper" is Table 2 of Aligned-MTL, on full '
            "MNIST.",
            "## Test accuracy [%]",
            _accuracy_table(table, titles),
            "## Dominance rate of the task gradients over the shared parameters",
            f"Measured every {settings.dominance_every} steps, over all seeds. "
            '"Aligned" is the rate after the method\'s alignment.',
            _dominance_table(table, titles),
            "## How far the latent may be trusted",
            "Two numbers, from the same steps, are 1 if latent gradients replace "
            "gradients of the shared parameters without error. Spread is the condition "
            "number of the encoder's Jacobian J on the span of the task gradients. It "
            "is the error in the lengths and angles of these gradients for methods in "
            "latent space. Cosine is between a task's latent gradient and the "
            "direction in which a step along this gradient moves the latent, by J Jᵀ. "
            "A line search in the latent relies on a cosine near 1.",
            _latent_table(table, titles),
            "## Cost of a step",
            "A step is measured for one seed after the training. The methods take "
            "turns, and the fastest of several rounds counts. Multiples are relative "
            f"to {titles[base]}.",
            cost_table(costs["seconds"], costs["operations"], titles, base),
            "## Claims",
            "Differences are between paired seeds, with their 95 % interval. "
            "Accuracies are means over both digits, in points.",
            verdict_table(verdicts(table)),
        ]
    )


def _accuracy_table(table: Frame, titles: Mapping[str, str]) -> str:
    header = ["method"]
    header += [f"{task}, {at} epoch" for at in ("best", "last") for task in TASKS]
    header += [f"{task}, paper" for task in TASKS]
    rows = []
    for method, title in titles.items():
        row = [title]
        for at in ("best", "last"):
            own = select(table, method=method, name=f"test_accuracy_{at}")
            values = own.pivot(index="seed", columns="part", values="value")
            row += [number(values[task].tolist(), 100) for task in TASKS]
        paper = PAPER.get(method)
        row += [f"{value:.2f}" for value in paper[0]] if paper else ["", ""]
        rows.append(row)
    return markdown_table(header, rows)


def _dominance_table(table: Frame, titles: Mapping[str, str]) -> str:
    header = ["method", "gradients", *SPREAD, *(f"{name}, paper" for name in SPREAD)]
    rows = []
    for method, title in titles.items():
        own = select(table, method=method)
        for kind, name in (("raw", "dominance"), ("aligned", "dominance_aligned")):
            rates = select(own, name=name)["value"]
            if not len(rates):
                continue
            how: Any = {"skipna": False}  # NaN is not left out
            spread = [rates.mean(**how), rates.std(ddof=0, **how)]
            spread += [rates.max(**how), rates.min(**how)]
            row = [title, kind, *(f"{value:.3f}" for value in spread)]
            rows.append([*row, *[""] * len(SPREAD)])
        if method in PAPER:  # next to our comparable numbers (aligned, if any)
            rows[-1][-len(SPREAD) :] = [f"{value:.3f}" for value in PAPER[method][1]]
    return markdown_table(header, rows)


def _latent_table(table: Frame, titles: Mapping[str, str]) -> str:
    header = ["method", "spread, mean", "spread, max", "cosine, mean", "cosine, min"]
    rows = []
    for method, title in titles.items():
        own = select(table, method=method)
        spread = select(own, name="latent_spread")["value"].to_numpy()
        cosine = select(own, name="latent_cosine")["value"].to_numpy()
        numbers = (spread.mean(), spread.max(), cosine.mean(), cosine.min())
        rows.append([title, *(f"{value:.3f}" for value in numbers)])
    return markdown_table(header, rows)


def verdicts(table: Frame) -> list[Verdict]:
    """Returns the verdicts on claims of Table 2, for methods that were trained."""

    def by_seed(method: str, name: str, factor: float = 1.0) -> np.ndarray:
        own = select(table, method=method, name=name)
        wide = own.pivot(index=["epoch", "part"], columns="seed", values="value")
        return factor * wide.to_numpy().mean(axis=0)  # NaN is not left out

    methods, found = set(table["method"]), []
    rivals = [name for name in PAPER if name in methods and name != "aligned_mtl"]
    if "aligned_mtl" in methods:
        rate = by_seed("aligned_mtl", "dominance_aligned").max()
        claim = "the dominance rate is 1 after θ-alignment"
        found.append(Verdict(claim, f"{rate:.4f}", bool(rate < 1.001)))
    if "aligned_mtl_ub" in methods:
        rates = ("dominance_aligned", "dominance")
        after, before = (by_seed("aligned_mtl_ub", name) for name in rates)
        change = paired(after, before)
        claim = "Z-alignment lowers the dominance rate (to 1.36)"
        numbers = f"{before.mean():.3f} to {after.mean():.3f}: {change:.3f}"
        found.append(Verdict(claim, numbers, _holds([-change.sign])))
    if {"gradnorm", "sum_tasks"} <= methods:
        pair = [by_seed(name, "dominance") for name in ("gradnorm", "sum_tasks")]
        claim = "GradNorm's dominance rate is twice the others' (3.12)"
        numbers = f"{pair[0].mean():.3f}; summed loss {pair[1].mean():.3f}"
        sign = paired(pair[0], 2 * pair[1]).sign
        found.append(Verdict(claim, numbers, _holds([sign])))
    if "aligned_mtl" in methods and rivals:
        points = {m: by_seed(m, "test_accuracy_best", 100.0) for m in methods}
        over = {m: paired(points["aligned_mtl"], points[m]) for m in rivals}
        best = max(rivals, key=lambda name: points[name].mean())
        claim = "θ-alignment is more accurate than all others (by 0.06 points or more)"
        numbers = f"over {mtlopt.METHODS[best].title}: {over[best]:.2f}"
        signs = [change.sign for change in over.values()]
        found.append(Verdict(claim, numbers, _holds(signs)))
    return found


def _holds(signs: list[int]) -> bool | None:
    """True if all signs are positive, False if one is negative, otherwise None."""
    return False if min(signs) < 0 else True if min(signs) > 0 else None


def draw_figures(table: Frame, settings: Any, source: str, out: Path) -> None:
    """Draws learning curves, test accuracy and dominance rates into `out`."""
    curves, rates, dots = {}, {}, {}
    for method in settings.methods:
        own, title = select(table, method=method), mtlopt.METHODS[method].title
        curves[title], dots[title] = [], {}
        for colour, task in zip(COLOURS, TASKS, strict=False):
            label = f"{task} digit"
            epochs, values = curve(select(own, name="validation_accuracy", part=task))
            curves[title].append(Curve(label, epochs, 100 * values, colour))
            test = select(own, name="test_accuracy_best", part=task)["value"]
            dots[title][label] = (100 * test).tolist()
        rates[title] = [
            Curve(label, *_by_step(select(own, name=name)), colour)
            for name, label, colour in (
                ("dominance", "task gradients", COLOURS[3]),
                ("dominance_aligned", "after alignment", COLOURS[2]),
            )
            if name in set(own["name"])
        ]
    bands = "line: mean over seeds, band: minimum to maximum"
    draw_panels(
        out / "learning_curves.png",
        curves,
        xlabel="epoch",
        ylabel="validation accuracy [%]",
        title=f"Learning curves ({bands}). Data: {source}",
    )
    draw_panels(
        out / "dominance.png",
        rates,
        xlabel="measurement",
        ylabel="dominance rate",
        title=f"Dominance rate ({bands}). Data: {source}",
        log=True,
    )
    draw_dots(
        out / "accuracy.png",
        dots,
        xlabel="test accuracy [%] at the best validation epoch",
        title="Test accuracy (dot: mean over seeds, bar: minimum to maximum). "
        f"Data: {source}",
    )


def _by_step(rates: Frame) -> tuple[range, Any]:
    """Returns the steps of the measurements, and rates `[measurements, seeds]`."""
    wide = rates.pivot(index=["epoch", "part"], columns="seed", values="value")
    return range(len(wide)), wide.sort_index().to_numpy()
