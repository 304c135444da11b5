"""Tasks that move in turn, alone or in groups: Pascal et al., 2021 (IUS and IO)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.digits import Digits, load_digits
from experiments.lab.errors import UsageError
from experiments.lab.figures import COLOURS, Curve, draw_panels
from experiments.lab.folder import RunFolder
from experiments.lab.loop import train
from experiments.lab.settings import check_batch_size, loaded, parse
from experiments.lab.tables import Frame, command_line, count, markdown_table, number
from experiments.mtl_io.group_problems import MIXED_TASKS, PARTS, Part
from experiments.mtl_io.group_training import (
    Settings,
    Way,
    make_evaluate,
    make_training,
    measure_costs,
)

NAME = "mtl_io.task_groups"
NUM_ATTRIBUTES = 40
KEYS = ["setting", "learning_rate", "seed", "epoch"]
FAMILIES = ("IUS", "IO")

# Table 3 of the paper, on CelebA: average error and F1 in percent.
PAPER_SCORES: dict[str, dict[str, tuple[float, ...]]] = {
    "attributes": {
        "SUS": (9.20, 68.66),
        "IUS (2 groups)": (9.16, 68.69),
        "IUS (4 groups)": (9.13, 69.01),
        "IUS (8 groups)": (9.10, 68.93),
        "IUS (20 groups)": (9.20, 68.82),
        "IUS (40 groups)": (9.27, 68.97),
        "IO (2 groups)": (9.15, 68.85),
        "IO (4 groups)": (9.11, 69.48),
        "IO (8 groups)": (9.15, 68.55),
        "IO (20 groups)": (9.23, 68.61),
        "IO (40 groups)": (9.24, 68.57),
    },
    "mixed": {},
}
# Table 4: total covered distance, shortest path and ratio, on CelebA and on NYUv2 with
# its three tasks of different nature.
PAPER_DISTANCES: dict[str, dict[str, tuple[float, ...]]] = {
    "attributes": {
        "SUS": (1398.01, 99.66, 14.03),
        "IUS (4 groups)": (5636.18, 223.83, 25.18),
        "IO (4 groups)": (6560.56, 242.55, 27.05),
        "IUS (8 groups)": (14955.87, 387.13, 38.63),
        "IO (8 groups)": (13992.50, 369.67, 37.85),
        "IUS (40 groups)": (65376.36, 837.32, 78.08),
        "IO (40 groups)": (59627.39, 764.42, 78.00),
    },
    "mixed": {
        "SUS": (879.33, 38.77, 22.68),
        "IUS (3 groups)": (2597.74, 67.44, 38.52),
        "IO (3 groups)": (2769.52, 71.06, 38.97),
    },
}
# Columns of the scores: the name of the number, a factor, and digits.
SCORES = {
    "attributes": {
        "validation loss": ("validation_loss", 1, 4),
        "error [%]": ("test_error", 100, 2),
        "F1 [%]": ("test_f1", 100, 2),
    },
    "mixed": {
        "relative loss": ("test_relative_loss", 1, 4),
        "digit error [%]": ("test_digit_error", 100, 2),
        "slant error": ("test_slant_error", 1, 4),
        "ink error [% of area]": ("test_ink_error", 1, 3),
    },
}
# By what settings are compared, and what the paper measured on.
JUDGED = {"attributes": "test_error", "mixed": "test_relative_loss"}
PAPER_DATA = {"attributes": "CelebA", "mixed": "NYUv2"}

DESCRIPTION = """\
Lets tasks move in turn, alone or in random groups, with one Adam state for all (IUS) or
one for each group (IO), beside the summed loss (SUS): Pascal et al., "Improved
optimization strategies for deep multi-task networks", 2021.

--problem attributes  40 binary attributes of real digits, a stand-in for CelebA's 40
                      facial attributes: error and F1 (Table 3), distance covered in the
                      shared parameters (Table 4), loss against learning rate (Fig. 3)
