"""Layerwise Gramians compared with rows: time and memory relative to a plain step.

    python -m experiments.bench.layerwise [--tasks 40] [--batch 16 64 256] [--separate]

Rows are the tasks' gradients as arrays. A layerwise Gramian sums their inner products
layer by layer, without these arrays. The network is an MLP with 128 inputs and four
layers of 512. It trains with Adam; with `--bare` there is no update. Steps on one core
and one thread take turns. The time is CPU time, the minimum over the rounds. With
`--correlated` the tasks have nearly the same heads and labels, so that cosines are
about 0.999 and methods read the rows a second time.

With `--torch-python`, TorchJD's steps with each of `SETTINGS` also take turns. A second
table compares the milliseconds of the layerwise step with TorchJD's fastest setting.
`--memory keep` calls `mtlopt.keep_memory` in both processes.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.bench.machine import (
    MEMORY,
    choose_memory,
    pin_to_one_thread,
    timing_parser,
)
from experiments.bench.other_process import start_torch
from experiments.bench.report import Report
from experiments.bench.steps import TORCHJD
from experiments.bench.torch_steps import SETTINGS
from experiments.bench.workloads import (
    Step,
    Workload,
    method_step,
    plain_step,
    wide_mlp,
    with_options,
)
from experiments.lab.tables import markdown_table

METHODS = ("aligned_mtl", "upgrad", "mgda")


@dataclasses.dataclass
class Result:
    """One line of a table; times are in seconds, memory is in bytes.

    `torchjd` has the time, or the error that was raised, by setting.
    """

    heads: str
    num_tasks: int
    batch_size: int
    batch: str
    method: str
    plain: float
    rows: float | None
    layerwise: float
    rows_bytes: int
    layerwise_bytes: int
    torchjd: dict[str, float | str] = dataclasses.field(default_factory=dict)

    def cells(self) -> list[str]:
        """Returns the line's cells."""

        def of_plain(seconds: float | None) -> str:
            return "" if seconds is None else f"{seconds / self.plain:.2f}"

        share = "" if self.rows is None else f"{self.layerwise / self.rows:.2f}"
        return [
            self.heads,
            str(self.num_tasks),
            str(self.batch_size),
            self.batch,
            self.method,
            f"{1e3 * self.plain:.2f}",
            of_plain(self.rows),
            of_plain(self.layerwise),
            share,
            f"{self.rows_bytes / 2**20:.1f}",
            f"{self.layerwise_bytes / 2**20:.1f}",
        ]

    def torchjd_cells(self) -> list[str]:
        """Returns the line of the comparison with TorchJD."""
        times = [each for each in self.torchjd.values() if isinstance(each, float)]
        return [
            *(str(self.num_tasks), str(self.batch_size), self.method),
            f"{1e3 * self.layerwise:.1f}",
            *(
                each if isinstance(each, str) else f"{1e3 * each:.1f}"
                for each in self.torchjd.values()
            ),
            f"{self.layerwise / min(times):.3f}" if times else "",
        ]


