"""From the options of a line-search experiment to the files that it leaves."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments.fast_line_search.methods import (
    DIRECTIONS,
    Problem,
    make_methods,
    num_examples,
)
from experiments.fast_line_search.report import Subject, draw_figures, make_report
from experiments.fast_line_search.runs import Settings, run_methods
from experiments.lab.cli import (
    Start,
    UsageError,
    choose_names,
    experiment_parser,
    pop_start,
    positive,
)
from experiments.lab.report import write_results
from experiments.lab.run_folder import claim

_HELP = {
    "epochs": "passes over the train split",
    "seeds": "number of seeds, from 0",
    "batch_size": "examples a step",
    "decay_every": "epochs after which FBLS + decay halves its upper bound",
    "train_examples": "number of train examples",
    "test_examples": "number of test examples",
}

SettingsType = TypeVar("SettingsType", bound=Settings)


def parse(
    name: str,
    description: str,
    quick: SettingsType,
    full: Mapping[str, Any],
    argv: Sequence[str],
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[SettingsType, Path, Start]:
    """Reads the options.

    Args:
      name: of the experiment.
      description: for `--help`.
      quick: the settings without an option.
      full: what `--full` changes.
      argv: the options.
      more: arguments of `add_argument` for the settings that only this experiment has;
        they are positive integers if they have no choices.

    Returns:
      The settings, the output folder, and how the run starts.
    """
    names = tuple(make_methods(2, 1))
    parser = experiment_parser(name, description)
    parser.add_argument("--full", action="store_true", help="the paper's settings")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(quick.methods),
        metavar="NAME",
        help=f"all, or some of {', '.join(names)} [{' '.join(quick.methods)}]",
    )
    parser.add_argument(
        "--direction",
        choices=tuple(DIRECTIONS),
        help=f"what finds the direction of a line search [{quick.direction}]",
    )
    others = {option: {"help": text} for option, text in _HELP.items()}
    for option, given in {**others, **(more or {})}.items():
        value = getattr(quick, option)
        defaults = f"{value or 'all'}; full: {full.get(option, value) or 'all'}"
        kind: dict[str, Any] = {} if "choices" in given else {"type": positive(int)}
        kind |= {**given, "help": f"{given['help']} [{defaults}]"}
        parser.add_argument(f"--{option.replace('_', '-')}", **kind)
    options = vars(parser.parse_args(argv))
    out, start = pop_start(options)
    profile = full if options.pop("full") else {}
    options["methods"] = choose_names(options["methods"], names, "--methods")
    given = {key: value for key, value in options.items() if value is not None}
    return dataclasses.replace(quick, **{**profile, **given}), out, start


def check_batch_size(settings: Settings, problem: Problem) -> None:
    """Raises a `UsageError` if no batch can be filled."""
    num_train = num_examples(problem.train)
    if settings.batch_size > num_train:
        raise UsageError(
            f"--batch-size must be at most {num_train}, the number of train examples, "
            f"got {settings.batch_size}."
        )


def run_experiment(
    subject: Subject,
    settings: Settings,
    problem: Problem,
    out: Path,
    *,
    start: Start,
    more: Callable[[], str] = str,
) -> None:
    """Trains all runs and writes metrics, tables and figures to `out`.

    Args:
      subject: what the tables are about.
      settings: what is run.
      problem: what is trained.
      out: the folder.
      start: how the run starts.
      more: called after the training for a part of the report, Markdown.
    """
    check_batch_size(settings, problem)
    claim(out, dataclasses.asdict(settings), **start._asdict())
    num_steps = num_examples(problem.train) // settings.batch_size
    methods = make_methods(
        problem.oracle.num_tasks, settings.decay_every * num_steps, settings.direction
    )
    methods = {name: methods[name] for name in settings.methods}
    runs = run_methods(problem, methods, settings, out)
    report = make_report(subject, settings, methods, runs) + more()
    write_results(
        out,
        subject.name,
        settings,
        report,
        data={"source": subject.source, "stand_in": subject.stand_in},
        runs=[dataclasses.asdict(run) for run in runs],
    )
    draw_figures(subject, methods, runs, out)
    print(f"\n{report}\nWritten to {out}.")
