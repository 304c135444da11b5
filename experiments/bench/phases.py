"""The cost of a step in each phase of ATE-SG, by XLA's count.

    python -m experiments.bench.phases [NETWORK ...]

The script counts the operations and the temporary memory of a step on one block of
parameters, as multiples of a step on both blocks. It uses the paper's three networks at
their full size, with SG. "cached" trains the heads on features that were encoded
before. "encode" is the cost of encoding the features once in a phase, for the same
number of examples. The tables also give the paper's units, in which an epoch of the
heads costs their share of the parameters. Programs are compiled, but not run.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments.ate_sg import mammography, synthetic, wireless
from experiments.ate_sg.classifiers import Classifier
from experiments.ate_sg.costs import count, count_steps, parameter_costs
from experiments.ate_sg.training import make_steps
from experiments.bench.machine import one_of
from experiments.bench.report import Report, add_out
from experiments.lab.batches import take
from experiments.lab.tables import markdown_table
from mtlopt import Run, block_step

# The experiments of the paper, and options that make just enough data for a batch.
NETWORKS = {
    "synthetic": (synthetic, {"points": 1_000}),
    "wireless": (wireless, {"signals_each": 120}),
    "mammography": (
        mammography,
        {"train_images": 32, "validation_images": 1, "test_images": 1},
    ),
}


def table(problem: Classifier, batch_size: int) -> str:
    """Returns a network's Markdown table, and the cost of cycles."""
    counts = count_steps(problem, batch_size)
    # Only the heads move, but the step encodes the batch again.
    transform, _ = make_steps(problem, "sgd")["task"]
    model = jax.eval_shape(problem.init, 0)
    batch = jax.eval_shape(take, problem.splits["train"], jnp.arange(batch_size))
    run = Run(model[0], jax.eval_shape(transform.init, model[0]), model[1])
    heads = count(block_step(problem.oracle, transform, "task"), run, batch)
    counts = {
        "both": counts["full"],
        "shared": counts["shared"],
        "heads": heads,
        "heads, cached": counts["task"],
        "encode": counts["encode"],
    }
    paper = parameter_costs(problem)
    units = {"both": 1.0, "shared": paper.shared, "heads": paper.task}
    units["heads, cached"] = paper.task
    whole = counts["both"]
    rows = [
        [
            name,
            f"{own.operations / whole.operations:.3f}",
            f"{own.temporary_bytes / whole.temporary_bytes:.3f}",
            f"{units[name]:.3f}" if name in units else "",
        ]
        for name, own in counts.items()
    ]
    flops = {name: own.operations / whole.operations for name, own in counts.items()}
    cycles = [("without a cache", flops["shared"] + flops["heads"])]
    for length in (1, 10, 100):
        task = flops["heads, cached"] + flops["encode"] / length
        cycles.append((f"E0 = Ets = {length}", flops["shared"] + task))
    cycles.append(("in the paper's unit", paper.shared + paper.task))
    cost = ", ".join(f"{name} {value / 2:.3f}" for name, value in cycles)
    header = ["step", "operations", "temporary memory", "the paper's unit"]
    return (
        f"{markdown_table(header, rows)}\n\n"
        f"Cost of a cycle, divided by as many epochs of both blocks: {cost}.\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.phases")
    parser.add_argument(
        "networks",
        nargs="*",
        metavar="NETWORK",
        type=one_of(NETWORKS),
        help=f"any of {', '.join(NETWORKS)}; default: all",
    )
    add_out(parser)
    args = parser.parse_args(argv)
    report = Report("phases", argv, args.out)
    for name in args.networks or NETWORKS:
        experiment, small = NETWORKS[name]
        settings = experiment.Settings(**{**experiment.FULL, **small})
        problem, _ = experiment.load(settings)
        report.print(f"### {name}, batch {settings.batch_size}")
        report.print(table(problem, settings.batch_size))
    report.write([])


if __name__ == "__main__":
    main()
