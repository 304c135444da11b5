"""Time, operations and memory of every method's step; PyTorch and TorchJD compared.

    python -m experiments.bench.steps [WORKLOAD ...] [--torch-python PATH] [--out FILE]

XLA compiles a step of every method and counts its operations and memory. Then the step
is timed on one core and one thread. Short blocks take turns: our plain step on the
summed loss, the method's step and, with `--torch-python`, PyTorch's plain step and
TorchJD's step with each of `SETTINGS`. On a CPU the time is processor time, because
other work disturbs processor time the least. A ratio is the median over the rounds of
the ratios of neighbouring blocks, so that drift of the machine cancels. `--rounds 0`
only counts. `--platform gpu` uses a whole GPU. `--memory keep` calls
`mtlopt.keep_memory` in both processes.

The step `product` computes the product of the Gramian with a vector, and makes no
update. The step `every_10_nash_mtl` computes weights on each tenth step, and its time
is the mean over all steps.

Operations and memory are multiples of the plain step's. They are counted in the program
with unrolled pullbacks, because XLA counts the body of a loop over tasks once. With
more than a few tasks, methods on parameter gradients need a second compilation for this
count.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

import mtlopt
from experiments.bench.machine import (
    MEMORY,
    choose_memory,
    one_of,
    pin_to_one_thread,
    timing_parser,
)
from experiments.bench.other_process import OtherProcess, start_torch
from experiments.bench.report import Report
from experiments.bench.torch_steps import SETTINGS
from experiments.bench.workloads import (
    REUSED_STEPS,
    UNROLLED_TASKS,
    WORKLOADS,
    Step,
    Workload,
    floor_step,
    method_step,
    plain_step,
    product_step,
    reused_step,
    with_options,
)
from experiments.lab.settings import choose_names
from experiments.lab.tables import markdown_table

PLAIN, FLOOR, PRODUCT = "plain", "Jacobian floor", "product"
REUSED = f"every_{REUSED_STEPS}_nash_mtl"
BLOCK_SECONDS = 0.2

# Steps that are not methods of the library; users can choose all but the first two.
OTHER_STEPS: dict[str, Callable[[Workload], tuple[Step, Any]]] = {
    PLAIN: plain_step,
    FLOOR: floor_step,
    PRODUCT: product_step,
    REUSED: lambda workload: reused_step(workload, "nash_mtl"),
}

# TorchJD's aggregator for each method of ours; a latent method has the aggregator of
# the method on parameters.
TORCHJD = {
    "sum_tasks": "Sum()",
    "mean_tasks": "Mean()",
    "mgda": "MGDA()",
    "mgda_ub": "MGDA()",
    "pcgrad": "PCGrad()",
    "upgrad": "UPGrad()",
    "dualproj": "DualProj()",
    "pcd": "PCD()",
    "cagrad": "CAGrad(c=0.4)",
    "nash_mtl": "NashMTL(T)",
    "fairgrad": "FairGrad(alpha=2.0)",
    "gradvac": "GradVac()",
    "graddrop": "GradDrop()",
    "imtl_g": "IMTLG()",
    "conflict_free": "ConFIG()",
    "krum": "Krum(1)",
    "trimmed_mean": "TrimmedMean(1)",
    "excess_mtl": "ExcessMTL()",
    "aligned_mtl": "AlignedMTL()",
    "aligned_mtl_ub": "AlignedMTL()",
}


HEADER = (
    "step",
    "ms",
    "of plain",
    "operations",
    "memory",
    "compile s",
    "of PyTorch plain",
    *(f"of TorchJD, {setting}" for setting in SETTINGS),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """A line of the table; None if there is nothing to compare with.

    Attributes:
        workload: Name of the workload.
        step: Name of the method, or in `OTHER_STEPS`.
        milliseconds: Median time of a step.
        plain: Time as a multiple of our plain step's.
        operations: XLA's count, as a multiple of our plain step's. None for a loop over
            the tasks, because XLA counts its body once.
        memory: Temporary memory, as a multiple of our plain step's.
        compile_seconds: Time to trace and compile it.
        torch: Time as a multiple of PyTorch's plain step's.
        torchjd: Time as a multiple of TorchJD's, or the error that TorchJD raised, by
            its setting.
    """

    workload: str
    step: str
    milliseconds: float | None
    plain: float | None
    operations: float | None
    memory: float | None
    compile_seconds: float
    torch: float | None
    torchjd: dict[str, float | str]

    def cells(self) -> list[str]:
        """The line."""
        milliseconds, compilation = (
            "" if value is None else f"{value:.3g}"
            for value in (self.milliseconds, self.compile_seconds)
        )
        ratios = [
            "" if value is None else f"{value:.3f}"
            for value in (self.plain, self.operations, self.memory)
        ]
        rivals = (self.torch, *(self.torchjd.get(setting) for setting in SETTINGS))
        return [
            *(self.step, milliseconds, *ratios, compilation),
            *(
                value if isinstance(value, str) else f"{value:.2f}"
                for value in ("" if each is None else each for each in rivals)
            ),
        ]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, the seconds of the compilation, and XLA's counts."""

    call: Callable[..., Any]
    state: Any
    compile_seconds: float
    operations: float
    temporary_bytes: int
    peak_bytes: int  # includes arguments and results; none is donated


