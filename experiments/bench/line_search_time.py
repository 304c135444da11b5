"""The cost of a line-search step compared with SGD: FBLS paper, tables 1 and 3.

    python -m experiments.bench.line_search_time [WORKLOAD ...]

The script measures the seconds of an epoch and XLA's count of floating-point operations
for LeNet-5 (T = 2 tasks), ResNet-18 (T = 10) and BERT (T = 3). Both numbers are given
as multiples of three baselines, because the paper does not say what its "SGD" does with
T losses:

plain             one forward and one backward pass of the summed loss
per task, shared  one forward and T backward passes, one for each loss
per task          for each task in turn a forward pass, a backward pass and a step

XLA counts the body of a loop once. So the operations of further trials are added, times
the measured mean number of trials. A further trial is one forward pass of the heads for
FBLS, and one forward pass of the whole network for BLS. The two per-task baselines are
sums of XLA's counts of a forward pass and of a plain step. All steps use random
batches, one core and one thread. The data are stand-ins, because only their shapes
matter, except for the number of trials.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.bench.machine import one_of, pin_to_one_thread, positive
from experiments.bench.report import Report, add_out
from experiments.fast_line_search.methods import (
    BETAS,
    DIRECTIONS,
    Method,
    Problem,
    in_turns,
    make_methods,
    make_step,
    start,
)
from experiments.lab.batches import take
from experiments.lab.program import Program
from experiments.lab.tables import markdown_table

PyTree = Any

MULTIMNIST_TRAIN, CIFAR_TRAIN, STS_TRAIN = 60_000, 50_000, 5_749
RATE = 0.01
# The count does not depend on XLA's optimisation level, but the time to compile does.
_FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

# Title of each step, in the order of the table.
PLAIN, SHARED, PER_TASK = "plain", "per task, shared", "per task"
MGDA_UB, FBLS, CALIBRATED, BLS = "MGDA-UB", "FBLS", "FBLS, calibrated", "BLS"
_NAMES = ("mgda_ub", "fbls", "fbls_calibrated", "bls")
_METHODS: dict[str, str] = dict(
    zip((MGDA_UB, FBLS, CALIBRATED, BLS), _NAMES, strict=True)
)

# Shares of SGD's time in tables 1 and 3, and the goals for FBLS relative to the plain
# step.
PAPER: dict[str, dict[str, float]] = {
    "LeNet-5": {MGDA_UB: 0.95, FBLS: 1.00, BLS: 1.36},
    "ResNet-18": {MGDA_UB: 0.15, FBLS: 0.15, BLS: 1.18},
    "BERT": {MGDA_UB: 0.36, FBLS: 0.39, BLS: 1.26},
}
GOAL_FLOPS, GOAL_TIME = 1.05, 1.15


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """A problem to optimise.

    Attributes:
      name: what the table calls it; begins with a name in `PAPER`.
      problem: the problem, with examples for random batches.
      batch_size: number of examples in a step.
      epoch: number of examples in an epoch, to compute the time of an epoch from the
        time of a step.
    """

    name: str
    problem: Problem
    batch_size: int
    epoch: int

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return self.problem.oracle.num_tasks


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      name: name of the step.
      milliseconds: time of the fastest step.
      flops: floating-point operations of a step, including its trials.
      trials: mean number of trials; None without a line search.
    """

    name: str
    milliseconds: float
    flops: float
    trials: float | None = None


Step = Callable[[mtlopt.Run, jax.Array, PyTree], tuple[mtlopt.Run, Any]]


