"""Argument parsing that all experiments share: one line for every mistake."""

import argparse
import math
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

import mtlopt


class UsageError(Exception):
    """A mistake of the user: shown as one line, without a traceback."""


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` that answers a mistake with one line instead of a page."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def experiment_parser(
    name: str, description: str, *, resumable: bool = True, has_data: bool = True
) -> OneLineParser:
    """Returns a parser with the options that experiments share.

    Args:
      name: name of the experiment.
      description: what it does, shown by `--help` with its line breaks.
      resumable: whether it keeps checkpoints, and so has `--resume`.
      has_data: whether it reads an official data set, and so has `--data-dir`.

    Returns:
      The parser; add the experiment's own options to it.
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
    return parser


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