def compiled(workload: Workload, step: Step, state: Any) -> Program:
    """Compiles a step of a workload."""
    start = time.perf_counter()
    lowered = jax.jit(step).lower(workload.params, state, *workload.args)
    program = lowered.compile()
    seconds = time.perf_counter() - start
    counts, memory = program.cost_analysis(), program.memory_analysis()
    assert counts is not None  # XLA counts on CPU, GPU and TPU
    assert memory is not None
    temporary = memory.temp_size_in_bytes
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + temporary
    return Program(program, state, seconds, counts["flops"], temporary, peak)


class Block:
    """Steps of a program after a warm-up, enough to take `BLOCK_SECONDS`.

    Args:
        program: The compiled step.
        workload: The problem of the step.
        multiple_of: A divisor of the number of steps.
        clock: The clock that times the steps.
    """

    def __init__(
        self,
        program: Program,
        workload: Workload,
        multiple_of: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._clock = clock
        self._program = program
        self._args = workload.args
        self._carry = workload.params, program.state
        self.num_steps = 1
        self()
        periods = BLOCK_SECONDS / self() / multiple_of
        self.num_steps = multiple_of * max(1, round(periods))

    def __call__(self) -> float:
        """Makes the steps; returns the seconds of one step."""
        params, state = self._carry
        start = self._clock()
        for _ in range(self.num_steps):
            params, state, _ = self._program.call(params, state, *self._args)
        jax.block_until_ready(params)
        seconds = self._clock() - start
        self._carry = params, state
        return seconds / self.num_steps


class TorchBlock:
    """Steps in the PyTorch process, enough to take `BLOCK_SECONDS`.

    Args:
        process: The process that runs `torch_steps`.
        aggregator: TorchJD's, or None for the summed loss.
        setting: One of `SETTINGS`.
    """

    def __init__(
        self, process: OtherProcess, aggregator: str | None, setting: str = "default"
    ):
        self._process = process
        self._request = {"aggregator": aggregator, "setting": setting, "bare": False}
        self.num_steps = 1
        self.error = ""
        seconds = self()
        if seconds is not None:
            self.num_steps = max(1, round(BLOCK_SECONDS / seconds))

    def __call__(self) -> float | None:
        """Makes the steps; returns the processor time of one, None after an error."""
        if self.error:
            return None
        request = json.dumps({**self._request, "steps": self.num_steps})
        answer = json.loads(self._process(request))
        self.error = answer.get("error", "")
        return None if self.error else answer["cpu_seconds"] / self.num_steps


def measure(
    workload: Workload,
    methods: Sequence[str],
    process: OtherProcess | None,
    rounds: int,
) -> Iterator[Result]:
    """Measures the plain step, the hand-written Jacobian step and the chosen steps.

    Args:
        workload: The problem.
        methods: Names in `mtlopt.METHODS` or `OTHER_STEPS`.
        process: `torch_steps` with the same workload, or None.
        rounds: Number of blocks of each step; 0 for none.
    """
    on_cpu = jax.default_backend() == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    plain = compiled(workload, *plain_step(workload))
    floor = (FLOOR,) if workload.unrolls else ()
    for name in (PLAIN, *floor, *methods):
        counted: Program | None = plain
        program = plain
        if name != PLAIN:
            counted = program = compiled(workload, *make_step(workload, name))
        if name == REUSED:
            counted = None  # XLA counts only the costlier branch
        if may_loop(workload, name):
            counted = None
            if workload.unrolls:
                unrolled = with_options(workload, batching="unroll")
                counted = compiled(unrolled, *make_step(unrolled, name))
        blocks: dict[str, Any] = {}
        if rounds:
            period = REUSED_STEPS if name == REUSED else 1
            blocks = {
                "plain": Block(plain, workload, clock=clock),
                "ours": Block(program, workload, period, clock),
            }
            if process is not None:
                blocks["torch"] = TorchBlock(process, None)
                for setting in SETTINGS if name in TORCHJD else ():
                    blocks[setting] = TorchBlock(process, TORCHJD[name], setting)
        times = take_turns(blocks, rounds)
        ours = times.pop("ours", [])
        ratios = {
            rival: blocks[rival].error
            if seconds[0] is None
            else statistics.median(a / b for a, b in zip(ours, seconds, strict=True))
            for rival, seconds in times.items()
        }
        yield Result(
            workload.name,
            name,
            1e3 * statistics.median(ours) if ours else None,
            ratios.pop("plain", None),
            counted and counted.operations / plain.operations,
            counted and counted.temporary_bytes / plain.temporary_bytes,
            program.compile_seconds,
            ratios.pop("torch", None),
            ratios,
        )


def torch_process(
    python: str, name: str, workload: Workload, memory: str, num_threads: int = 1
) -> OtherProcess:
    """Starts `torch_steps` with a workload and one of `MEMORY`."""
    size = len(workload.args[0]), workload.oracle.num_tasks
    return start_torch(python, name, size, memory, num_threads)


def make_step(workload: Workload, name: str) -> tuple[Step, Any]:
    """Returns a step by its name, a method or one of `OTHER_STEPS`."""
    if name in OTHER_STEPS:
        return OTHER_STEPS[name](workload)
    return method_step(workload, name)


def may_loop(workload: Workload, name: str) -> bool:
    """Whether the program of a step may have a loop over tasks."""
    if name in OTHER_STEPS:
        return False
    method = mtlopt.METHODS[name]
    return method.backward == "T" and workload.oracle.num_tasks > UNROLLED_TASKS


def fits(workload: Workload, name: str) -> bool:
    """Whether a workload has enough tasks for a method."""
    least = 1 if name in OTHER_STEPS else mtlopt.METHODS[name].min_tasks
    return least <= workload.oracle.num_tasks


def take_turns(
    blocks: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, list[Any]]:
    """Runs every block once a round; returns the seconds of a step in each round."""
    times: dict[str, list[Any]] = {name: [] for name in blocks}
    for _ in range(rounds):
        for name, block in blocks.items():
            times[name].append(block())
    return times


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = timing_parser(__doc__ or "", rounds=5)
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="WORKLOAD",
        type=one_of(WORKLOADS),
        help=f"any of {', '.join(WORKLOADS)}; default: all",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        default=["all"],
        help=f"methods of the library, {PRODUCT} or {REUSED} [all]",
    )
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--memory", choices=MEMORY, default="default")
    args = parser.parse_args(argv)
    methods = choose_names(
        args.methods, [*mtlopt.METHODS, PRODUCT, REUSED], "--methods"
    )
    if args.platform == "cpu":
        pin_to_one_thread(args.core)
    choose_memory(args.memory)
    report = Report("steps", argv, args.out)
    results = []
    for name in args.workloads or WORKLOADS:
        workload = WORKLOADS[name]()
        process = None
        if args.torch_python and args.rounds:
            process = torch_process(args.torch_python, name, workload, args.memory)
        report.print(f"### {workload.name}, memory: {args.memory}")
        enough = [method for method in methods if fits(workload, method)]
        lines = []
        for result in measure(workload, enough, process, args.rounds):
            results.append(result)
            lines.append(result.cells())
            print(f"{result.step} ", end="", file=sys.stderr, flush=True)
            report.write(results)  # as it comes: a run takes long
        columns = len(HEADER) if process else HEADER.index("of PyTorch plain")
        cut = [line[:columns] for line in lines]
        report.print(markdown_table(HEADER[:columns], cut))
        report.write(results)
        if process is not None:
            process.close()


if __name__ == "__main__":
    main()