def make_steps(workload: Workload, direction: str = "mgda") -> dict[str, Step]:
    """Returns the baselines, written by hand, and the methods."""
    oracle, num_tasks = workload.problem.oracle, workload.num_tasks

    def descend(params: PyTree, grads: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, grad: leaf - RATE * grad, params, grads)

    def losses_of(run: mtlopt.Run, batch: PyTree) -> Callable[[PyTree], jax.Array]:
        return lambda params: oracle.losses(params, batch, run.state)

    def plain(run: mtlopt.Run, rows: Any, data: PyTree) -> tuple[mtlopt.Run, Any]:
        losses = losses_of(run, take(data, rows))
        grads = jax.grad(lambda params: jnp.sum(losses(params)))(run.params)
        return run._replace(params=descend(run.params, grads)), {}

    def shared(run: mtlopt.Run, rows: Any, data: PyTree) -> tuple[mtlopt.Run, Any]:
        _, pull = jax.vjp(losses_of(run, take(data, rows)), run.params)

        def add(task: jax.Array, total: PyTree) -> PyTree:
            (grads,) = pull(jax.nn.one_hot(task, num_tasks))
            return jax.tree.map(jnp.add, total, grads)

        zeros = jax.tree.map(jnp.zeros_like, run.params)
        grads = jax.lax.fori_loop(0, num_tasks, add, zeros)
        return run._replace(params=descend(run.params, grads)), {}

    def per_task(run: mtlopt.Run, rows: Any, data: PyTree) -> tuple[mtlopt.Run, Any]:
        batch = take(data, rows)

        def one(task: jax.Array, params: PyTree) -> PyTree:
            return descend(params, oracle.task(task, params, batch, run.state).grad)

        params = jax.lax.fori_loop(0, num_tasks, one, run.params)
        return run._replace(params=params), {}

    def of_method(method: Method) -> Step:
        step, value = make_step(workload.problem, method), _value(method)
        return functools.partial(step, jnp.float32(value))

    methods = make_methods(num_tasks, 1, direction)
    searches = {title: of_method(methods[name]) for title, name in _METHODS.items()}
    return {PLAIN: plain, SHARED: shared, PER_TASK: per_task, **searches}


def _value(method: Method) -> float:
    return BETAS[0] if method.symbol == "β" else RATE


def count(function: Callable[..., Any], *args: Any) -> float:
    """Returns the floating-point operations that XLA counts; loop bodies once."""
    on_cpu = jax.default_backend() == "cpu"
    options = _FAST_COMPILATION if on_cpu else None
    compiled = jax.jit(function).lower(*args).compile(compiler_options=options)
    costs = compiled.cost_analysis()
    assert costs is not None  # XLA counts on CPU, GPU and TPU
    return costs["flops"]


class Count(NamedTuple):
    """Operations of a step with one trial, and of each further trial."""

    once: float
    trial: float = 0.0

    def total(self, trials: float | None) -> float:
        """Returns the operations of a step with this many trials."""
        return self.once + self.trial * (0 if trials is None else trials - 1)


def count_steps(workload: Workload, direction: str = "mgda") -> dict[str, Count]:
    """Counts the operations of every step.

    XLA counts the body of a loop once. A further trial is therefore added: a forward
    pass of the heads for FBLS, and a forward pass of the whole network for BLS. The two
    baselines that loop over the tasks are sums of the counts of a forward pass and of a
    plain step.
    """
    problem, num_tasks = workload.problem, workload.num_tasks
    oracle, train = problem.oracle, problem.splits["train"]
    methods = make_methods(num_tasks, 1, direction)
    params, state = problem.init(0)
    rows = jnp.arange(workload.batch_size)
    batch = take(train, rows)
    # For BLS, the pullback is copied for each task, because XLA counts a loop once.
    outer: Any = oracle.problem  # which carries the statistics
    options = dataclasses.replace(outer.problem.options, batching="unroll")
    inner = dataclasses.replace(outer.problem, options=options)
    outer = dataclasses.replace(outer, problem=inner)
    unrolled = dataclasses.replace(oracle, problem=outer)
    unrolled_problem = dataclasses.replace(problem, oracle=unrolled)
    z = jax.eval_shape(lambda params: oracle(params, batch, state).z, params)

    run = mtlopt.Run(params, optax.EmptyState(), state)
    plain = count(make_steps(workload)[PLAIN], run, rows, train)
    forward = count(oracle.losses, params, batch, state)
    heads = count(
        lambda params, z: oracle.heads(params, z, batch, state).losses, params, z
    )
    counts = {
        PLAIN: Count(plain),
        SHARED: Count(forward + num_tasks * (plain - forward)),
        PER_TASK: Count(num_tasks * plain),
    }
    trial = {MGDA_UB: 0.0, BLS: forward}
    for title, name in _METHODS.items():
        method, value = methods[name], _value(methods[name])
        step = make_step(unrolled_problem if title == BLS else problem, method)
        run = start(problem, method, value, 0)
        once = count(step, jnp.float32(value), run, rows, train)
        counts[title] = Count(once, trial.get(title, heads))
    return counts


