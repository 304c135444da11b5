"""How often line searches raise a loss on the batch of the step, and their cost.

    python -m experiments.bench.line_search_safety [CASE ...]

There are two cases. One is LeNet-5 on MultiMNIST (batches of 256, 2 seeds). The other
is a small tanh network with two heads on its whole data (4 seeds, each with its own
data). Every method starts from the same parameters and gets the same batches. After
each step another program evaluates the losses of the same batch. SGD on the summed loss
uses the learning rate from a list that ends with the lowest mean loss on the train
split.

Time is the processor time on one core and one thread, without compilation, as a
multiple of a plain step on the summed loss. XLA counts the body of a loop once, and the
larger side of a branch. So the operations of trials, checks and fallbacks are added
according to their measured mean numbers.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.bench.line_search_time import count
from experiments.bench.machine import one_of, pin_to_one_thread, positive
from experiments.bench.report import Report, add_out
from experiments.fast_line_search.methods import Problem
from experiments.lab.batches import num_examples, take
from experiments.lab.tables import markdown_table

PyTree = Any

NUM_TASKS = 2
# A smaller rise of a loss, in eps, is rounding, because the step and the evaluation are
# two programs.
_ROUNDING = 8
# Number of steps in one program; their parameters are kept for the evaluation.
_CHUNK = 32

MGDA = mtlopt.mgda(NUM_TASKS)
PLAIN, FBLS, CALIBRATED, SAFE, BLS = (
    "plain",
    "FBLS",
    "FBLS, calibrated",
    "FBLS, safeguarded",
    "BLS",
)
SEARCHES: dict[str, optax.GradientTransformation] = {
    FBLS: mtlopt.fast_backtracking(MGDA),
    CALIBRATED: mtlopt.fast_backtracking(MGDA, calibrate=True),
    SAFE: mtlopt.fast_backtracking(MGDA, safeguard=True),
    BLS: mtlopt.backtracking(MGDA),
}


def sgd(rate: float) -> optax.GradientTransformation:
    """Returns SGD on the summed loss."""
    return optax.chain(mtlopt.sum_tasks(NUM_TASKS), optax.sgd(rate))


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A problem to optimise.

    Attributes:
      title: what the report calls it.
      make: from a seed to the problem; all seeds have the same functions.
      num_seeds: number of seeds.
      steps: number of steps.
      batch_size: examples of a step.
      rates: learning rates of SGD.
      wide: whether it runs in float64.
    """

    title: str
    make: Callable[[int], Problem]
    num_seeds: int
    steps: int
    batch_size: int
    rates: tuple[float, ...]
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: means over seeds and steps.

    Attributes:
      name: of the method.
      rose: share of steps after which a loss was higher than before, on the same batch.
      worst: the largest rise.
      seconds: processor time of a step.
      flops: operations of a step.
      losses: of the tasks after the last step, on the train split.
      error: share of test examples that are wrong; None without a test split.
      trials: trials in a step; None without a line search.
      checks: checks in a step; None without a safeguard.
      fell_back: share of steps that fell back; None without a safeguard.
    """

    name: str
    rose: float
    worst: float
    seconds: float
    flops: float
    losses: tuple[float, ...]
    error: float | None = None
    trials: float | None = None
    checks: float | None = None
    fell_back: float | None = None


class Run(NamedTuple):
    """The record of one seed of one method."""

    rises: np.ndarray
    seconds: float
    losses: np.ndarray
    error: float | None
    did: dict[str, np.ndarray]


def make_step(problem: Problem, tx: optax.GradientTransformation) -> Callable[..., Any]:
    """Returns the training step, which also reports what a line search did."""

    def step(params: PyTree, state: PyTree, rows: jax.Array, data: PyTree) -> Any:
        grads = problem.oracle(params, take(data, rows), ())
        updates, state = tx.update(grads, state, params)  # pyright: ignore
        fields = ("trials", "checks", "fell_back")
        did = {name: getattr(state, name) for name in fields if hasattr(state, name)}
        return optax.apply_updates(params, updates), state, did

    return step


class Programs(NamedTuple):
    """Programs for several steps at a time, for all seeds.

    Attributes:
      advance: from parameters, state, rows `[steps, batch]` and data to the new
        parameters and state, the parameters before and after each step, and what the
        searches did.
      judge: from the parameters around each step, rows and data to the largest rise of
        a loss in each step.
    """

    advance: Callable[..., Any]
    judge: Callable[..., Any]


def compile_steps(problem: Problem, tx: optax.GradientTransformation) -> Programs:
    """Returns the programs of an optimizer."""
    step = make_step(problem, tx)

    @jax.jit
    def advance(params: PyTree, state: PyTree, rows: jax.Array, data: PyTree) -> Any:
        def body(carry: Any, rows: jax.Array) -> Any:
            before, (params, state, did) = carry[0], step(*carry, rows, data)
            return (params, state), (before, params, did)

        return jax.lax.scan(body, (params, state), rows)

    @jax.jit
    def judge(before: PyTree, after: PyTree, rows: jax.Array, data: PyTree) -> Any:
        def body(both: Any) -> Any:
            batch = take(data, both[2])
            old, new = (problem.oracle.losses(p, batch, ()) for p in both[:2])
            rounding = _ROUNDING * jnp.finfo(old.dtype).eps * jnp.abs(old)
            return jnp.max(jnp.where(new - old > rounding, new - old, 0))

        return jax.lax.map(body, (before, after, rows))

    return Programs(advance, judge)


def run(
    case: Case,
    programs: Programs,
    problem: Problem,
    tx: optax.GradientTransformation,
    seed: int,
) -> Run:
    """Trains one seed.

    Args:
      case: the case.
      programs: the programs of `tx`, for a problem with the same functions.
      problem: the problem of this seed.
      tx: the optimizer.
      seed: seed of the parameters and of the order of the batches.
    """
    params, _ = problem.init(seed)
    state, data = tx.init(params), problem.splits["train"]
    rows = _batches(case, num_examples(data), seed)
    chunks = np.split(rows, range(_CHUNK, case.steps, _CHUNK))
    for chunk in {len(chunk): chunk for chunk in chunks}.values():
        jax.block_until_ready(programs.advance(params, state, chunk, data))
    seconds, rises, did = 0.0, [], []
    for chunk in chunks:
        started = time.process_time()
        (params, state), (before, after, it_did) = jax.block_until_ready(
            programs.advance(params, state, chunk, data)
        )
        seconds += time.process_time() - started
        did.append(it_did)
        rises.append(programs.judge(before, after, chunk, data))
    losses = jax.jit(problem.oracle.losses)(params, data, ())
    error = None
    if "test" in problem.splits:
        scored = jax.jit(problem.score)(params, (), problem.splits["test"])
        error = float(jnp.mean(scored["error"]))
    return Run(
        np.concatenate(rises),
        seconds / case.steps,
        np.asarray(losses),
        error,
        {name: np.concatenate([d[name] for d in did]) for name in did[0]},
    )


def _batches(case: Case, num: int, seed: int) -> np.ndarray:
    """Returns the examples of every step: epochs without replacement."""
    if case.batch_size == num:
        return np.tile(np.arange(num), (case.steps, 1))
    rng = np.random.default_rng(seed)
    per_epoch = num // case.batch_size
    epochs = -(-case.steps // per_epoch)
    order = [rng.permutation(num)[: per_epoch * case.batch_size] for _ in range(epochs)]
    return np.concatenate(order).reshape(-1, case.batch_size)[: case.steps]


def count_steps(case: Case) -> dict[str, Callable[..., float]]:
    """Returns for each method a function from mean counts to the operations of a step.

    The functions take `trials`, `checks` and `fell_back`, as far as the method has
    them. Two tasks are pulled back in one program without a loop, so XLA counts both.
    """
    problem = case.make(0)
    params, _ = problem.init(0)
    rows = jnp.arange(case.batch_size)
    batch = take(problem.splits["train"], rows)
    oracle = problem.oracle
    z = jax.eval_shape(lambda params: oracle(params, batch, ()).z, params)
    forward = count(oracle.losses, params, batch, ())
    heads = count(lambda p, z: oracle.heads(p, z, batch, ()).losses, params, z)

    def once(tx: Any) -> float:
        return count(
            make_step(problem, tx),
            params,
            tx.init(params),
            rows,
            problem.splits["train"],
        )

    counts = {name: once(tx) for name, tx in SEARCHES.items()}
    plain = once(sgd(1.0))
    # The number of products is as with `calibrate`; the rest of the count is the other
    # branch.
    kept = counts[CALIBRATED] - heads
    other = counts[SAFE] - kept - 2 * (heads + forward)
    return {
        PLAIN: lambda: plain,
        FBLS: lambda trials: counts[FBLS] + (trials - 1) * heads,
        CALIBRATED: lambda trials: counts[CALIBRATED] + (trials - 1) * heads,
        SAFE: lambda trials, checks, fell_back: (
            kept + trials * heads + checks * forward + fell_back * other
        ),
        BLS: lambda trials: counts[BLS] + (trials - 1) * forward,
    }


def measure(case: Case) -> list[Row]:
    """Runs all methods; the first row is SGD, the plain step."""
    counts = count_steps(case)
    problems = [case.make(seed) for seed in range(case.num_seeds)]

    def all_seeds(tx: optax.GradientTransformation) -> list[Run]:
        programs = compile_steps(problems[0], tx)
        return [
            run(case, programs, problem, tx, seed)
            for seed, problem in enumerate(problems)
        ]

    def final(runs: list[Run]) -> float:
        mean = float(np.mean([run.losses for run in runs]))
        return mean if np.isfinite(mean) else np.inf

    tried = {rate: all_seeds(sgd(rate)) for rate in case.rates}
    rate = min(tried, key=lambda rate: final(tried[rate]))
    rows = [_row(f"SGD, {rate:g}", tried[rate], counts[PLAIN])]
    for name, tx in SEARCHES.items():
        rows.append(_row(name, all_seeds(tx), counts[name]))
    return rows


def _row(name: str, runs: list[Run], flops: Callable[..., float]) -> Row:
    rises = np.concatenate([run.rises for run in runs])
    means = {
        field: float(np.mean([run.did[field] for run in runs])) for field in runs[0].did
    }
    errors = [run.error for run in runs if run.error is not None]
    return Row(
        name,
        rose=float(np.mean(rises > 0)),
        worst=float(np.max(rises)),
        seconds=float(np.mean([run.seconds for run in runs])),
        flops=flops(**means),
        losses=tuple(np.mean([run.losses for run in runs], axis=0).tolist()),
        error=float(np.mean(errors)) if errors else None,
        **means,
    )


def report(case: Case, rows: Sequence[Row]) -> str:
    """Returns the table as Markdown."""
    plain = rows[0]

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cells = [
        [
            row.name,
            f"{row.rose:.1%}",
            f"{row.worst:.2g}",
            cell(row.trials, ".2f"),
            cell(row.checks, ".2f"),
            cell(row.fell_back, ".0%"),
            f"{row.flops / plain.flops:.2f}",
            f"{row.seconds / plain.seconds:.2f}",
            ", ".join(f"{loss:.3g}" for loss in row.losses),
            cell(row.error, ".1%"),
        ]
        for row in rows
    ]
    header = ["step", "raised a loss", "by at most", "trials", "checks", "fell back"]
    header += ["operations / plain", "CPU time / plain", "train losses", "test error"]
    batch = f"batches of {case.batch_size}"
    return "\n".join(
        [
            f"{case.title}: {case.steps} steps, {batch}, {case.num_seeds} seeds; a "
            f"plain step takes {1e3 * plain.seconds:.3g} ms.",
            "",
            markdown_table(header, cells),
            "",
        ]
    )


def lenet5() -> Case:
    """Returns LeNet-5 on two overlaid digits."""
    from experiments.data.multimnist import load_multimnist
    from experiments.fast_line_search.multimnist import lenet5_problem

    data = load_multimnist(num_train=4_096, num_validation=1, num_test=1_500)
    problem = lenet5_problem(data)
    rates = (0.05, 0.1, 0.2, 0.4)
    return Case("LeNet-5 on MultiMNIST", lambda _: problem, 2, 500, 256, rates)


def tanh_problem(seed: int) -> Problem:
    """Returns six tanh units and two linear heads on sixteen random examples."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(16, 5)), [rng.normal(size=16) for _ in range(NUM_TASKS)]
    params = {"w": rng.normal(size=(5, 6)) / np.sqrt(5)}
    params |= {task: rng.normal(size=6) / 2 for task in "ab"}

    def head(index: int, task: str) -> Callable[..., jax.Array]:
        def loss(params: PyTree, z: jax.Array, batch: PyTree, stats: PyTree) -> Any:
            del stats
            return jnp.mean((z @ params[task] - batch["y"][:, index]) ** 2)

        return loss

    labels = {"w": "shared", "a": "a", "b": "b"}
    oracle = mtlopt.task_grad(
        {task: head(index, task) for index, task in enumerate("ab")},
        labels,
        encode=lambda params, batch, _: jnp.tanh(batch["x"] @ params["w"]),
    )
    data = jax.tree.map(jnp.asarray, {"x": x, "y": np.stack(y, axis=1)})
    return Problem(
        oracle,
        lambda _: (jax.tree.map(jnp.asarray, params), ()),
        lambda *_: None,
        labels,
        {"train": data},
        lambda *_: {},
    )


def tanh() -> Case:
    """Returns a tanh network with two heads."""
    rates = (0.1, 0.2, 0.5, 1.0)
    return Case("tanh network, float64", tanh_problem, 4, 500, 16, rates, wide=True)


CASES = {"tanh": tanh, "lenet5": lenet5}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        type=one_of(CASES),
        help=f"any of {', '.join(CASES)}",
    )
    parser.add_argument("--steps", type=positive(int), help="fewer steps than stated")
    parser.add_argument("--core", type=int, default=0)
    add_out(parser)
    options = parser.parse_args(argv)
    pin_to_one_thread(options.core)
    told = Report("line_search_safety", argv, options.out)
    results = []
    for name in options.cases or CASES:
        case = CASES[name]()
        case = dataclasses.replace(case, steps=options.steps or case.steps)
        with jax.enable_x64(case.wide):
            rows = measure(case)
        results += [
            dataclasses.replace(row, name=f"{case.title}: {row.name}") for row in rows
        ]
        told.print(report(case, rows))
    told.write(results)


if __name__ == "__main__":
    main()
