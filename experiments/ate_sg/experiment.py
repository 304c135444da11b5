"""What the three experiments on ATE-SG share: settings, command and files."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.ate_sg.costs import flop_costs, parameter_costs
from experiments.ate_sg.figures import draw_figures
from experiments.ate_sg.phases import OPTIMIZERS, Problem, Schedule
from experiments.ate_sg.report import Paper, make_report, summarize
from experiments.ate_sg.runs import Run, run_all
from experiments.lab.cli import (
    Start,
    UsageError,
    choose_names,
    experiment_parser,
    pop_start,
    positive,
)
from experiments.lab.report import command_line, write_results
from experiments.lab.run_folder import claim


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; each field is an option of its name.

    An experiment adds fields of its own.

    Attributes:
      epochs: passes over the training split, at most.
      seeds: number of seeds, from 0; they differ in initial parameters and order.
      batch_size: examples per step.
      optimizers: names in `phases.OPTIMIZERS`.
      learning_rates: to start from, each in runs of its own.
      phases: lengths `E_0 = E_ts` in epochs, each beside the training without phases.
      stop_patience: epochs without a lower validation loss until a seed stops.
      plateau_patience: those until its learning rate falls to three quarters.
    """

    epochs: int
    seeds: int
    batch_size: int
    optimizers: tuple[str, ...] = ("sgd",)
    learning_rates: tuple[float, ...] = (1e-2, 1e-3)
    phases: tuple[int, ...] = (1, 10, 100)
    stop_patience: int = 350
    plateau_patience: int = 50

    @property
    def runs(self) -> list[Run]:
        """The runs, those to be compared one after the other."""
        lengths = (*self.phases, None)
        choices = itertools.product(self.optimizers, self.learning_rates, lengths)
        return [Run(*choice) for choice in choices]


# What `--help` says of the fields of `Settings`.
_HELP = {
    "epochs": "passes over the training split, at most",
    "seeds": "number of seeds, from 0, trained together",
    "batch_size": "examples per step",
    "optimizers": f"some of {', '.join(OPTIMIZERS)}, or all",
    "learning_rates": "to start from",
    "phases": "lengths E0 = Ets in epochs",
    "stop_patience": "epochs without a lower validation loss until a seed stops",
    "plateau_patience": "those until its learning rate falls to three quarters",
}

DESCRIPTION = """\
{summary}

Trains both blocks of parameters at once (Classic SG) and the shared parameters and the
heads in turn, for E0 = Ets epochs each (ATE-SG), and prints test scores beside the
paper's: Bellavia, Della Santa and Papini, "ATE-SG: alternate through the epochs
stochastic gradient for multi-task neural networks", 2026. Figures show the losses over
epochs and over cost. The learning rate falls on plateaus of the validation loss, and
training ends when that has not fallen for long; scores are those of the best epoch.

With no option: {quick}
--full: {full}, with the paper's 11 seeds and at most 5,000 epochs.
"""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One of the paper's problems.

    Attributes:
      name: name of the command.
      title: title of the report.
      description: shown by `--help`, see `DESCRIPTION`.
      quick: the settings without an option.
      full: the settings of `--full`.
      load: from settings to the problem and, in words, what is trained on what. What
        is wrong with the data is an `OSError`, `ValueError` or `ImportError`.
      paper: the paper's table.
      options: what `--help` says of the settings of its own.
      choices: for those of them that are a name, the names.
    """

    name: str
    title: str
    description: str
    quick: Settings
    full: Settings
    load: Callable[[Any], tuple[Problem, str]]
    paper: Paper
    options: Mapping[str, str]
    choices: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


def run_experiment(experiment: Experiment, argv: Sequence[str]) -> None:
    """Runs the command of an experiment.

    Args:
      experiment: the experiment.
      argv: its options.

    Raises:
      UsageError: if an option, the data or the output folder is at fault.
    """
    started = time.perf_counter()
    settings, out, start = parse(experiment, argv)
    try:
        problem, source = experiment.load(settings)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(error) from error
    if settings.batch_size > problem.num_train:
        raise UsageError(
            f"--batch-size must be at most {problem.num_train}, the number of training "
            f"examples, got {settings.batch_size}."
        )
    claim(out, dataclasses.asdict(settings), **start._asdict())
    units = {
        "parameters": parameter_costs(problem),
        "flops": flop_costs(problem, settings.batch_size),
    }
    schedule = Schedule(
        settings.epochs,
        settings.seeds,
        settings.batch_size,
        settings.stop_patience,
        settings.plateau_patience,
    )
    results = run_all(problem, settings.runs, schedule, units, out)
    summary = summarize(results, units)
    command = command_line(experiment.name, argv)
    seconds = time.perf_counter() - started
    tasks = problem.oracle.tasks
    seeds = "1 seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    text = (
        f"{source}. Batch {settings.batch_size}, at most {settings.epochs} epochs, "
        f"{seeds}; {seconds:.0f} s."
    )
    introduction = [f"# {experiment.title}", f"`{command}`", text]
    report = make_report(summary, units, tasks, experiment.paper, introduction)
    write_results(
        out,
        experiment.name,
        settings,
        report,
        command=command,
        source=source,
        seconds=seconds,
        tasks=tasks,
        costs={unit: costs._asdict() for unit, costs in units.items()},
        runs=list(summary.values()),
    )
    draw_figures(results, units, source, out)
    print(f"\n{report}\nWritten to {out}.")


def parse(experiment: Experiment, argv: Sequence[str]) -> tuple[Settings, Path, Start]:
    """Returns the settings, the output folder, and how the run starts."""
    quick, full = experiment.quick, experiment.full
    names = [field.name for field in dataclasses.fields(quick)]
    parser = experiment_parser(
        experiment.name, experiment.description, has_data="data_dir" in names
    )
    parser.add_argument("--full", action="store_true", help="the paper's settings")
    for name in names:
        if name == "data_dir":
            continue
        text = {**_HELP, **experiment.options}[name]
        defaults = (_words(getattr(profile, name)) for profile in (quick, full))
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            help="{} [{}; full: {}]".format(text, *defaults),
            **_argument(getattr(quick, name), experiment.choices.get(name)),
        )
    options = vars(parser.parse_args(argv))
    out, start = pop_start(options)
    profile = full if options.pop("full") else quick
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(dict.fromkeys(value))
    if "optimizers" in given:
        given["optimizers"] = choose_names(
            given["optimizers"], OPTIMIZERS, "--optimizers"
        )
    return dataclasses.replace(profile, **given), out, start


def _argument(value: Any, choices: Sequence[str] | None) -> dict[str, Any]:
    """Returns what argparse is told of an option with such a value."""
    if isinstance(value, tuple):
        return {"nargs": "+", **_argument(value[0], None)}
    if isinstance(value, str):
        return {"metavar": "NAME"} if choices is None else {"choices": choices}
    return {"type": positive(type(value)), "metavar": "N"}


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
