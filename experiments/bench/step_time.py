"""Time of a LeNet training step, as a multiple of PyTorch's plain step.

    python -m experiments.bench.step_time --torch-python PATH [--out FILE]

Everything runs on one core and one thread. Short blocks of our steps and PyTorch's
alternate; the ratio of a row is the median over rounds of neighbouring blocks' ratio,
so that drift of the machine cancels. Without `--torch-python` only times are given.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jax import lax

import mtlopt
from experiments.bench.workloads import (
    Step,
    Workload,
    floor_step,
    lenet,
    method_step,
    plain_step,
)


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


class TorchTimer:
    """Times PyTorch's plain step in a subprocess, which sleeps in between."""

    def __init__(self, python: str, batch_size: int, num_steps: int):
        script = Path(__file__).with_name("torch_lenet.py")
        self._num_steps = num_steps
        self._process = subprocess.Popen(
            [python, str(script), "--batch-size", str(batch_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self()

    def __call__(self) -> float:
        """Seconds of one block of steps."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self._num_steps}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("The PyTorch process ended, see its message above.")
        return float(answer)

    def close(self) -> None:
        """Ends the subprocess."""
        self._process.communicate()


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
    batch_size = len(workload.args[0])
    reference = (
        TorchTimer(torch_python, batch_size, num_steps) if torch_python else None
    )
    times: list[list[tuple[float | None, float]]] = [[] for _ in rows]
    for _ in range(num_rounds):
        for run, measured in zip(timers, times, strict=True):
            measured.append((reference() if reference else None, run()))
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


def markdown(results: Sequence[Result]) -> str:
    """The table, one line a result."""
    lines = [
        "| step | ms | PyTorch plain, ms | ratio | quartiles |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        cells = [r.name, f"{r.milliseconds:.1f}", "", "", ""]
        if r.ratio is not None and r.ratio_quartiles is not None:
            low, high = r.ratio_quartiles
            cells[2:] = [
                f"{r.torch_milliseconds:.1f}",
                f"{r.ratio:.2f}",
                f"{low:.2f} to {high:.2f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pin_to_one_thread(core: int) -> None:
    """Confines this process, its children and XLA; call before JAX runs anything."""
    os.sched_setaffinity(0, {core})
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    jax.config.update("jax_platforms", "cpu")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", help="a Python interpreter that has torch")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument(
        "--methods",
        nargs="*",
        default=list(mtlopt.METHODS),
        choices=list(mtlopt.METHODS),
        help="methods of the library to time beside; default: all",
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
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
    print(markdown(results))
    if args.out:
        record = {
            "command": sys.argv,
            "jax": jax.__version__,
            "results": [asdict(result) for result in results],
        }
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
