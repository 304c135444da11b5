"""What a step of a line search costs beside SGD: tables 1 and 3 of the FBLS paper.

    python -m experiments.bench.line_search_time [WORKLOAD ...]

For LeNet-5 (T = 2), ResNet-18 (T = 10) and BERT (T = 3): the seconds of an epoch and
XLA's count of floating-point operations, as multiples of three baselines, because the
paper does not say what its "SGD" does with T losses:

plain             one forward and one backward pass of the summed loss
per task, shared  one forward and T backward passes, one for each loss
per task          for each task in turn a forward pass, a backward pass and a step

XLA counts the body of a loop once. A further trial of FBLS is therefore added as one
forward pass of the heads, of BLS as one of the whole network, times the mean number of
trials that was measured; the two per-task baselines are sums of XLA's counts of a
forward pass and of a plain step. All steps use random batches, one core and one thread;
the data are stand-ins and nothing but their shapes matters, up to the trials.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.bench.machine import one_of, pin_to_one_thread, positive, write_record
from experiments.fast_line_search.methods import DIRECTIONS
from experiments.fast_line_search.timing import (
    CIFAR_TRAIN,
    MULTIMNIST_TRAIN,
    STS_TRAIN,
    Workload,
    measure,
    report,
)


def lenet5(batch_size: int, _: argparse.Namespace) -> Workload:
    """LeNet-5 on two overlaid digits."""
    from experiments.data.multimnist import load_multimnist
    from experiments.fast_line_search.multimnist import lenet5_problem

    data = load_multimnist(num_train=2_048, num_validation=1, num_test=1)
    problem = lenet5_problem(data)
    return Workload("LeNet-5, T = 2", problem, batch_size, MULTIMNIST_TRAIN)


def resnet18(batch_size: int, options: argparse.Namespace) -> Workload:
    """ResNet-18 on ten one-vs-rest tasks."""
    from experiments.data.cifar10 import load_cifar10
    from experiments.fast_line_search.cifar10 import resnet_problem

    width = options.width
    problem = resnet_problem(load_cifar10(num_train=1_024, num_test=1), width)
    name = f"ResNet-18, T = 10, width {width}"
    return Workload(name, problem, batch_size, CIFAR_TRAIN)


def bert(batch_size: int, options: argparse.Namespace) -> Workload:
    """BERT on three copies of sentence similarity."""
    from experiments.data.sts import load_sts
    from experiments.fast_line_search.bert import bert_problem

    data = load_sts(length=options.length, num_train=256, num_test=1)
    # The published vocabulary, of which these sentences use a few words.
    problem = bert_problem(
        dataclasses.replace(data, vocabulary_size=30522), options.bert
    )
    name = f"BERT {options.bert}, T = 3, {options.length} tokens"
    return Workload(name, problem, batch_size, STS_TRAIN)


WORKLOADS = {"lenet5": (lenet5, 256), "resnet18": (resnet18, 8), "bert": (bert, 8)}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="WORKLOAD",
        type=one_of(WORKLOADS),
        help=f"any of {', '.join(WORKLOADS)}",
    )
    sizes = ", ".join(f"{name} {size}" for name, (_, size) in WORKLOADS.items())
    parser.add_argument("--batch-size", type=int, help=f"examples a step [{sizes}]")
    parser.add_argument("--width", type=int, default=64, help="of ResNet-18")
    parser.add_argument("--bert", default="small", choices=("tiny", "small", "base"))
    parser.add_argument("--length", type=int, default=64, help="tokens for BERT")
    parser.add_argument("--direction", default="mgda", choices=tuple(DIRECTIONS))
    parser.add_argument(
        "--rounds", type=positive(int), default=9, help="timed steps of each"
    )
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args(argv)
    pin_to_one_thread(options.core)
    results = []
    for name in options.workloads or WORKLOADS:
        make, batch_size = WORKLOADS[name]
        workload = make(options.batch_size or batch_size, options)
        rows = measure(workload, options.rounds, options.direction)
        named = [
            dataclasses.replace(row, name=f"{workload.name}: {row.name}")
            for row in rows
        ]
        results += named
        print(f"### {workload.name}\n\n{report(workload, rows)}", flush=True)
    write_record(options.out, results)


if __name__ == "__main__":
    main()
