"""The cost of a step of a line search beside SGD: tables 1 and 3 of the FBLS paper."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.fast_line_search.methods import (
    BETAS,
    Method,
    Problem,
    make_methods,
    make_step,
    start,
)
from experiments.lab.batches import num_examples, take
from experiments.lab.program import Program, fastest
from experiments.lab.tables import cost_table, markdown_table

PyTree = Any

MULTIMNIST_TRAIN, CIFAR_TRAIN, STS_TRAIN = 60_000, 50_000, 5_749
RATE, _ROUNDS = 0.01, 9
# The count does not depend on how well the code is optimised, the time to compile does.
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

# Share of SGD's time in tables 1 and 3, and the goals for FBLS beside the plain step.
PAPER: dict[str, dict[str, float]] = {
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


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      name: of the step.
      milliseconds: of the fastest step.
      flops: floating-point operations of a step, trials counted.
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
        """Returns those of a step with so many trials."""
        return self.once + self.trial * (0 if trials is None else trials - 1)


def count_steps(workload: Workload, direction: str = "mgda") -> dict[str, Count]:
    """Counts the operations of every step.

    XLA counts the body of a loop once. A further trial of FBLS is therefore added as a
    forward pass of the heads, of BLS as one of the whole network; the two baselines
    that loop over the tasks are sums of counts of a forward pass and of a plain step.
    """
    problem, num_tasks = workload.problem, workload.num_tasks
    oracle, train = problem.oracle, problem.splits["train"]
    methods = make_methods(num_tasks, 1, direction)
    params, state = problem.init(0)
    rows = jnp.arange(workload.batch_size)
    batch = take(train, rows)
    # One copy of the pullback for each task, for BLS, where a loop counts once.
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


def in_turns(
    steps: Mapping[str, Callable[..., tuple[mtlopt.Run, Any]]],
    runs: Mapping[str, mtlopt.Run],
    data: PyTree,
    batch_size: int,
    rounds: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Times steps in turns, on random batches that all share.

    Args:
      steps: by name `step(run, rows, data)`, compiled by their first call.
      runs: by name what there is before the first step.
      data: a split.
      batch_size: examples a step.
      rounds: timed steps of each.

    Returns:
      By name the seconds of the fastest step, and of line searches the mean trials.
    """
    rng, num = np.random.default_rng(0), num_examples(data)
    # One more than is timed, to warm up.
    order = [jnp.asarray(rng.permutation(num)[:batch_size]) for _ in range(rounds + 1)]
    trials: dict[str, list[Any]] = {}

    def make_call(name: str) -> Callable[[], mtlopt.Run]:
        run, batches = runs[name], iter(order)

        def call() -> mtlopt.Run:
            nonlocal run
            run, did = steps[name](run, next(batches), data)
            if "trials" in did:
                trials.setdefault(name, []).append(did["trials"])
            return run

        return call

    seconds = fastest({name: make_call(name) for name in steps}, rounds)
    return seconds, {name: statistics.fmean(own[1:]) for name, own in trials.items()}


def time_methods(
    problem: Problem,
    methods: Mapping[str, Method],
    programs: Mapping[str, Program],
    batch_size: int,
) -> tuple[str, Any]:
    """Times a step of each method, at its first value; `programs` are those of methods.

    Returns:
      A section of a report, Markdown, and its numbers.
    """
    values = {name: method.values[0] for name, method in methods.items()}
    runs = {name: start(problem, methods[name], at, 0) for name, at in values.items()}
    steps = {
        name: functools.partial(programs[name], jnp.float32(at))
        for name, at in values.items()
    }
    data = problem.splits["train"]
    seconds, trials = in_turns(steps, runs, data, batch_size, _ROUNDS)
    operations = {name: programs[name].operations for name in methods}
    titles = {name: method.title for name, method in methods.items()}
    base = "sgd" if "sgd" in methods else next(iter(methods))
    text = (
        "\n## Cost of a step\n\nAfter the training, methods in turns, the fastest of "
        f"{_ROUNDS} steps; multiples are of {titles[base]}. XLA counts one trial.\n\n"
        f"{cost_table(seconds, operations, titles, base)}\n"
    )
    return text, {"seconds": seconds, "operations": operations, "trials": trials}


def measure(workload: Workload, rounds: int, direction: str = "mgda") -> list[Row]:
    """Times so many rounds of all steps, and counts their operations."""
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
    """Returns the table, and what it says, as Markdown."""
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
            f"Batch {workload.batch_size}; an epoch is {workload.epoch:,} examples, at "
            "the time of the fastest step.",
            "",
            markdown_table(header, cells),
            "",
            f"FBLS beside the plain step: {flops:.3f} times the operations "
            f"(goal {GOAL_FLOPS}: {_verdict(flops, GOAL_FLOPS)}), {seconds:.2f} times "
            f"the time (goal {GOAL_TIME}: {_verdict(seconds, GOAL_TIME)}). By "
            "operations the paper's shares are nearest to those of the baseline "
            f'"{min(baselines, key=distance).name}".',
            "",
        ]
    )


def _verdict(value: float, goal: float) -> str:
    return "met" if value <= goal else "missed"
