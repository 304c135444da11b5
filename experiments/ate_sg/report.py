"""The command that the three ATE-SG experiments share, its tables and its figures."""

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.ate_sg.claims import claims, cost_claims
from experiments.ate_sg.costs import Costs, count_steps, flop_costs, parameter_costs
from experiments.ate_sg.oscillation import MEASURES, oscillation
from experiments.ate_sg.training import COST_ROUNDS, Phases, Run, Settings
from experiments.lab import tables
from experiments.lab.batches import num_examples
from experiments.lab.figures import COLOURS, Curve, draw_panels
from experiments.lab.folder import RunFolder
from experiments.lab.loop import train
from experiments.lab.settings import check_batch_size, loaded
from experiments.lab.tables import Frame, select
from experiments.lab.verdicts import verdict_table

# Part of `--help`.
METHOD = """\
Trains two blocks of parameters, the shared parameters and the heads. Both move at the
same time (Classic SG), or they take turns of E0 = Ets epochs each (ATE-SG). Prints test
scores next to the scores of the paper: Bellavia, Della Santa and Papini, "ATE-SG:
alternate through the epochs stochastic gradient for multi-task neural networks", 2026.
Figures show the losses over epochs and over cost. The learning rate falls on plateaus
of the validation loss. Training ends if the validation loss does not fall for a long
time. Scores are measured at the best epoch."""
METRICS = {"recall": "recall", "precision": "precision", "f1": "F1"}
LOSSES = {"train_loss": "training loss", "validation_loss": "validation loss"}
MEDIANS = {
    "epochs": "epochs",
    "start_epochs": "at the first rate",
    "best_epoch": "best epoch",
    "cost_by_parameters": "cost by parameters",
    "cost_by_flops": "cost by FLOPs",
    "best_validation_loss": "validation loss",
    "best_train_loss": "training loss",
    "last_train_loss": "at the end",
}
COMPARED = ["optimizer", "rate"]  # runs with the same optimizer and learning rate
Units = Mapping[str, Costs]  # the cost of epochs, by parameters and by FLOPs
Paper = Mapping[str, Mapping[str, str]]


def read_paper(tasks: Iterable[str], text: str) -> Paper:
    """Reads recall, precision and F1 of all tasks, with a line for each `Run.name`."""
    names = [f"{name} {task}" for name in METRICS for task in tasks]
    return tables.read_table(names, text)


def run_experiment(
    name: str,
    title: str,
    settings: Settings,
    load: Callable[[Any], tuple[Any, str]],
    paper: Paper,
    argv: Sequence[str],
    limit: str = "",
) -> None:
    """Trains what `load` returns; writes figures, and tables with the paper's numbers.

    The report begins with `limit`, which says what the data cannot show.
    """
    problem, source = loaded(load, settings)
    check_batch_size(settings.batch_size, num_examples(problem.splits["train"]))
    with RunFolder(settings) as folder:
        phases = {each: Phases(problem, settings, each) for each in settings.optimizers}
        trainings = [phases[run.optimizer].training(run) for run in settings.runs]
        table = train(trainings, settings.epochs, problem.tasks, folder)
        size, num_train = settings.batch_size, num_examples(problem.splits["train"])
        counts = count_steps(problem, size)
        units = {
            "parameters": parameter_costs(problem),
            "flops": flop_costs(counts, num_train, size),
        }
        seconds = {each: own.seconds() for each, own in phases.items()}
        summary = summarize(table, units)
        groups = summary.groupby(COMPARED, sort=False)
        verdicts = [each for _, own in groups for each in claims(own, LOSSES)]
        verdicts += cost_claims(units, counts, settings.phases)
        command = tables.command_line(name, argv)
        seeds = tables.count(settings.seeds, "seed")
        sections = [
            f"# {title}",
            limit,
            f"`{command}`",
            f"{source}. Batch {size}, at most {settings.epochs} epochs, {seeds}.",
            make_tables(summary, paper),
            cost_table(units, seconds),
            "## Verdicts",
            "These are the paper's claims of section 4. Ratios are to the training "
            "without phases. They are means over paired seeds, with 95 % intervals.",
            verdict_table(verdicts),
        ]
        report = "\n\n".join(filter(None, sections)) + "\n"
        folder.write_results(
            settings,
            report,
            command=command,
            source=source,
            costs={unit: costs._asdict() for unit, costs in units.items()},
            seconds_per_epoch=seconds,
            runs=summary.to_dict("records"),
            verdicts=verdicts,
            paper=paper,
        )
        draw_figures(table, units, source, folder.path)