--problem mixed       the digit, its slant and its ink: a classification and two
                      regressions of different scale, in the place of NYUv2 (Fig. 1)

The network is small and dense. Every setting is trained with every learning rate of the
grid; the rate and the epoch are those with the lowest validation loss, for `mixed` of
the losses relative to those of constant predictions.

--full takes the paper's counts, 15 epochs, 3 seeds and 20 groups too, and more learning
rates; for `mixed` 100 epochs (the paper: 500).
"""

FULL = {
    "groups": (2, 4, 8, 20, 40),
    "epochs": 15,
    "mixed_epochs": 100,
    "seeds": 3,
    "learning_rates": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}


def main(argv: Sequence[str]) -> None:
    """Runs the experiment with the options `argv`, see `DESCRIPTION`."""
    settings = read(argv)
    digits = load(settings)
    report, results = [_head(settings, argv)], {}
    with RunFolder(settings) as folder:
        for name in PARTS if settings.problem == "both" else [settings.problem]:
            epochs = settings.mixed_epochs if name == "mixed" else settings.epochs
            part = PARTS[name](digits)
            evaluate = make_evaluate(part)
            trainings = {
                way.title: make_training(name, part, way, settings, evaluate)
                for way in settings.ways(name)
            }
            each, stream = [own for own, _ in trainings.values()], f"{name}_metrics"
            records = train(each, epochs, part.problem.tasks, folder, stream=stream)
            outcome = conclude(name, part, list(trainings), records)
            costs = measure_costs(trainings)
            report.append(make_report(outcome, costs, epochs))
            draw_figures(outcome, settings.ways(name), folder.path)
            results[name] = {
                "data": part.source,
                "chosen_by": f"validation {part.criterion}",
                "best": outcome.best.reset_index().to_dict("records"),
                "distances_at": {"rate": outcome.rate, "epoch": outcome.epoch},
                "distances": outcome.distances.reset_index().to_dict("records"),
                "costs": costs,
                "paper_table_3": PAPER_SCORES[name],
                "paper_table_4": PAPER_DISTANCES[name],
            }
        command, text = command_line(NAME, argv), "\n\n".join(report) + "\n"
        folder.write_results(settings, text, command=command, parts=results)


def read(argv: Sequence[str]) -> Settings:
    """Returns the settings, their numbers in order."""
    settings = parse(NAME, DESCRIPTION, Settings(), argv, full=FULL)
    groups = tuple(sorted(set(settings.groups)))
    rates = tuple(sorted(set(settings.learning_rates)))
    if not all(2 <= num <= NUM_ATTRIBUTES for num in groups):
        raise UsageError(
            f"--groups must be from 2 to {NUM_ATTRIBUTES}, got "
            f"{' '.join(map(str, groups))}."
        )
    return dataclasses.replace(settings, groups=groups, learning_rates=rates)


def load(settings: Settings) -> Digits:
    """Returns the digits that both parts learn from."""
    folder = settings.data_dir
    digits = loaded(load_digits, None if folder is None else Path(folder))
    check_batch_size(settings.batch_size, len(digits.train.labels))
    return digits


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The results of a part."""

    name: str
    part: Part
    titles: list[str]  # of the settings
    table: Frame  # all that was recorded, by setting, learning rate, seed and epoch
    # The rows that validation chose, by setting and seed: of a setting the rate with
    # the lowest loss, mean over the seeds of each one's best epoch.
    best: Frame
    # Those of the lowest validation loss, mean over the settings, and the distances
    # there, by setting and seed.
    rate: float
    epoch: int
    distances: Frame


