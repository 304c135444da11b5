"""How time and memory of a step grow with the number of tasks and of parameters.

    python -m experiments.bench.growth [--out FILE] [--figure FILE]

The network is a multilayer perceptron with stacked heads, trained by SGD with batches
of 64. In the first table the number of tasks grows with a million parameters, in the
second the number of parameters grows with forty tasks. The rows of the Jacobian (the
tasks' gradients) are stored, computed in chunks, recomputed one by one (streaming), or
never computed (latent space). Numbers are multiples of a plain step on the summed loss
of the same size. Times are measured as in `steps`, on one core. Memory is XLA's count
of temporaries; the peak includes parameters and state, old and new. Memory needs no
run, so sizes above `--run-up-to` are only compiled.
"""

import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax

from experiments.bench.machine import pin_to_one_thread, timing_parser
from experiments.bench.report import Report
from experiments.bench.steps import Block, compiled, take_turns
from experiments.bench.workloads import (
    Workload,
    method_step,
    plain_step,
    stacked_mlp,
    with_options,
)
from experiments.lab.figures import COLOURS, drawing
from experiments.lab.tables import markdown_table

PLAIN = "plain"
BATCH_SIZE = 64
TASKS, PARAMETERS = (2, 8, 32, 128, 512), (10**5, 10**6, 10**7, 10**8)
FIXED_TASKS, FIXED_PARAMETERS = 40, 10**6

# By name in the tables: the method, and the options of `mtlopt.task_grad`.
OVER_TASKS = {
    "uncertainty": ("uncertainty", {}),
    "Z-aligned": ("aligned_mtl_ub", {}),
    "θ-aligned": ("aligned_mtl", {}),
    "UPGrad": ("upgrad", {}),
}
OVER_PARAMETERS = {
    "Z-aligned": ("aligned_mtl_ub", {}),
    "θ-aligned": ("aligned_mtl", {}),
    "θ-aligned, chunks of 8": ("aligned_mtl", {"batching": 8}),
    "θ-aligned, streaming": ("aligned_mtl", {"streaming": True}),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One program at one size.

    Attributes:
        step: Name in the table.
        num_tasks: Number of tasks.
        num_parameters: Approximate number of parameters.
        milliseconds: Median time of a step; None if it was not run.
        time: Time as a multiple of the plain step's.
        memory: Temporary memory, as a multiple of the plain step's.
        peak: Memory with parameters, state and their new values, as a multiple of the
            plain step's.
        compile_seconds: Time to trace and compile the program.
    """

    step: str
    num_tasks: int
    num_parameters: int
    milliseconds: float | None
    time: float | None
    memory: float
    peak: float
    compile_seconds: float


def make_workload(num_tasks: int, num_parameters: int) -> Workload:
    """Returns a perceptron with about this many parameters."""
    # 128 w + w^2 + 50 w parameters in the trunk.
    width = max(1, round((89**2 + num_parameters) ** 0.5 - 89))
    workload = stacked_mlp(num_tasks, BATCH_SIZE, width)
    return dataclasses.replace(workload, optimizer=optax.sgd(1e-3))


def measure(
    num_tasks: int,
    num_parameters: int,
    variants: Mapping[str, tuple[str, Mapping[str, Any]]],
    rounds: int,
) -> Iterator[Point]:
    """Measures the plain step and then all variants at one size."""
    workload = make_workload(num_tasks, num_parameters)
    programs = {PLAIN: compiled(workload, *plain_step(workload))}
    for name, (method, options) in variants.items():
        chosen = with_options(workload, **options)
        programs[name] = compiled(chosen, *method_step(chosen, method))
    blocks: dict[str, Callable[[], Any]] = {}
    if rounds:
        blocks = {name: Block(one, workload) for name, one in programs.items()}
    times = take_turns(blocks, rounds)
    plain = programs[PLAIN]
    for name, program in programs.items():
        milliseconds = ratio = None
        if rounds:
            milliseconds = 1e3 * statistics.median(times[name])
            pairs = zip(times[name], times[PLAIN], strict=True)
            ratio = statistics.median(ours / base for ours, base in pairs)
        yield Point(
            name,
            num_tasks,
            num_parameters,
            milliseconds,
            ratio,
            program.temporary_bytes / plain.temporary_bytes,
            program.peak_bytes / plain.peak_bytes,
            program.compile_seconds,
        )


def table(points: Sequence[Point], size: str, value: str) -> str:
    """Returns a table of one value of all points, with a column for each size."""
    sizes = sorted({getattr(point, size) for point in points})
    names = dict.fromkeys(point.step for point in points)
    found = {(p.step, getattr(p, size)): getattr(p, value) for p in points}
    rows = []
    for name in names:
        values = [found.get((name, each)) for each in sizes]
        rows.append([name, *("" if v is None else f"{v:.3g}" for v in values)])
    header = [value.replace("_", " "), *(f"{each:,}" for each in sizes)]
    return markdown_table(header, rows)


def draw(path: Path, panels: Sequence[tuple[str, str, Sequence[Point]]]) -> None:
    """Draws a value over a size; each panel is `(size, value, points)`."""
    every = sorted({*OVER_TASKS, *OVER_PARAMETERS})
    width, title = len(panels), "Growth of a training step"
    with drawing(path, title, 1, width, figsize=(4 * width, 3.6)) as grid:
        for axis, (size, value, points) in zip(grid[0], panels, strict=True):
            names = [n for n in dict.fromkeys(p.step for p in points) if n != PLAIN]
            for name in names:
                own = [p for p in points if p.step == name and getattr(p, value)]
                x, y = ([getattr(p, what) for p in own] for what in (size, value))
                colour = COLOURS[every.index(name)]
                axis.loglog(x, y, "o-", color=colour, label=name, markersize=3)
            axis.set_xlabel(size.replace("num_", "number of "))
            axis.set_ylabel(f"{value} / plain")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = timing_parser(__doc__ or "", rounds=3)
    parser.add_argument("--tasks", type=int, nargs="+", default=TASKS)
    parser.add_argument("--parameters", type=int, nargs="+", default=PARAMETERS)
    parser.add_argument("--run-up-to", type=int, default=10**7, metavar="PARAMETERS")
    parser.add_argument("--figure", type=Path, help="draw the curves here")
    args = parser.parse_args(argv)
    pin_to_one_thread(args.core)
    over_tasks: list[Point] = []
    over_parameters: list[Point] = []
    for num_tasks in args.tasks:
        print(f"{num_tasks} tasks", file=sys.stderr, flush=True)
        over_tasks += measure(num_tasks, FIXED_PARAMETERS, OVER_TASKS, args.rounds)
    for number in args.parameters:
        print(f"{number} parameters", file=sys.stderr, flush=True)
        rounds = args.rounds if number <= args.run_up_to else 0
        over_parameters += measure(FIXED_TASKS, number, OVER_PARAMETERS, rounds)
    report = Report("growth", argv, args.out)
    for size, points in (
        ("num_tasks", over_tasks),
        ("num_parameters", over_parameters),
    ):
        for value in ("milliseconds", "time", "memory", "peak", "compile_seconds"):
            report.print(table(points, size, value))
    report.write([*over_tasks, *over_parameters])
    if args.figure:
        draw(
            args.figure,
            [
                ("num_tasks", "time", over_tasks),
                ("num_parameters", "time", over_parameters),
                ("num_parameters", "peak", over_parameters),
            ],
        )


if __name__ == "__main__":
    main()
