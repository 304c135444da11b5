"""Compile time of a training step of every method, and its number of kernels.

    python -m experiments.bench.compile_time [METHOD ...] [--out FILE]

The table has the seconds to trace, lower and compile a step with 40 or 2 stacked heads.
They are the minimum of three rounds, in which all methods take turns. XLA may use all
cores. The brackets give the number of kernels, the programs that XLA generates code
for. This number is the same on every machine. No step is run.
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

import mtlopt
from experiments.bench.machine import one_of, positive
from experiments.bench.report import Report, add_out
from experiments.bench.workloads import (
    WORKLOADS,
    Step,
    Workload,
    method_step,
    plain_step,
)
from experiments.lab.tables import markdown_table

PLAIN = "plain"
DEFAULT = ("stacked_lenet", "stacked_mlp", "wide_mlp_pair")


@dataclasses.dataclass(frozen=True)
class Compilation:
    """The cost of compiling a step.

    Attributes:
        workload: Name of the problem.
        step: Name of the method, or "plain".
        seconds: The minimum over all rounds.
        kernels: Programs that XLA generated code for.
    """

    workload: str
    step: str
    seconds: float
    kernels: int


def measure(
    workload: Workload, methods: Sequence[str], rounds: int
) -> list[Compilation]:
    """Compiles the plain step and every method's, all of them in each round."""
    steps = {PLAIN: plain_step(workload)}
    steps |= {name: method_step(workload, name) for name in methods}
    seconds, kernels = dict.fromkeys(steps, math.inf), dict.fromkeys(steps, 0)
    for _ in range(rounds):
        for name, (step, state) in steps.items():
            took, kernels[name] = _compile(workload, step, state)
            seconds[name] = min(seconds[name], took)
            print(f"{name} ", end="", file=sys.stderr, flush=True)
    return [
        Compilation(workload.name, name, seconds[name], kernels[name]) for name in steps
    ]


def _compile(workload: Workload, step: Step, state: Any) -> tuple[float, int]:
    jax.clear_caches()  # JAX would reuse the trace
    start = time.perf_counter()
    lowered = jax.jit(step).lower(workload.params, state, *workload.args)
    program = lowered.compile()
    seconds = time.perf_counter() - start
    return seconds, (program.as_text() or "").count(" fusion(")


def table(results: Sequence[Compilation]) -> str:
    """Returns a Markdown table: seconds and kernels, a row for each step."""
    found = {(each.workload, each.step): each for each in results}
    workloads = dict.fromkeys(each.workload for each in results)

    def cell(workload: str, step: str) -> str:
        each = found.get((workload, step))
        return f"{each.seconds:.2f} ({each.kernels})" if each else ""

    rows = [
        [step, *(cell(workload, step) for workload in workloads)]
        for step in dict.fromkeys(each.step for each in results)
    ]
    return markdown_table(["step", *workloads], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "methods",
        nargs="*",
        metavar="METHOD",
        type=one_of(mtlopt.METHODS),
        help="methods of the library; default: all",
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        metavar="WORKLOAD",
        type=one_of(WORKLOADS),
        default=DEFAULT,
        help=f"any of {', '.join(WORKLOADS)} [{' '.join(DEFAULT)}]",
    )
    parser.add_argument(
        "--rounds", type=positive(int), default=3, help="their minimum counts [3]"
    )
    add_out(parser)
    args = parser.parse_args(argv)
    # Otherwise programs that were compiled before would be read from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    results = []
    for name in args.workloads:
        workload = WORKLOADS[name]()
        num_tasks = workload.oracle.num_tasks
        methods = args.methods or mtlopt.METHODS
        enough = [m for m in methods if mtlopt.METHODS[m].min_tasks <= num_tasks]
        results += measure(workload, enough, args.rounds)
    report = Report("compile_time", argv, args.out)
    report.print(table(results))
    report.write(results)


if __name__ == "__main__":
    main()
