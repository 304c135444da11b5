"""Steps with and without `mtlopt.keep_memory`, which keeps freed memory mapped.

    python -m experiments.bench.memory [WORKLOAD ...] [--threads 1 2] [--out FILE]
        [--methods NAME ...] [--torch-python PATH]

Two processes that differ only in this call make the same steps. They take turns in
short blocks. The steps are our plain step on the summed loss, the methods' steps and,
with `--torch-python`, PyTorch's plain step if `torch_steps` has the workload. Time is
the processor time of all threads of a process, because other work on the machine
disturbs processor time the least. Wall-clock time is given too. A ratio is the median
over the rounds of the ratios of neighbouring blocks. Faults are the pages that the
system hands out in a step. Resident memory is the memory of the process, including
compilation, at the end and at its peak. Each pair of processes makes only one kind of
step.
"""

import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

import mtlopt
from experiments.bench import torch_steps
from experiments.bench.machine import MEMORY, one_of, timing_parser
from experiments.bench.other_process import OtherProcess
from experiments.bench.report import Report
from experiments.bench.steps import PLAIN, torch_process
from experiments.bench.workloads import WORKLOADS
from experiments.lab.settings import choose_names
from experiments.lab.tables import markdown_table

TORCH = "PyTorch plain"
BLOCK_SECONDS = 0.5
HEADER = (
    *("workload", "threads", "step", "CPU ms, default", "keep", "ratio"),
    *("passed", "faults, default", "keep", "MiB now (peak), default", "keep"),
)


@dataclasses.dataclass(frozen=True)
class Side:
    """A step in one of the two processes.

    Attributes:
        cpu_milliseconds: Median processor time of a step.
        milliseconds: Median wall-clock time of a step.
        faults: Median number of pages handed out in a step.
        resident_mib: Memory of the process, at the end.
        peak_mib: The most that it had.
    """

    cpu_milliseconds: float
    milliseconds: float
    faults: float
    resident_mib: float
    peak_mib: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A line of the table.

    Attributes:
        workload: Its name.
        threads: Number of cores, and of threads that compute.
        step: "plain", a method, or PyTorch's plain step.
        default: With the defaults of the allocator.
        keep: With memory that stays.
        cpu_ratio: Of processor time, memory that stays over default.
        ratio: Of the time that passed.
    """

    workload: str
    threads: int
    step: str
    default: Side
    keep: Side
    cpu_ratio: float
    ratio: float

    def cells(self) -> list[str]:
        """The line."""
        sides = self.default, self.keep
        return [
            *(self.workload, str(self.threads), self.step),
            *(f"{side.cpu_milliseconds:.3g}" for side in sides),
            *(f"{self.cpu_ratio:.3f}", f"{self.ratio:.3f}"),
            *(f"{side.faults:,.0f}" for side in sides),
            *(f"{side.resident_mib:.0f} ({side.peak_mib:.0f})" for side in sides),
        ]


class Block(NamedTuple):
    """The cost of a step in one block: the first three values of `Side`."""

    cpu_milliseconds: float
    milliseconds: float
    faults: float


def make_block(process: OtherProcess, step: str, num_steps: int) -> Block:
    """Requests this many steps, and returns the cost of one step."""
    # `jax_steps` reads the first entry, `torch_steps` the others.
    plain = {"aggregator": None, "setting": "default", "bare": False}
    request = {"step": step, **plain, "steps": num_steps}
    before = process.usage()
    seconds = json.loads(process(json.dumps(request)))["seconds"]
    after = process.usage()
    return Block(
        1e3 * (after.cpu_seconds - before.cpu_seconds) / num_steps,
        1e3 * seconds / num_steps,
        (after.faults - before.faults) / num_steps,
    )


def compare(
    workload: str,
    threads: int,
    step: str,
    processes: Sequence[OtherProcess],
    rounds: int,
) -> Comparison:
    """Lets two processes, one for each of `MEMORY`, take turns."""
    for process in processes:
        make_block(process, step, 1)  # compiles
    warm = make_block(processes[0], step, 1).cpu_milliseconds
    num_steps = max(1, round(1e3 * BLOCK_SECONDS / warm))
    blocks: list[list[Block]] = [[], []]
    for _ in range(rounds):
        for process, own in zip(processes, blocks, strict=True):
            own.append(make_block(process, step, num_steps))
    default, keep = map(side, processes, blocks)

    def ratio(field: int) -> float:
        pairs = zip(*blocks, strict=True)
        return statistics.median(keep[field] / base[field] for base, keep in pairs)

    return Comparison(workload, threads, step, default, keep, ratio(0), ratio(1))


def side(process: OtherProcess, blocks: Sequence[Block]) -> Side:
    """Summarises the blocks of a process."""
    cpu, passed, faults = map(statistics.median, zip(*blocks, strict=True))
    usage = process.usage()
    return Side(cpu, passed, faults, usage.resident_mib, usage.peak_mib)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = timing_parser(__doc__ or "", rounds=15)
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="WORKLOAD",
        type=one_of(WORKLOADS),
        help=f"any of {', '.join(WORKLOADS)}; default: all",
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", default=[], help="of the library"
    )
    args = parser.parse_args(argv)
    methods = args.methods and choose_names(args.methods, mtlopt.METHODS, "--methods")
    others = os.sched_getaffinity(0) - {args.core}
    report = Report("memory", argv, args.out)
    results = []
    for name in args.workloads or WORKLOADS:
        workload = WORKLOADS[name]()
        in_torch = args.torch_python and hasattr(torch_steps, name)
        steps = [PLAIN, *methods, *([TORCH] if in_torch else [])]
        for threads in args.threads:
            # The processes inherit this setting.
            os.sched_setaffinity(0, {args.core, *sorted(others)[: threads - 1]})
            for step in steps:
                print(f"{name}, {threads} threads, {step}", file=sys.stderr, flush=True)
                processes = [
                    torch_process(args.torch_python, name, workload, memory, threads)
                    if step == TORCH
                    else OtherProcess(
                        *(sys.executable, "-m", "experiments.bench.jax_steps"),
                        *(name, str(threads), memory),
                    )
                    for memory in MEMORY
                ]
                results.append(compare(name, threads, step, processes, args.rounds))
                for process in processes:
                    process.close()
                report.write(results)  # as it comes: a run takes long
    report.print(markdown_table(HEADER, [result.cells() for result in results]))
    report.write(results)


if __name__ == "__main__":
    main()
