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
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.machine import one_of, pin_to_one_thread, positive, write_record
from experiments.fast_line_search.methods import (
    BETAS,
    DIRECTIONS,
    Method,
    Problem,
    State,
    make_methods,
    make_step,
    num_examples,
    start,
)
from experiments.lab.batches import take
from experiments.lab.tables import markdown_table

PyTree = Any

MULTIMNIST_TRAIN, CIFAR_TRAIN, STS_TRAIN = 60_000, 50_000, 5_749
_RATE = 0.01
_WARM_UP = 1  # compiles
# The count does not depend on how well the code is optimised, the time to compile does.
_FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

# Title of each step, in the order of the table.
PLAIN, SHARED, PER_TASK = "plain", "per task, shared", "per task"
MGDA_UB, FBLS, CALIBRATED, BLS = "MGDA-UB", "FBLS", "FBLS, calibrated", "BLS"
_METHODS = {
    MGDA_UB: "mgda_ub",
    FBLS: "fbls",
    CALIBRATED: "fbls_calibrated",
    BLS: "bls",
}

# Share of SGD's time in tables 1 and 3, and the goals for FBLS beside the plain step.
PAPER = {
    "LeNet-5": {MGDA_UB: 0.95, FBLS: 1.00, BLS: 1.36},
    "ResNet-18": {MGDA_UB: 0.15, FBLS: 0.15, BLS: 1.18},
    "BERT": {MGDA_UB: 0.36, FBLS: 0.39, BLS: 1.26},
}
GOAL_FLOPS, GOAL_TIME = 1.05, 1.15


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """A problem to step on.

    Attributes:
      name: what the table calls it; begins with a name in `PAPER`.
      problem: the problem, with examples for random batches.
      batch_size: examples a step.
      epoch: examples of an epoch, to turn the time of a step into that of an epoch.
    """

    name: str
    problem: Problem
    batch_size: int
    epoch: int

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return self.problem.oracle.num_tasks

    @property
    def paper(self) -> dict[str, float]:
        """The paper's shares of SGD."""
        return next(row for name, row in PAPER.items() if self.name.startswith(name))


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      name: of the step.
      milliseconds: median of a step.
      flops: floating-point operations of a step, trials counted.
      trials: mean number of trials; None without a line search.
    """

    name: str
    milliseconds: float
    flops: float
    trials: float | None = None


Step = Callable[[State, jax.Array, PyTree], tuple[State, Any]]


def make_steps(workload: Workload, direction: str = "mgda") -> dict[str, Step]:
    """Returns the baselines, written by hand, and the methods."""
    problem, num_tasks = workload.problem, workload.num_tasks
    oracle = problem.oracle

    def descend(params: PyTree, grads: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, grad: leaf - _RATE * grad, params, grads)

    def losses_of(state: State, batch: PyTree) -> Callable[[PyTree], jax.Array]:
        return lambda params: oracle.losses(params, batch, state.stats)

    def plain(state: State, rows: jax.Array, data: PyTree) -> tuple[State, Any]:
        losses = losses_of(state, take(data, rows))
        grads = jax.grad(lambda params: jnp.sum(losses(params)))(state.params)
        return state._replace(params=descend(state.params, grads)), {}

    def shared(state: State, rows: jax.Array, data: PyTree) -> tuple[State, Any]:
        losses = losses_of(state, take(data, rows))
        _, pull = jax.vjp(losses, state.params)

        def add(task: jax.Array, total: PyTree) -> PyTree:
            (grads,) = pull(jax.nn.one_hot(task, num_tasks))
            return jax.tree.map(jnp.add, total, grads)

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        grads = jax.lax.fori_loop(0, num_tasks, add, zeros)
        return state._replace(params=descend(state.params, grads)), {}

    def per_task(state: State, rows: jax.Array, data: PyTree) -> tuple[State, Any]:
        batch = take(data, rows)

        def one(task: jax.Array, params: PyTree) -> PyTree:
            grads = oracle.task(task, params, batch, state.stats).grad
            return descend(params, grads)

        params = jax.lax.fori_loop(0, num_tasks, one, state.params)
        return state._replace(params=params), {}

    def of_method(method: Method) -> Step:
        step, value = make_step(problem, method), _value(method)
        return lambda state, rows, data: step(state, jnp.float32(value), rows, data)

    methods = make_methods(num_tasks, 1, direction)
    return {
        PLAIN: plain,
        SHARED: shared,
        PER_TASK: per_task,
        **{title: of_method(methods[name]) for title, name in _METHODS.items()},
    }


def _value(method: Method) -> float:
    return BETAS[0] if method.symbol == "β" else _RATE


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
        """Returns those of a step with so many trials."""
        return self.once + self.trial * (0 if trials is None else trials - 1)


def count_steps(workload: Workload, direction: str = "mgda") -> dict[str, Count]:
    """Counts the operations of every step.

    Args:
      workload: what to step on.
      direction: what finds the direction.
    """
    problem, num_tasks = workload.problem, workload.num_tasks
    methods = make_methods(num_tasks, 1, direction)
    params, stats, _ = start(problem, methods["mgda_ub"], _RATE, 0)
    rows = jnp.arange(workload.batch_size)
    batch = take(problem.train, rows)
    oracle = problem.oracle
    # One copy of the pullback for each task, for BLS, where a loop counts once.
    outer: Any = oracle.problem  # which carries the statistics
    options = dataclasses.replace(outer.problem.options, batching="unroll")
    inner = dataclasses.replace(outer.problem, options=options)
    outer = dataclasses.replace(outer, problem=inner)
    unrolled = dataclasses.replace(oracle, problem=outer)
    unrolled_problem = dataclasses.replace(problem, oracle=unrolled)
    z = jax.eval_shape(lambda params: oracle(params, batch, stats).z, params)

    state = State(params, stats, optax.EmptyState())
    plain = count(make_steps(workload)[PLAIN], state, rows, problem.train)
    forward = count(oracle.losses, params, batch, stats)
    heads = count(
        lambda params, z: oracle.heads(params, z, batch, stats).losses, params, z
    )
    counts = {
        PLAIN: Count(plain),
        SHARED: Count(forward + num_tasks * (plain - forward)),
        PER_TASK: Count(num_tasks * plain),
    }
    trial = {MGDA_UB: 0.0, BLS: forward}
    for title, name in _METHODS.items():
        method = methods[name]
        its_problem = unrolled_problem if title == BLS else problem
        state = State(params, stats, method.make(_value(method)).init(params))
        once = count(
            make_step(its_problem, method),
            state,
            jnp.float32(_value(method)),
            rows,
            problem.train,
        )
        counts[title] = Count(once, trial.get(title, heads))
    return counts


def measure(workload: Workload, rounds: int, direction: str = "mgda") -> list[Row]:
    """Times and counts all steps; the steps take turns, so that drift cancels.

    Args:
      workload: what to step on.
      rounds: timed steps of each.
      direction: what finds the direction.
    """
    problem = workload.problem
    methods = make_methods(workload.num_tasks, 1, direction)
    rng = np.random.default_rng(0)
    num = num_examples(problem.train)
    compiled, states = {}, {}
    for title, step in make_steps(workload, direction).items():
        compiled[title] = jax.jit(step, donate_argnums=0)
        method = methods[_METHODS.get(title, "sgd")]
        states[title] = start(problem, method, _value(method), 0)
    seconds: dict[str, list[float]] = {title: [] for title in compiled}
    trials: dict[str, list[float]] = {}
    for turn in range(_WARM_UP + rounds):
        rows = jnp.asarray(rng.permutation(num)[: workload.batch_size])
        for title, step in compiled.items():
            started = time.perf_counter()
            result = jax.block_until_ready(step(states[title], rows, problem.train))
            elapsed = time.perf_counter() - started
            states[title], did = result
            if turn >= _WARM_UP:
                seconds[title].append(elapsed)
                if "trials" in did:
                    trials.setdefault(title, []).append(float(did["trials"]))
    means = {title: statistics.fmean(values) for title, values in trials.items()}
    counts = count_steps(workload, direction)
    return [
        Row(
            title,
            1e3 * statistics.median(values),
            counts[title].total(means.get(title)),
            means.get(title),
        )
        for title, values in seconds.items()
    ]


def report(workload: Workload, rows: Sequence[Row]) -> str:
    """Returns the table, and what it says, as Markdown."""
    by_name = {row.name: row for row in rows}
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
        share = workload.paper.get(row.name)
        cells.append([*line, "" if share is None else f"{share:.0%}"])
    fast = by_name[FBLS]
    flops = fast.flops / by_name[PLAIN].flops
    seconds = fast.milliseconds / by_name[PLAIN].milliseconds
    nearest = min(
        baselines,
        key=lambda base: sum(
            abs(np.log(by_name[name].flops / base.flops / share))
            for name, share in workload.paper.items()
        ),
    )
    return "\n".join(
        [
            f"Batch {workload.batch_size}; an epoch is {workload.epoch:,} examples, at "
            "the median time of a step.",
            "",
            markdown_table(header, cells),
            "",
            f"FBLS beside the plain step: {flops:.3f} times the operations "
            f"(goal {GOAL_FLOPS}: {_verdict(flops, GOAL_FLOPS)}), {seconds:.2f} times "
            f"the time (goal {GOAL_TIME}: {_verdict(seconds, GOAL_TIME)}). By "
            "operations the paper's shares are nearest to those of the baseline "
            f'"{nearest.name}".',
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
