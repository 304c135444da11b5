"""Time of a LeNet training step, as a multiple of PyTorch's plain step.

    python -m experiments.bench.step_time --torch-python PATH [--out FILE]

Everything runs on one core and one thread. Short blocks of our steps and PyTorch's
alternate; the ratio of a row is the median over rounds of neighbouring blocks' ratio,
so that drift of the machine cancels. Without `--torch-python` only times are given.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import lax

import mtlopt
from experiments.bench.machine import pin_to_one_thread, timing_parser, write_record
from experiments.bench.torch_process import TorchProcess
from experiments.bench.workloads import (
    Step,
    Workload,
    floor_step,
    lenet,
    method_step,
    plain_step,
)
from experiments.report import markdown_table


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: As printed.
        step: The training step, pure and not jitted.
        state: Initial state of its optimizer.
        in_scan: Whether the steps of a block run inside one `lax.scan`.
    """

    name: str
    step: Step
    state: Any
    in_scan: bool


@dataclass(frozen=True)
class Result:
    """Median time of a step, and its ratio to PyTorch's with quartiles."""

    name: str
    milliseconds: float
    torch_milliseconds: float | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None


def make_rows(workload: Workload, methods: Sequence[str]) -> list[Row]:
    """Returns the plain step, the hand-written Jacobian step and the methods' steps.

    Args:
        workload: What to step on.
        methods: Names in `mtlopt.METHODS`.
    """
    steps = {"plain": plain_step(workload), "Jacobian floor": floor_step(workload)}
    for name in methods:
        steps[name] = method_step(workload, name)
    return [
        Row(name + (" in scan" if in_scan else ""), step, state, in_scan)
        for name, (step, state) in steps.items()
        for in_scan in (False, True)
    ]


def timer(row: Row, workload: Workload, num_steps: int) -> Callable[[], float]:
    """Returns a function that runs and times `num_steps` compiled, warm steps."""
    args = workload.args

    def step(carry: Any) -> Any:
        return row.step(*carry, *args)[:2]

    def scanned(carry: Any) -> Any:
        return lax.scan(lambda c, _: (step(c), None), carry, length=num_steps)[0]

    compiled = jax.jit(scanned if row.in_scan else step)
    carry = workload.params, row.state

    def run() -> float:
        nonlocal carry
        start = time.perf_counter()
        for _ in range(1 if row.in_scan else num_steps):
            carry = compiled(carry)
        jax.block_until_ready(carry)
        return time.perf_counter() - start

    run()
    return run


def measure(
    rows: Sequence[Row],
    workload: Workload,
    *,
    torch_python: str | None = None,
    num_steps: int = 20,
    num_rounds: int = 15,
) -> list[Result]:
    """Measures all rows, with a block of PyTorch's steps before each of theirs."""
    timers = [timer(row, workload, num_steps) for row in rows]
    script = str(Path(__file__).with_name("torch_lenet.py"))
    batch_size = str(len(workload.args[0]))
    reference = (
        TorchProcess(torch_python, script, "--batch-size", batch_size)
        if torch_python
        else None
    )

    def torch_seconds() -> float | None:
        return float(reference(str(num_steps))) if reference else None

    torch_seconds()
    times: list[list[tuple[float | None, float]]] = [[] for _ in rows]
    for _ in range(num_rounds):
        for run, measured in zip(timers, times, strict=True):
            measured.append((torch_seconds(), run()))
    if reference:
        reference.close()
    return [
        summarize(row.name, measured, num_steps)
        for row, measured in zip(rows, times, strict=True)
    ]


def summarize(
    name: str, times: Sequence[tuple[float | None, float]], num_steps: int
) -> Result:
    """Medians of blocks' times, given as (PyTorch's, ours) in seconds."""
    ours = 1e3 * statistics.median(t for _, t in times) / num_steps
    pairs = [(reference, t) for reference, t in times if reference is not None]
    if not pairs:
        return Result(name, ours)
    ratios = sorted(t / reference for reference, t in pairs)
    return Result(
        name,
        ours,
        1e3 * statistics.median(reference for reference, _ in pairs) / num_steps,
        statistics.median(ratios),
        (ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]),
    )


def cells(result: Result) -> list[str]:
    """A line of the table."""
    line = [result.name, f"{result.milliseconds:.1f}", "", "", ""]
    if result.ratio is not None and result.ratio_quartiles is not None:
        low, high = result.ratio_quartiles
        line[2:] = [
            f"{result.torch_milliseconds:.1f}",
            f"{result.ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
        ]
    return line


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = timing_parser(__doc__ or "", rounds=15)
    parser.add_argument(
        "--methods",
        nargs="*",
        default=list(mtlopt.METHODS),
        choices=list(mtlopt.METHODS),
        help="methods of the library to time beside; default: all",
    )
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    args = parser.parse_args(argv)
    pin_to_one_thread(args.core)
    workload = lenet()
    results = measure(
        make_rows(workload, args.methods),
        workload,
        torch_python=args.torch_python,
        num_steps=args.steps,
        num_rounds=args.rounds,
    )
    header = ["step", "ms", "PyTorch plain, ms", "ratio", "quartiles"]
    print(markdown_table(header, [cells(result) for result in results]))
    write_record(args.out, results)


if __name__ == "__main__":
    main()