def by_run(table: Frame) -> Iterator[tuple[Run, Frame]]:
    """Yields the runs of a table, each run with its rows."""
    for key, own in table.groupby(list(Run._fields), sort=False):
        yield Run(*key), own


def by_epoch(own: Frame, name: str) -> np.ndarray:
    """Returns a run's numbers with this name, summed over tasks, `[epochs, seeds]`."""
    rows = select(own, name=name)
    wide = rows.pivot(index="epoch", columns=["seed", "part"], values="value")
    shape = (len(wide), len(rows["seed"].unique()), -1)
    return wide.to_numpy().reshape(shape).sum(axis=-1)


def summarize(table: Frame, units: Units) -> Frame:
    """Returns the numbers of the tables: a row for each run and seed."""
    summary = []
    for _, group in table.groupby(COMPARED, sort=False):
        summary += _summarize(group, units)
    return pd.DataFrame(summary)


def _summarize(group: Frame, units: Units) -> list[dict[str, Any]]:
    runs = dict(by_run(group))
    rates = {run.length: by_epoch(own, "learning_rate") for run, own in runs.items()}
    losses = {
        name: {run.length: by_epoch(own, name) for run, own in runs.items()}
        for name in LOSSES
    }
    measures = {name: oscillation(each, rates) for name, each in losses.items()}
    summary = []
    for run, own in runs.items():
        for seed, (_, rows) in enumerate(own.groupby("seed")):
            ends = ("epochs", "best_epoch")
            epochs, best = (int(by_epoch(rows, end)[-1, 0]) for end in ends)
            row = {**run._asdict(), "training": run.title, "seed": seed}
            rate = rates[run.length][:, seed]
            starts = int(np.sum(rate == rate[0]))
            row |= {"epochs": epochs, "start_epochs": starts, "best_epoch": best}
            for unit, costs in units.items():
                cost = costs.until(best, run.length)
                row[f"cost_by_{unit}"] = cost[-1] if best else math.nan
            for name, values in losses.items():
                loss = values[run.length][:epochs, seed]  # without later epochs
                row[f"last_{name}"] = loss[-1]
                row[f"best_{name}"] = loss[best - 1] if best else math.nan
                each = measures[name].loc[run.length, seed]
                row |= {f"{name}_{key}": each[key] for key in MEASURES}
            for metric, title in METRICS.items():
                end = select(rows, name=f"test_{metric}")
                titles = (f"{title}, {task}" for task in end["part"])
                row |= dict(zip(titles, end["value"], strict=True))
            summary.append(row)
    return summary


def make_tables(summary: Frame, paper: Paper) -> str:
    """Returns the tables of scores, training and oscillation as Markdown."""
    parts = []
    for (optimizer, rate), own in summary.groupby(COMPARED, sort=False):
        numbers = own.groupby("training", sort=False)[summary.columns[5:]]
        medians = numbers.agg(lambda values: np.median(values))  # NaN stays NaN
        for name in LOSSES:
            zigzag = medians[f"{name}_zigzag"]  # the training without phases is last
            medians[f"{name}_relative"] = zigzag / (zigzag.iloc[-1] or math.nan)
        fields = ("zigzag", "relative", "spike")
        oscillations = {
            f"{name}_{field}": f"{title}: {field}" if field == "zigzag" else field
            for name, title in LOSSES.items()
            for field in fields
        }
        parts += [
            f"## Test scores, {optimizer.upper()} from {rate:g}",
            "Test scores of the best epoch are in percent. They are averages over the "
            "classes, weighted by class size (± is the standard deviation over seeds).",
            _scores_table(own, paper),
            f"## Training, {optimizer.upper()} from {rate:g}",
            "Values are medians over seeds. Losses are measured at the best epoch or "
            "at the end. Costs are counted until the best epoch, in full epochs.",
            _median_table(medians, MEDIANS),
            f"## Oscillation, {optimizer.upper()} from {rate:g}",
            "These are measures of the summed loss at equal learning rates, as medians "
            "over seeds. The zigzag is the median distance from the mean of both "
            "neighbouring epochs; it is also given relative to the training without "
            "phases. The spike is the distance from the lowest to the highest of the "
            "20 places in a cycle of E0 = Ets = 10, relative to the epochs around.",
            _median_table(medians, oscillations, digits=3),
        ]
    return "\n\n".join(parts)


