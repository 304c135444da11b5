"""The command of a vision experiment: from its options to the files that it leaves."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
from experiments.lab.vision.data import Data
from experiments.lab.vision.figures import draw_predictions, draw_rates, draw_training
from experiments.lab.vision.methods import SINGLE, SUM, method_names
from experiments.lab.vision.problems import Problem
from experiments.lab.vision.report import (
    Paper,
    by_rate,
    cost_table,
    distance_table,
    growth_section,
    make_rows,
    rates_table,
    summarize,
    summary_table,
)
from experiments.lab.vision.training import Run, Schedule, run_methods

_NUMBERS = {
    "epochs": "passes over the train split",
    "seeds": "number of seeds, from 0",
    "batch_size": "samples a step",
}


@dataclasses.dataclass(frozen=True)
class Settings(Schedule):
    """What decides the numbers of a run; each field is an option of its name.

    Attributes:
      full: whether images and network have the paper's sizes.
      data_dir: folder of the release; None for rendered images.
      scene: which of several, where an experiment has them.
      num_images: of each split, the first; 0 for all.
    """

    full: bool = False
    data_dir: str | None = None
    scene: str = ""
    num_images: int = 0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What one experiment adds.

    Attributes:
      name: of the command.
      description: for `--help`.
      quick: the settings without an option.
      full: those with `--full`.
      load: from the settings to the data.
      make: from the settings and the data to the problem.
      num_tasks: number of tasks.
      stacked: whether the heads are stacked.
      paper: from the settings to the paper's numbers.
      table: which table they are from.
      distances: the paper's distances by method.
      scenes: names of the data sets of which a run takes one, by default the first.
      draw: draws more, `draw(runs by the method's title, source, folder)`.
    """

    name: str
    description: str
    quick: Schedule
    full: Schedule
    load: Callable[[Settings], Data]
    make: Callable[[Settings, Data], Problem]
    num_tasks: int
    paper: Callable[[Settings], Paper]
    table: str
    stacked: bool = False
    distances: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    scenes: tuple[str, ...] = ()
    draw: Callable[[Mapping[str, Sequence[Run]], str, Path], None] | None = None


def run(experiment: Experiment, argv: Sequence[str]) -> None:
    """Runs an experiment.

    Args:
      experiment: which.
      argv: the options.

    Raises:
      UsageError: if an option, the data or the output folder is at fault.
    """
    settings, out, start = parse(experiment, argv)
    claim(out, dataclasses.asdict(settings), **start._asdict())
    try:
        data = experiment.load(settings)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(error) from error
    if settings.num_images:
        data = data.first(settings.num_images)
    if settings.batch_size > len(data.train):
        raise UsageError(
            f"--batch-size must be at most {len(data.train)}, the number of training "
            f"images, got {settings.batch_size}."
        )
    problem = experiment.make(settings, data)
    runs = run_methods(problem, data, settings, out)
    rows = make_rows(runs, problem.names, problem.tasks.metrics)
    command = command_line(experiment.name, argv)
    report = make_report(experiment, settings, problem, data, runs, command)
    write_results(
        out,
        experiment.name,
        settings,
        report,
        command=command,
        data=data.source,
        **summarize(rows, runs),
    )
    draw_figures(experiment, problem, data, runs, out)
    print(f"\n{report}\nWritten to {out}.")


