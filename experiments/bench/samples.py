"""Each sample belongs to one task: the cost of a step for T = 2 to 256 tasks.

    python -m experiments.bench.samples [--rounds 15] [--torch-python PATH] [--out FILE]

The network is an MLP 128-512x4 with a linear head for each task, in float32 on one
core. Each task gets the same number of samples. The time is CPU time, the minimum of
several rounds in which all steps take turns. `plain` is the gradient of the summed
losses by `jax.grad`. `gramian` computes the Gramian, task weights from a formula, the
combination and the heads' gradients. The columns of methods include their solvers; the
brackets contain the solver's own time, from the Gramian of this problem to its weights.
`operations` is XLA's count for `gramian`, divided by its count for `plain`. XLA counts
the body of a loop once, so the count is too low if a loop sums weight gradients by
task. `MiB` is the memory of temporaries.

With `--torch-python`, a second table has TorchJD's autogram with the same formula,
measured in the same turns. The autogram runs on the vector of task losses, and on the
losses of single samples.
"""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mtlopt
from experiments.bench.aggregators import PAIRS
from experiments.bench.machine import pin_to_one_thread, timing_parser
from experiments.bench.other_process import start_torch
from experiments.bench.report import Report
from experiments.lab.tables import markdown_table

INPUTS, WIDTH, LAYERS = 128, 512, 4
SIZES = ((256, 2), (256, 8), (256, 32), (256, 256), (512, 64))
METHODS = ("mgda", "upgrad", "aligned_mtl")
# Arguments of `torch_steps`: aggregator and setting.
TORCH = {
    "PyTorch plain": (None, "default"),
    "autogram": ("formula_weights", "autogram"),
    "autogram of samples": ("formula_weights", "autogram of samples"),
}
AUTOGRAM = ("autogram", "autogram of samples")
LABELS = {"encoder": "shared", "heads": "stacked"}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one step.

    Attributes:
        batch_size: Number of samples.
        num_tasks: Number of tasks.
        step: "plain", "gramian", the name of a method or of its solver, or in `TORCH`.
        milliseconds: The minimum CPU time.
        operations: XLA's count; 0 for solvers and PyTorch.
        temporaries: Temporary memory in MiB; 0 for solvers and PyTorch.
    """

    batch_size: int
    num_tasks: int
    step: str
    milliseconds: float
    operations: float = 0.0
    temporaries: float = 0.0


def make_problem(batch_size: int, num_tasks: int) -> tuple[Any, Any, Any]:
    """Returns an oracle, parameters and a batch."""
    rng = np.random.default_rng(0)
    sizes = [INPUTS] + [WIDTH] * LAYERS

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    params = {
        "encoder": [
            {"w": normal(a, b, scale=np.sqrt(2 / a)), "b": jnp.zeros(b)}
            for a, b in itertools.pairwise(sizes)
        ],
        "heads": normal(num_tasks, WIDTH, scale=WIDTH**-0.5),
    }

    def loss(params: Any, z: jax.Array, task: jax.Array, sample: Any) -> jax.Array:
        del task
        return (z @ params["heads"] - sample["y"]) ** 2

    tasks = rng.permutation(np.arange(batch_size) % num_tasks)
    batch = {
        "x": normal(batch_size, INPUTS),
        "y": normal(batch_size),
        "task": jnp.asarray(tasks, jnp.int32),
    }
    oracle = mtlopt.task_grad(
        mtlopt.samplewise(
            mtlopt.stacked(loss, num_tasks),
            task_of=lambda sample: sample["task"],
        ),
        LABELS,
        encode=encode,
    )
    return oracle, params, batch


def encode(params: Any, sample: Any) -> jax.Array:
    """Returns the latent of one sample, or of many."""
    z = sample["x"]
    for layer in params["encoder"]:
        z = jax.nn.relu(z @ layer["w"] + layer["b"])
    return z


def formula_weights(gramian: jax.Array) -> jax.Array:
    """Returns task weights that depend on the whole Gramian and cost no time."""
    shares = gramian.sum(axis=1) / jnp.abs(gramian).sum()
    return jnp.diagonal(gramian) / jnp.trace(gramian) + shares / 2


def make_steps(oracle: Any, params: Any) -> dict[str, Callable[..., Any]]:
    """Returns the steps by name, as functions of parameters and batch."""
    num_tasks = oracle.num_tasks

    def summed(params: Any, batch: Any) -> jax.Array:
        heads = params["heads"][batch["task"]]
        errors = jnp.sum(encode(params, batch) * heads, axis=1) - batch["y"]
        return jnp.sum(errors**2) * num_tasks / len(errors)

    def gramian(params: Any, batch: Any) -> Any:
        grads = oracle(params, batch)
        rows = grads.rows()
        return grads.updates(rows.combine(formula_weights(rows.gramian())))

    def with_method(name: str) -> Callable[..., Any]:
        method = mtlopt.METHODS[name].make(num_tasks, labels=LABELS)
        state = method.init(params)
        return lambda params, batch: method.update(
            oracle(params, batch), state, params
        )[0]

    return {
        "plain": jax.grad(summed),
        "gramian": gramian,
        **{name: with_method(name) for name in METHODS},
    }


def measure(
    batch_size: int,
    num_tasks: int,
    rounds: int,
    process: Callable[[str], str] | None = None,
) -> list[Cost]:
    """Compiles and times all steps at one size.

    Args:
        batch_size: Number of samples.
        num_tasks: Number of tasks.
        rounds: Number of rounds, of which the fastest counts.
        process: `torch_steps` with the same sizes, or None.
    """
    oracle, params, batch = make_problem(batch_size, num_tasks)
    programs = {
        name: jax.jit(step).lower(params, batch).compile()
        for name, step in make_steps(oracle, params).items()
    }
    turns = {name: _timed(program, params, batch) for name, program in programs.items()}
    make_gramian = jax.jit(lambda *args: oracle(*args).rows().gramian())
    gramian = make_gramian(params, batch)
    for name in METHODS:
        turns[_solver(name)] = _timed(jax.jit(PAIRS[name].ours), gramian, ())
    if process is not None:
        for name, request in TORCH.items():
            turns[name] = _torch_timed(process, *request)
    seconds = dict.fromkeys(turns, float("inf"))
    for _ in range(rounds + 1):  # the first also warms up
        for name, turn in turns.items():
            seconds[name] = min(seconds[name], turn())
    print(f"{batch_size}, {num_tasks} ", end="", file=sys.stderr, flush=True)
    counts = {name: _counts(program) for name, program in programs.items()}
    return [
        Cost(batch_size, num_tasks, name, 1e3 * each, *counts.get(name, ()))
        for name, each in seconds.items()
    ]


def _solver(method: str) -> str:
    return f"solver of {method}"


def _timed(program: Callable[..., Any], *args: Any) -> Callable[[], float]:
    """Returns a function that makes a step, and returns its seconds."""

    def turn() -> float:
        start = time.process_time()
        jax.block_until_ready(program(*args))
        return time.process_time() - start

    return turn


def _torch_timed(
    process: Callable[[str], str], aggregator: str | None, setting: str
) -> Callable[[], float]:
    """Returns a function that makes a PyTorch step, and returns its seconds."""
    request = {"aggregator": aggregator, "setting": setting, "bare": True, "steps": 1}

    def turn() -> float:
        return json.loads(process(json.dumps(request)))["cpu_seconds"]

    return turn


def _counts(program: Any) -> tuple[float, float]:
    """Returns XLA's operations, and MiB of temporaries."""
    temporaries = program.memory_analysis().temp_size_in_bytes
    return program.cost_analysis()["flops"], temporaries / 2**20


