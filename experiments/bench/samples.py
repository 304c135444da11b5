"""One task per sample: what a step costs at T = 2 to 256.

    python -m experiments.bench.samples [--rounds 15] [--out FILE]

An MLP 128-512x4 with a linear head for each task, whose samples are dealt to the tasks
in equal numbers, in float32 on one core: CPU time, the least of several rounds in which
all steps take turns. `plain` is the gradient of the summed losses by `jax.grad`.
`gramian` makes the Gramian, task weights from a formula, the combination and the heads'
gradients. The methods include their solvers. `operations` are XLA's, of `gramian` over
plain; XLA does not count the turns of a loop, so where weight gradients are summed by
task in one they are too few. `MiB` are temporaries.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mtlopt
from experiments.bench.machine import pin_to_one_thread, timing_parser, write_record
from experiments.report import markdown_table

INPUTS, WIDTH, LAYERS = 128, 512, 4
SIZES = ((256, 2), (256, 8), (256, 32), (256, 256), (512, 64))
METHODS = ("mgda", "upgrad", "aligned_mtl")
LABELS = {"encoder": "shared", "heads": "stacked"}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step.

    Attributes:
        batch_size: Number of samples.
        num_tasks: Number of tasks.
        step: "plain", "gramian" or the name of a method.
        milliseconds: The least CPU time.
        operations: XLA's count.
        temporaries: In MiB.
    """

    batch_size: int
    num_tasks: int
    step: str
    milliseconds: float
    operations: float
    temporaries: float


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
    """The latent of one sample, or of many."""
    z = sample["x"]
    for layer in params["encoder"]:
        z = jax.nn.relu(z @ layer["w"] + layer["b"])
    return z


def make_steps(oracle: Any, params: Any) -> dict[str, Callable[..., Any]]:
    """Returns the steps by name, functions of parameters and batch."""
    num_tasks = oracle.num_tasks

    def summed(params: Any, batch: Any) -> jax.Array:
        heads = params["heads"][batch["task"]]
        errors = jnp.sum(encode(params, batch) * heads, axis=1) - batch["y"]
        return jnp.sum(errors**2) * num_tasks / len(errors)

    def gramian(params: Any, batch: Any) -> Any:
        grads = oracle(params, batch)
        rows = grads.rows()
        products = rows.gramian()
        shares = products.sum(axis=1) / jnp.abs(products).sum()
        weights = jnp.diagonal(products) / jnp.trace(products) + shares / 2
        return grads.updates(rows.combine(weights))

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


def measure(batch_size: int, num_tasks: int, rounds: int) -> list[Cost]:
    """Compiles and times all steps at one size."""
    oracle, params, batch = make_problem(batch_size, num_tasks)
    programs = {
        name: jax.jit(step).lower(params, batch).compile()
        for name, step in make_steps(oracle, params).items()
    }
    seconds = dict.fromkeys(programs, float("inf"))
    for _ in range(rounds + 1):  # the first also warms up
        for name, program in programs.items():
            start = time.process_time()
            jax.block_until_ready(program(params, batch))
            seconds[name] = min(seconds[name], time.process_time() - start)
    print(f"{batch_size}, {num_tasks} ", end="", file=sys.stderr, flush=True)
    return [
        Cost(
            batch_size,
            num_tasks,
            name,
            1e3 * seconds[name],
            *_counts(program),
        )
        for name, program in programs.items()
    ]


def _counts(program: Any) -> tuple[float, float]:
    """Returns XLA's operations, and MiB of temporaries."""
    temporaries = program.memory_analysis().temp_size_in_bytes
    return program.cost_analysis()["flops"], temporaries / 2**20


def table(costs: Sequence[Cost]) -> str:
    """Returns a Markdown table, a row for each size."""
    header = ["batch", "tasks", "plain, ms", "gramian", *METHODS, "operations", "MiB"]
    rows = []
    for size in dict.fromkeys((cost.batch_size, cost.num_tasks) for cost in costs):
        found = {
            cost.step: cost
            for cost in costs
            if (cost.batch_size, cost.num_tasks) == size
        }
        plain, gramian = found["plain"], found["gramian"]
        times = [
            f"{found[name].milliseconds / plain.milliseconds:.2f}"
            for name in ("gramian", *METHODS)
        ]
        rows.append(
            [
                *map(str, size),
                f"{plain.milliseconds:.1f}",
                *times,
                f"{gramian.operations / plain.operations:.2f}",
                f"{gramian.temporaries:.0f} (plain {plain.temporaries:.0f})",
            ]
        )
    return markdown_table(header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = timing_parser(__doc__ or "", rounds=15)
    args = parser.parse_args(argv)
    pin_to_one_thread(args.core)
    costs = [cost for size in SIZES for cost in measure(*size, args.rounds)]
    print("\n" + table(costs))
    write_record(args.out, costs)


if __name__ == "__main__":
    main()