def parse(experiment: Experiment, argv: Sequence[str]) -> tuple[Settings, Path, Start]:
    """Returns the settings, the output folder, and how the run starts."""
    names = method_names(experiment.num_tasks, stacked=experiment.stacked)
    parser = experiment_parser(experiment.name, experiment.description)
    parser.add_argument(
        "--full",
        action="store_true",
        help="the paper's sizes and counts, where a release or a GPU is at hand",
    )
    quick, full = experiment.quick, experiment.full

    def default(field: str) -> str:
        values = [_words(getattr(each, field)) for each in (quick, full)]
        more = f"; full: {values[1]}" if values[0] != values[1] else ""
        return f"[{values[0]}{more}]"

    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help=f"all, or some of {', '.join(names)}; {SUM} is always among them "
        f"{default('methods')}",
    )
    for field, text in _NUMBERS.items():
        parser.add_argument(
            f"--{field.replace('_', '-')}",
            type=positive(int),
            metavar="NUM",
            help=f"{text} {default(field)}",
        )
    parser.add_argument(
        "--learning-rates",
        nargs="+",
        type=positive(float),
        metavar="RATE",
        help="the grid of every method, which gets its best by validation "
        f"{default('learning_rates')}",
    )
    parser.add_argument(
        "--num-images",
        type=positive(int),
        metavar="NUM",
        help="only the first of each split, for a trial [all]",
    )
    if experiment.scenes:
        parser.add_argument(
            "--scene",
            default=experiment.scenes[0],
            choices=experiment.scenes,
            help="the scene of the run [%(default)s]",
        )
    options = vars(parser.parse_args(argv))
    out, start = pop_start(options)
    base = full if options["full"] else quick
    given = {name: value for name, value in options.items() if value is not None}
    if "learning_rates" in given:
        given["learning_rates"] = tuple(sorted(set(given["learning_rates"])))
    if "methods" in given:
        chosen = choose_names(given["methods"], names, "--methods")
        given["methods"] = tuple(dict.fromkeys([SUM, *chosen]))
    return Settings(**{**vars(base), **given}), out, start


def _words(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return " ".join(x if isinstance(x, str) else f"{x:g}" for x in value)


def make_report(
    experiment: Experiment,
    settings: Settings,
    problem: Problem,
    data: Data,
    runs: Sequence[Run],
    command: str,
) -> str:
    """Returns the tables as Markdown."""
    rows = make_rows(runs, problem.names, problem.tasks.metrics)
    epochs, seeds = (
        f"1 {noun}" if number == 1 else f"{number} {noun}s"
        for number, noun in ((settings.epochs, "epoch"), (settings.seeds, "seed"))
    )
    return "\n".join(
        [
            f"# {experiment.name}",
            "",
            f"`{command}`",
            "",
            f"Data: {data.source}. Adam, batch {settings.batch_size}, "
            f"{epochs}, {seeds} (± is their standard deviation).",
            "",
            f"## Test ({experiment.table})",
            "",
            "At the learning rate and the epoch of the lowest validation loss, mean "
            "over the tasks. Ranks are averaged over the metrics; Δm is the gain over "
            "single tasks.",
            "",
            summary_table(rows, problem.tasks.metrics, experiment.paper(settings)),
            "",
            *growth_section(rows, problem.tasks.metrics),
            "## Lowest validation loss by learning rate",
            "",
            rates_table(runs),
            "",
            "## Cost",
            "",
            "The fastest epoch, without evaluation and compilation; what the compiled "
            "step needs beside its arguments and results.",
            "",
            cost_table(rows),
            "",
            "## Distance in the shared parameters",
            "",
            distance_table(runs, experiment.distances),
            "",
        ]
    )


def draw_figures(
    experiment: Experiment,
    problem: Problem,
    data: Data,
    runs: Sequence[Run],
    out: Path,
) -> None:
    """Draws learning rates, training, and what each method sees in test images."""
    source = f"Data: {data.source}"
    rows = make_rows(runs, problem.names, problem.tasks.metrics)
    rows.pop(SINGLE, None)
    groups = {
        name: rates
        for name, rates in by_rate(runs).items()
        if name.split("_")[0] in ("sum", "ius", "io")
    }
    shown = {rows[name].title: groups[name] for name in list(groups)[:6]}
    if len(groups[SUM]) > 1:
        draw_rates(out / "learning_rates.png", shown, problem.names, source)
    chosen = {row.title: row.runs for row in rows.values()}
    draw_training(out / "training.png", chosen, problem.names, source)
    if experiment.draw is not None:
        experiment.draw(chosen, source, out)
    for name, row in rows.items():
        path = out / "drawn" / f"{row.runs[0].name}.npz"
        if path.exists():
            with np.load(path) as drawn:
                draw_predictions(
                    out / f"predictions_{name}.png",
                    data.test,
                    dict(drawn),
                    f"{row.title}. {source}",
                )
