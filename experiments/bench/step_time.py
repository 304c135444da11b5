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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from mtlopt.models import Functional, LeNet, functional

TASKS = ("left", "right")
LEARNING_RATE = 1e-3


class Batch(NamedTuple):
    """Images [batch, 28, 28, 1] and one label [batch] for each task."""

    images: jax.Array
    labels: dict[str, jax.Array]


Carry = Any  # (params, opt_state)
Step = Callable[[Carry, Batch], Carry]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: As printed.
        build: From the network to a training step and its initial carry. The step is
            pure and not jitted.
        in_scan: Whether the steps of a block run inside one `lax.scan`.
    """

    name: str
    build: Callable[[Functional], tuple[Step, Carry]]
    in_scan: bool = False


@dataclass(frozen=True)
class Result:
    """Median time of a step, and its ratio to PyTorch's with quartiles."""

    name: str
    milliseconds: float
    torch_milliseconds: float | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits [batch, classes] and labels [batch]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def plain_step(network: Functional) -> tuple[Step, Carry]:
    """Adam on the sum of the task losses."""
    params, encode, heads = network
    optimizer = optax.adam(LEARNING_RATE)

    def total_loss(params: Any, batch: Batch) -> jax.Array:
        z = encode(params, batch.images)
        return sum(
            (cross_entropy(heads[k](params, z), batch.labels[k]) for k in TASKS),
            start=jnp.zeros([]),
        )

    def step(carry: Carry, batch: Batch) -> Carry:
        params, opt_state = carry
        grads = jax.grad(total_loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step, (params, optimizer.init(params))


def jacobian_floor(network: Functional) -> tuple[Step, Carry]:
    """The least that a gradient-based method must do, written by hand.

    One pullback of the encoder for each task, the Gramian of the rows, Aligned-MTL's
    weights from it, the combined direction, Adam.
    """
    params, encode, heads = network
    optimizer = optax.adam(LEARNING_RATE)

    def weights(gramian: jax.Array) -> jax.Array:
        eigenvalues, vectors = jnp.linalg.eigh(gramian)
        eigenvalues = jnp.maximum(eigenvalues, 1e-7 * eigenvalues[-1])
        scales = jnp.sqrt(eigenvalues[0] / eigenvalues)
        return vectors @ (scales * vectors.sum(0))

    def step(carry: Carry, batch: Batch) -> Carry:
        params, opt_state = carry

        def head_loss(head_params: Any, z: jax.Array, task: str) -> jax.Array:
            full = params | {"heads": params["heads"] | {task: head_params}}
            return cross_entropy(heads[task](full, z), batch.labels[task])

        def encode_shared(shared: Any) -> jax.Array:
            return encode(params | {"encoder": shared}, batch.images)

        z, pullback = jax.vjp(encode_shared, params["encoder"])
        head_grads, rows = {}, []
        for task in TASKS:
            grads = jax.grad(head_loss, (0, 1))(params["heads"][task], z, task)
            head_grads[task] = grads[0]
            rows.append(jax.tree.leaves(pullback(grads[1])[0]))
        leaves = [
            jnp.stack([jnp.ravel(gradient) for gradient in leaf])
            for leaf in zip(*rows, strict=True)
        ]
        gramian = sum((leaf @ leaf.T for leaf in leaves), start=jnp.zeros([]))
        combined = [weights(gramian) @ leaf for leaf in leaves]
        old, treedef = jax.tree.flatten(params["encoder"])
        shared = [g.reshape(p.shape) for g, p in zip(combined, old, strict=True)]
        grads = {"encoder": jax.tree.unflatten(treedef, shared), "heads": head_grads}
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step, (params, optimizer.init(params))


ROWS = (
    Row("plain", plain_step),
    Row("plain in scan", plain_step, in_scan=True),
    Row("jacobian floor", jacobian_floor),
    Row("jacobian floor in scan", jacobian_floor, in_scan=True),
)


def make_batch(batch_size: int) -> Batch:
    """Random images and labels: the time of a step does not depend on them."""
    image_key, *label_keys = jax.random.split(jax.random.key(0), 1 + len(TASKS))
    return Batch(
        jax.random.normal(image_key, [batch_size, 28, 28, 1]),
        {
            task: jax.random.randint(key, [batch_size], 0, 10)
            for task, key in zip(TASKS, label_keys, strict=True)
        },
    )


def timer(row: Row, batch: Batch, num_steps: int) -> Callable[[], float]:
    """Returns a function that runs and times `num_steps` compiled, warm steps."""
    step, carry = row.build(functional(LeNet(TASKS, rngs=nnx.Rngs(0))))

    def scanned(carry: Carry, batch: Batch) -> Carry:
        return lax.scan(lambda c, _: (step(c, batch), None), carry, length=num_steps)[0]

    compiled = jax.jit(scanned if row.in_scan else step)

    def run() -> float:
        nonlocal carry
        start = time.perf_counter()
        for _ in range(1 if row.in_scan else num_steps):
            carry = compiled(carry, batch)
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
    *,
    torch_python: str | None = None,
    batch_size: int = 256,
    num_steps: int = 20,
    num_rounds: int = 15,
) -> list[Result]:
    """Measures all rows, with a block of PyTorch's steps before each of theirs."""
    batch = make_batch(batch_size)
    timers = [timer(row, batch, num_steps) for row in rows]
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
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    args = parser.parse_args(argv)
    pin_to_one_thread(args.core)
    results = measure(
        ROWS,
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