def conclude(name: str, part: Part, titles: list[str], records: Frame) -> Outcome:
    """Chooses learning rates and epochs, by validation alone, from the long table."""
    table = records.pivot(index=KEYS, columns="name", values="value")
    losses = table[f"validation_{part.criterion}"].fillna(np.inf)
    by_rate = lowest(table, part.criterion).groupby(KEYS[:2]).mean().unstack("setting")
    rate = float(by_rate.mean(axis=1).idxmin())
    epoch = losses.xs(rate, level="learning_rate").groupby("epoch").mean().idxmin()
    rates = losses.index.get_level_values("setting").map(by_rate.idxmin())
    own = losses[losses.index.get_level_values("learning_rate") == rates]
    at = ["learning_rate", "epoch"]
    best = table.loc[own.groupby(["setting", "seed"]).idxmin()].reset_index(at)
    there = table.xs((rate, epoch), level=at)[["covered", "shortest"]]
    there = there.assign(ratio=there["covered"] / there["shortest"])
    return Outcome(name, part, titles, table, best, rate, int(epoch), there)


def lowest(table: Frame, measure: str) -> Frame:
    """Returns the lowest of a validation loss over training; NaN is the highest."""
    losses = table[f"validation_{measure}"].fillna(np.inf)
    return losses.groupby(KEYS[:3]).min()


def _head(settings: Settings, argv: Sequence[str]) -> str:
    return (
        f"# Tasks in groups\n\n`{command_line(NAME, argv)}`\n\nAdam, batch "
        f"{settings.batch_size}, {count(settings.seeds, 'seed')} (± is their standard "
        "deviation); a dense network of two hidden layers of 32 and linear heads. SUS "
        "moves by the summed loss; IUS and IO move group after group on every batch, "
        "with one optimizer state for the shared parameters or one for each group. "
        '"Paper" is Pascal et al., 2021, on other data and with a larger network.'
    )


def make_report(
    outcome: Outcome, costs: Mapping[str, Mapping[str, float]], epochs: int
) -> str:
    """Returns the tables of a part as Markdown."""
    name, best = outcome.name, outcome.best
    chosen = [
        f"{own['learning_rate'].iloc[0]:g} at {', '.join(map(str, own['epoch']))}"
        for own in (best.loc[title] for title in outcome.titles)
    ]
    distances = {column: (column, 1, 2) for column in outcome.distances}
    return "\n\n".join(
        [
            f"## {name.capitalize()}: {outcome.part.source}",
            f"{count(epochs, 'epoch')}.",
            "### Test (Table 3)",
            "At the learning rate and each seed's epoch of the lowest validation loss. "
            "Relative losses are divided by those of the best constants; errors of "
            f"slant and ink are mean absolute errors. Paper: {PAPER_DATA[name]}.",
            _table(outcome, best, SCORES[name], PAPER_SCORES[name], chosen),
            _verdict(outcome),
            "### Best validation loss by learning rate",
            _rates_table(outcome),
            "### Distance in the shared parameters (Table 4)",
            "All settings at one point in time, that with the lowest mean validation "
            f"loss: learning rate {outcome.rate:g}, after epoch {outcome.epoch}. "
            f"Paper: {PAPER_DATA[name]}.",
            _table(outcome, outcome.distances, distances, PAPER_DISTANCES[name]),
            "### Cost",
            "An epoch of all learning rates and seeds together, after the training, in "
            "turns, the fastest of two; memory of the state arrays of the optimizer, "
            "for one run.",
            _costs_table(costs),
        ]
    )


def _table(
    outcome: Outcome,
    numbers: Frame,
    columns: Mapping[str, tuple[str, float, int]],
    paper: Mapping[str, tuple[float, ...]],
    chosen: Sequence[str] = (),
) -> str:
    """Returns numbers of each setting; beside the last of them those of the paper."""
    width = len(next(iter(paper.values()), ()))
    header = ["setting", *(["rate, epochs"] if chosen else []), *columns]
    header += [f"{name}, paper" for name in header[len(header) - width :]]
    rows = []
    for index, title in enumerate(outcome.titles):
        own = numbers.loc[title]
        row = [title, *chosen[index : index + 1]]
        row += [number(own[name], scale, num) for name, scale, num in columns.values()]
        row += [f"{value:.2f}" for value in paper.get(title, ())] or [""] * width
        rows.append(row)
    return markdown_table(header, rows)