def by_size(costs: Sequence[Cost]) -> dict[tuple[int, int], dict[str, Cost]]:
    """Returns the costs by size and step."""
    found: dict[tuple[int, int], dict[str, Cost]] = {}
    for cost in costs:
        found.setdefault((cost.batch_size, cost.num_tasks), {})[cost.step] = cost
    return found


def table(costs: Sequence[Cost]) -> str:
    """Returns a Markdown table with a row for each size."""
    header = ["batch", "tasks", "plain, ms", "gramian", *METHODS, "operations", "MiB"]
    rows = []
    for size, found in by_size(costs).items():
        plain, gramian = found["plain"], found["gramian"]

        def of_plain(name: str, found: dict[str, Cost] = found) -> str:
            ratio = found[name].milliseconds / found["plain"].milliseconds
            return f"{ratio:.2f}"

        rows.append(
            [
                *map(str, size),
                f"{plain.milliseconds:.1f}",
                of_plain("gramian"),
                *(f"{of_plain(name)} ({of_plain(_solver(name))})" for name in METHODS),
                f"{gramian.operations / plain.operations:.2f}",
                f"{gramian.temporaries:.0f} (plain {plain.temporaries:.0f})",
            ]
        )
    return markdown_table(header, rows)


def torch_table(costs: Sequence[Cost]) -> str:
    """Returns a table of milliseconds, and TorchJD's fastest time divided by ours."""
    names = ("plain", "gramian", *TORCH)
    rows = []
    for size, found in by_size(costs).items():
        best = min(found[name].milliseconds for name in AUTOGRAM)
        rows.append(
            [
                *map(str, size),
                *(f"{found[name].milliseconds:.1f}" for name in names),
                f"{best / found['gramian'].milliseconds:.1f}",
            ]
        )
    return markdown_table(["batch", "tasks", *names, "times"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = timing_parser(__doc__ or "", rounds=15)
    args = parser.parse_args(argv)
    pin_to_one_thread(args.core)
    costs = []
    for size in SIZES:
        process = None
        if args.torch_python:
            process = start_torch(args.torch_python, "samples", size, "default")
        costs += measure(*size, args.rounds, process)
        if process is not None:
            process.close()
    report = Report("samples", argv, args.out)
    report.print(table(costs))
    if args.torch_python:
        report.print(torch_table(costs))
    report.write(costs)


if __name__ == "__main__":
    main()