def _scores_table(own: Frame, paper: Paper) -> str:
    names, rows = [name for name in own if ", " in name], []
    for run, each in by_run(own):
        rows.append([run.title, *(tables.number(each[name], 100) for name in names)])
        # At the same rate, if the paper has results for it.
        printed = (run._replace(rate=rate) for rate in (run.rate, 1e-2, 1e-3))
        for near in [each for each in printed if each.name in paper][:1]:
            values = map(float, paper[near.name].values())
            cells = (f"{100 * value:.2f}" for value in values)
            rows.append([f"— paper, from {near.rate:g}", *cells])
    return tables.markdown_table(["training type", *names], rows)


def _median_table(medians: Frame, columns: Mapping[str, str], digits: int = 4) -> str:
    cells = medians[list(columns)].map(lambda value: f"{value:.{digits}g}")
    return tables.frame_table(cells.rename(columns=columns), "training type")


def cost_table(units: Units, seconds: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the table of the costs of an epoch, by optimizer and phase."""
    table = pd.DataFrame({unit: costs._asdict() for unit, costs in units.items()})
    for name, own in seconds.items():
        table[f"time, {name.upper()}"] = pd.Series(own) / own["full"]
    cells = table.map("{:.3f}".format).replace("nan", "")
    titles = {"shared": "shared parameters", "task": "heads"}
    titles |= {"encode": "encoding, once a task phase"}
    cells = cells.rename(columns={"flops": "operations"}, index=titles)
    return (
        "## Cost of an epoch, that of the full gradient being 1\n\n"
        "Parameters are the paper's estimate: the share of the parameters that "
        "backpropagation passes through. Operations are XLA's count of the compiled "
        "steps, with SG. Time is the time of an epoch of all seeds with its "
        "evaluation. It is measured after the training, with the phases in turns; the "
        f"fastest of {COST_ROUNDS} rounds counts.\n\n"
        f"{tables.frame_table(cells, 'epoch of')}"
    )


def draw_figures(table: Frame, units: Units, source: str, out: Path) -> None:
    """Draws losses (the paper's figures 3, 4, 6 to 9) and learning rates (figure 5)."""
    for (optimizer, rate), group in table.groupby(COMPARED, sort=False):
        losses, rates = collections.defaultdict(list), {}
        for (run, own), colour in zip(by_run(group), itertools.cycle(COLOURS)):
            each = by_epoch(own, "learning_rate")
            epochs, seeds = np.arange(1, len(each) + 1), each.shape[1]
            axes = {"epoch": epochs}
            for unit, costs in units.items():
                axes[MEDIANS[f"cost_by_{unit}"]] = costs.until(len(each), run.length)
            for loss, (by, x) in itertools.product(LOSSES, axes.items()):
                y = by_epoch(own, loss)
                some = np.isfinite(y).any(axis=1)  # nanmedian warns if all are NaN
                curve = Curve(run.title, x[some], y[some], colour, middle=np.nanmedian)
                losses[f"{LOSSES[loss]}, {by}"].append(curve)
            lines = zip(each.T[:, :, None], itertools.cycle(COLOURS))
            rates[run.title] = [  # widths differ, so that equal curves are visible
                Curve(f"seed {seed}", epochs, y, colour, width=4 - 3 * seed / seeds)
                for seed, (y, colour) in enumerate(lines)
            ]
        bands = "line: median of the seeds, band: minimum to maximum"
        for kind, panels, title, xlabel in (
            ("losses", losses, f"Losses ({bands})", "epoch, or cost in epochs"),
            ("learning_rates", rates, "Learning rates", "epoch"),
        ):
            draw_panels(
                out / f"{kind}_{optimizer}_{rate}.png",
                panels,
                xlabel=xlabel,
                ylabel=kind.replace("_", " "),
                title=f"{title}, starting learning rate {rate:g}. {source}",
                log=True,
            )