def _verdict(outcome: Outcome) -> str:
    """Says which settings are better than SUS on every seed, and which are worse."""
    name = JUDGED[outcome.name]
    scores = outcome.best[name].unstack("seed").loc[outcome.titles]
    gains = scores - scores.iloc[0]
    lower, higher = (
        ", ".join(gains.index[each.all(axis=1)]) or "no setting"
        for each in (gains < 0, gains > 0)
    )
    return (
        f"Against SUS, the {name.replace('_', ' ')} is lower for {lower}, and higher "
        f"for {higher}, with every seed."
    )


def _rates_table(outcome: Outcome) -> str:
    found = lowest(outcome.table, outcome.part.criterion)
    means = found.groupby(KEYS[:2]).mean().unstack("learning_rate")
    cells = means.loc[outcome.titles].map("{:.4f}".format).reset_index()
    header = ["setting", *(f"{rate:g}" for rate in means)]
    return markdown_table(header, cells.to_numpy().tolist())


def _costs_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    header = ["setting", "seconds an epoch", "relative to SUS"]
    header += ["state, shared [KiB]", "relative to SUS", "state, heads [KiB]"]
    base, rows = next(iter(costs.values())), []
    for title, own in costs.items():
        seconds, shared = (own[key] / base[key] for key in ("seconds", "shared"))
        row = [title, f"{own['seconds']:.2f}", f"{seconds:.1f}"]
        row += [f"{own['shared'] / 1024:.1f}", f"{shared:.1f}"]
        rows.append([*row, f"{own['heads'] / 1024:.1f}"])
    return markdown_table(header, rows)


def draw_figures(outcome: Outcome, ways: Sequence[Way], out: Path) -> None:
    """Draws a part's validation losses over learning rates, and its distances."""
    name, of_groups = outcome.name, outcome.name == "attributes"
    bands = "line: mean over seeds, band: minimum to maximum"
    families = {
        kind: [way for way in ways if way.family in ("SUS", kind)] for kind in FAMILIES
    }

    def draw(figure: str, panels: Any, xlabel: str, title: str, common: bool) -> None:
        title = f"{title} ({bands}). Data: {outcome.part.source}"
        axes: Any = {"log": True, "at_points": True, "common": common}
        path = out / f"{name}_{figure}.png"
        draw_panels(path, panels, xlabel=xlabel, title=title, **axes)

    def losses(ways: Sequence[Way], measure: str) -> list[Curve]:
        found, curves = lowest(outcome.table, measure), []
        for index, way in enumerate(ways):
            own = found[way.title].unstack("seed")
            colour = COLOURS[index % len(COLOURS)]
            curves.append(Curve(way.title, list(own.index), own.to_numpy(), colour))
        return curves

    def distances(quantity: str) -> list[Curve]:
        by_seed, curves = outcome.distances[quantity].unstack("seed"), []
        for (kind, ways), colour in zip(families.items(), COLOURS, strict=False):
            values = by_seed.loc[[way.title for way in ways]].to_numpy()
            curves.append(Curve(kind, [way.groups for way in ways], values, colour))
        return curves

    if of_groups:
        panels = {
            f"{kind} and SUS": losses(own, "loss") for kind, own in families.items()
        }
    else:
        words = {"loss": "averaged loss", "relative_loss": "averaged relative loss"}
        words |= {f"{task}_loss": f"{task} loss" for task in MIXED_TASKS}
        panels = {text: losses(ways, measure) for measure, text in words.items()}
    title = "Best validation loss over training"
    draw("learning_rate", panels, "learning rate", title, of_groups)
    if of_groups:
        words = {"covered": "covered distance", "shortest": "shortest path"}
        words["ratio"] = "covered / shortest"
        panels = {text: distances(quantity) for quantity, text in words.items()}
        title = "Distance in the shared parameters, learning rate "
        title += f"{outcome.rate:g}, epoch {outcome.epoch}"
        draw("distance", panels, "number of groups (1: SUS)", title, False)
