"""Confines a process to one core and one thread; options of all timing scripts."""

import argparse
import math
import os
from collections.abc import Callable, Collection

import jax

import mtlopt
from experiments.bench.report import add_out
from experiments.lab.errors import UsageError

MEMORY = ("default", "keep")  # the allocator's defaults, or after `mtlopt.keep_memory`


def timing_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Returns a parser with the options that all timing scripts have.

    Args:
        description: What `--help` says.
        rounds: Default number of rounds.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", help="a Python interpreter that has PyTorch")
    add_out(parser)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    return parser


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """Returns an argparse type that accepts some names."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(names)}, got {text!r}"
            )
        return text

    return convert


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


def pin_to_one_thread(core: int) -> None:
    """Confines this process and its children to one core, and XLA to one thread.

    Call the function before JAX runs anything.
    """
    os.sched_setaffinity(0, {core})
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    jax.config.update("jax_platforms", "cpu")


def choose_memory(memory: str) -> None:
    """Calls `mtlopt.keep_memory` for "keep"; call before JAX runs anything.

    Raises: UsageError: If `keep_memory` has no effect on this machine.
    """
    if memory == "keep" and not mtlopt.keep_memory():
        raise UsageError("--memory keep needs glibc and its own malloc.")
