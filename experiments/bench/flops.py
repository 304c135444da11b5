"""What a step costs by XLA's own count, which does not depend on the machine.

    python -m experiments.bench.flops [WORKLOAD ...]

Compiles one training step per method and prints its floating-point operations, peak
temporary memory and compile time as multiples of a plain step on the summed loss with
the same optimizer. Operations and memory are those of the program with unrolled
pullbacks, because XLA counts the body of a loop once; compile time is that of the
library's default.
"""

import argparse
import time
from typing import Any

import jax

import mtlopt
from experiments.bench.workloads import (
    Step,
    Workload,
    floor_step,
    lenet,
    method_step,
    plain_step,
    stacked_lenet,
    stacked_mlp,
    unrolled,
)

WORKLOADS = {"lenet": lenet, "stacked_lenet": stacked_lenet, "mlp": stacked_mlp}


def measure(step: Step, state: Any, workload: Workload) -> dict[str, Any]:
    """Returns XLA's counts of one compiled step, and the time to compile it."""
    start = time.perf_counter()
    lowered = jax.jit(step).lower(workload.params, state, *workload.args)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    counts, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert counts is not None  # XLA counts on CPU, GPU and TPU
    assert memory is not None
    return {
        "flops": counts["flops"],
        "bytes": memory.temp_size_in_bytes,
        "compile_seconds": seconds,
    }


def table(workload: Workload) -> list[str]:
    """Returns the Markdown lines of one workload's table."""
    plain = measure(*plain_step(workload), workload)
    floor = measure(*floor_step(workload), workload)
    lines = [
        f"### {workload.name}",
        "",
        "| step | FLOPs / plain | FLOPs / Jacobian floor | temporary memory / plain "
        "| compile s |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = {"plain": plain, "Jacobian floor": floor}
    for name in mtlopt.METHODS:
        default = measure(*method_step(workload, name), workload)
        rows[name] = measure(*method_step(unrolled(workload), name), workload)
        rows[name]["compile_seconds"] = default["compile_seconds"]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['flops'] / plain['flops']:.4f} "
            f"| {row['flops'] / floor['flops']:.4f} "
            f"| {row['bytes'] / plain['bytes']:.2f} | {row['compile_seconds']:.2f} |"
        )
    return [*lines, ""]


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.flops")
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="WORKLOAD",
        help=f"any of {', '.join(WORKLOADS)}; default: all",
    )
    names = parser.parse_args(argv).workloads or list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            parser.error(f"WORKLOAD must be one of {list(WORKLOADS)}, got {name!r}")
    for name in names:
        print("\n".join(table(WORKLOADS[name]())), flush=True)


if __name__ == "__main__":
    main()