def separate(workload: Workload) -> Workload:
    """The same network with a head function for each task."""
    params, num_tasks = workload.params, workload.oracle.num_tasks
    heads = {
        f"t{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["heads"])
        for i in range(num_tasks)
    }

    def loss(task: int, params: Any, z: jax.Array, x: Any, labels: jax.Array) -> Any:
        del x
        own = params["heads"][f"t{task}"]
        logits = z @ own["kernel"] + own["bias"]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels[:, task]))

    problem: Any = workload.oracle.problem
    encode = problem.encode

    def total(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        z = encode(params, x, labels)
        each = [loss(i, params, z, x, labels) for i in range(num_tasks)]
        return jnp.sum(jnp.stack(each))

    oracle = mtlopt.task_grad(
        {
            f"t{i}": lambda params, z, x, labels, i=i: loss(i, params, z, x, labels)
            for i in range(num_tasks)
        },
        {"encoder": "shared", **{f"heads/t{i}": f"t{i}" for i in range(num_tasks)}},
        encode=encode,
    )
    return dataclasses.replace(
        workload, oracle=oracle, params={**params, "heads": heads}, total=total
    )


def correlated(workload: Workload) -> Workload:
    """The same network, with all heads and labels nearly equal to the first task's."""

    def near(leaf: jax.Array) -> jax.Array:
        noise = jax.random.normal(jax.random.key(5), leaf.shape)
        return leaf[:1] + 0.03 * jnp.std(leaf) * noise

    params = {**workload.params, "heads": jax.tree.map(near, workload.params["heads"])}
    x, labels = workload.args
    labels = jnp.broadcast_to(labels[:, :1], labels.shape)
    return dataclasses.replace(workload, params=params, args=(x, labels))


class Program:
    """A compiled step and its arguments."""

    def __init__(self, workload: Workload, made: tuple[Step, Any]) -> None:
        step, state = made
        self._inputs = workload.params, state, *workload.args
        self._call = jax.jit(step).lower(*self._inputs).compile()
        memory = self._call.memory_analysis()
        assert memory is not None
        self.temporary = memory.temp_size_in_bytes
        self._best, self._steps = float("inf"), 1
        self.turn()
        self._steps = max(1, int(0.1 / self.turn()))
        self._best = float("inf")

    def turn(self) -> float:
        """Runs for about a tenth of a second; returns the seconds of one step."""
        start = time.process_time()
        out = None
        for _ in range(self._steps):
            out = self._call(*self._inputs)
        jax.block_until_ready(out)
        self._best = min(self._best, (time.process_time() - start) / self._steps)
        return self._best


class TorchProgram:
    """TorchJD's step in the other process, with one of the `SETTINGS`."""

    def __init__(
        self, process: Callable[[str], str], method: str, setting: str, bare: bool
    ) -> None:
        request = {"aggregator": TORCHJD[method], "setting": setting, "bare": bare}
        self._process, self._question = process, json.dumps({**request, "steps": 1})
        self.best: float | str = float("inf")

    def turn(self) -> None:
        """Makes a step, unless an earlier step has raised an error."""
        if isinstance(self.best, str):
            return
        answer = json.loads(self._process(self._question))
        seconds = answer.get("cpu_seconds", float("inf"))
        self.best = answer.get("error") or min(self.best, seconds)


def measure(
    workload: Workload,
    name: str,
    rounds: int,
    process: Callable[[str], str] | None = None,
    bare: bool = False,
    **about: Any,
) -> Result:
    """Measures a method with rows and layerwise, and the plain step.

    Args:
        workload: The problem.
        name: Name of the method.
        rounds: Number of rounds, of which the fastest counts.
        process: `torch_steps` with the same network, or None.
        bare: Whether TorchJD makes no update.
        **about: Other fields of the result.
    """
    plain = Program(workload, plain_step(workload))
    ways = [
        Program(workload, method_step(with_options(workload, layerwise=way), name))
        for way in (False, True)
    ]
    programs = [plain, *ways]
    theirs = {}
    if process is not None:
        theirs = {
            setting: TorchProgram(process, name, setting, bare) for setting in SETTINGS
        }
    times = []
    for _ in range(rounds):
        times.append([program.turn() for program in programs])
        for program in theirs.values():
            program.turn()
    best = np.min(times, axis=0)
    return Result(
        method=name,
        plain=float(best[0]),
        rows=float(best[1]),
        layerwise=float(best[2]),
        rows_bytes=ways[0].temporary,
        layerwise_bytes=ways[1].temporary,
        torchjd={setting: program.best for setting, program in theirs.items()},
        **about,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = timing_parser(__doc__ or "", rounds=5)
    parser.add_argument("--tasks", type=int, nargs="+", default=[40])
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--separate", action="store_true")
    parser.add_argument("--bare", action="store_true", help="gradients alone")
    parser.add_argument("--correlated", action="store_true")
    parser.add_argument("--memory", choices=MEMORY, default="default")
    options = parser.parse_args(argv)
    if options.torch_python and options.correlated:
        parser.error("--torch-python has no --correlated batch")
    pin_to_one_thread(options.core)
    choose_memory(options.memory)
    results = []
    for num_tasks in options.tasks:
        for batch_size in options.batch:
            workload = wide_mlp(num_tasks, batch_size)
            if options.bare:
                nothing = optax.sgd(1.0)
                workload = dataclasses.replace(workload, optimizer=nothing)
            if options.correlated:
                workload = correlated(workload)
            if options.separate:
                workload = separate(workload)
            process = None
            if options.torch_python:
                size = batch_size, num_tasks
                process = start_torch(
                    options.torch_python, "wide_mlp", size, options.memory
                )
            for name in options.methods:
                result = measure(
                    workload,
                    name,
                    options.rounds,
                    process,
                    options.bare,
                    heads="separate" if options.separate else "stacked",
                    num_tasks=num_tasks,
                    batch_size=batch_size,
                    batch="correlated" if options.correlated else "random",
                )
                results.append(result)
                print("\t".join(result.cells()), flush=True)
            if process is not None:
                process.close()
    header = "heads tasks batch data method plain_ms rows layerwise share rows_MiB MiB"
    report = Report("layerwise", argv, options.out)
    cells = [result.cells() for result in results]
    report.print(markdown_table(header.split(), cells))
    if options.torch_python:
        header = ["tasks", "batch", "method", "ms", *SETTINGS, "of the fastest"]
        lines = [result.torchjd_cells() for result in results]
        report.print(markdown_table(header, lines))
    report.write(results)


if __name__ == "__main__":
    main()