def measure(workload: Workload, rounds: int, direction: str = "mgda") -> list[Row]:
    """Times this many rounds of all steps, and counts their operations."""
    problem = workload.problem
    methods = make_methods(workload.num_tasks, 1, direction)
    programs, runs = {}, {}
    for title, step in make_steps(workload, direction).items():
        method = methods[_METHODS.get(title, "sgd")]
        programs[title] = Program(step, donate_argnums=0)
        runs[title] = start(problem, method, _value(method), 0)
    data = problem.splits["train"]
    seconds, trials = in_turns(programs, runs, data, workload.batch_size, rounds)
    counts = count_steps(workload, direction)
    return [
        Row(title, 1e3 * own, counts[title].total(trials.get(title)), trials.get(title))
        for title, own in seconds.items()
    ]


def report(workload: Workload, rows: Sequence[Row]) -> str:
    """Returns the table and a summary as Markdown."""
    by_name = {row.name: row for row in rows}
    paper = next(row for name, row in PAPER.items() if workload.name.startswith(name))
    baselines = [by_name[name] for name in (PLAIN, SHARED, PER_TASK)]
    steps = workload.epoch / workload.batch_size
    header = ["step", "trials", "seconds / epoch"]
    header += [f"time / {base.name}" for base in baselines]
    header += [f"FLOPs / {base.name}" for base in baselines]
    header += ["paper's share of SGD"]
    cells = []
    for row in rows:
        line = [row.name, "" if row.trials is None else f"{row.trials:.2f}"]
        line.append(f"{row.milliseconds * steps / 1e3:.3g}")
        line += [f"{row.milliseconds / base.milliseconds:.0%}" for base in baselines]
        line += [f"{row.flops / base.flops:.1%}" for base in baselines]
        share = paper.get(row.name)
        cells.append([*line, "" if share is None else f"{share:.0%}"])
    flops = by_name[FBLS].flops / by_name[PLAIN].flops
    seconds = by_name[FBLS].milliseconds / by_name[PLAIN].milliseconds

    def distance(base: Row) -> float:
        return sum(
            abs(np.log(by_name[name].flops / base.flops / share))
            for name, share in paper.items()
        )

    return "\n".join(
        [
            f"The batch size is {workload.batch_size}. An epoch has {workload.epoch:,} "
            "examples, and its time is computed from the fastest step.",
            "",
            markdown_table(header, cells),
            "",
            f"FBLS takes {flops:.3f} times the operations of the plain step "
            f"(goal {GOAL_FLOPS}: {_verdict(flops, GOAL_FLOPS)}) and {seconds:.2f} "
            f"times its time (goal {GOAL_TIME}: {_verdict(seconds, GOAL_TIME)}). In "
            "operations, the paper's shares are nearest to our shares of the baseline "
            f'"{min(baselines, key=distance).name}".',
            "",
        ]
    )


def _verdict(value: float, goal: float) -> str:
    return "met" if value <= goal else "missed"


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
    # The published vocabulary; these sentences use few of its words.
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
    add_out(parser)
    options = parser.parse_args(argv)
    pin_to_one_thread(options.core)
    told = Report("line_search_time", argv, options.out)
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
        told.print(f"### {workload.name}\n\n{report(workload, rows)}")
    told.write(results)


if __name__ == "__main__":
    main()
