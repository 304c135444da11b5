"""Argument parsing that all experiments share: one line for every mistake."""

import argparse
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import mtlopt
from experiments.lab.settings import UsageError


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` that answers a mistake with one line instead of a page."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


class Start(NamedTuple):
    """How a run starts: the arguments of `run_folder.claim` that are options.

    Attributes:
      resume: whether to continue the run in the folder.
      tensorboard: whether to write event files too.
    """

    resume: bool = False
    tensorboard: bool = False


def experiment_parser(
    name: str,
    description: str,
    *,
    resumable: bool = True,
    has_data: bool = True,
    has_metrics: bool = True,
) -> OneLineParser:
    """Returns a parser with the options that experiments share.

    Args:
      name: name of the experiment.
      description: what it does, shown by `--help` with its line breaks.
      resumable: whether it keeps checkpoints, and so has `--resume`.
      has_data: whether it reads an official data set, and so has `--data-dir`.
      has_metrics: whether it streams metrics to a CSV file, and so has `--tensorboard`.

    Returns:
      The parser; add the experiment's own options to it, and take the shared ones out
      of what it parses by `pop_start`.
    """
    parser = OneLineParser(
        prog=f"python -m experiments {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default=f"results/{name}",
        help="folder for all that the run writes [%(default)s]",
    )
    if resumable:
        parser.add_argument(
            "--resume",
            action="store_true",
            help="continue the run in --out, which must have the same settings",
        )
    if has_data:
        parser.add_argument(
            "--data-dir", metavar="DIR", help="folder of the official data"
        )
    if has_metrics:
        parser.add_argument(
            "--tensorboard",
            action="store_true",
            help="write the metrics as event files too, into --out/tensorboard",
        )
    return parser


def pop_start(options: dict[str, Any]) -> tuple[Path, Start]:
    """Takes the folder and how the run starts out of parsed options.

    An experiment without `--resume` is short enough to be run again in the same folder.

    Examples:
      >>> options = {"out": "results", "tensorboard": False, "epochs": 3}
      >>> pop_start(options)[1], options
      (Start(resume=True, tensorboard=False), {'epochs': 3})
    """
    start = Start(options.pop("resume", True), options.pop("tensorboard", False))
    return Path(options.pop("out")), start


def positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """Returns an argparse type for positive, finite numbers.

    Args:
      kind: `int` or `float`.

    Examples:
      >>> positive(int)("3")
      3
      >>> positive(float)("-0.5")
      Traceback (most recent call last):
      ...
      argparse.ArgumentTypeError: must be a positive number, got -0.5
    """
    noun = "a positive integer" if kind is int else "a positive number"

    def convert(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be {noun}, got {text}")
        return value

    return convert


def choose_names(
    texts: Sequence[str], valid: Collection[str], option: str
) -> tuple[str, ...]:
    """Returns the chosen names, each once, in the order in which they were given.

    Args:
      texts: names, each text one or several with commas between; `all` for all.
      valid: the names to choose from.
      option: the option, for the message.

    Raises:
      UsageError: if a name is not valid.

    Examples:
      >>> choose_names(["b,a", "b"], ["a", "b", "c"], "--names")
      ('b', 'a')
      >>> choose_names(["all"], ["a", "b", "c"], "--names")
      ('a', 'b', 'c')
    """
    names = [name for text in texts for name in text.split(",") if name]
    for name in names:
        if name != "all" and name not in valid:
            raise UsageError(
                f"{option} must name some of {', '.join(valid)}, or all; got {name!r}."
            )
    if not names:
        raise UsageError(f"{option} must name at least one of {', '.join(valid)}.")
    return tuple(valid) if "all" in names else tuple(dict.fromkeys(names))


def methods_for(num_tasks: int) -> tuple[str, ...]:
    """Returns the names in `mtlopt.METHODS` that so many tasks are enough for."""
    methods = mtlopt.METHODS.items()
    return tuple(name for name, method in methods if method.min_tasks <= num_tasks)


def one_line(message: object) -> str:
    r"""Joins a message's lines, so that it stays one line.

    Examples:
      >>> one_line("two  \n lines")
      'two lines'
    """
    return " ".join(str(message).split())
