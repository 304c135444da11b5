"""The rows of a table, and the runs of each row, which choose or are reported."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.lab.loop import Progress, Training
from experiments.lab.program import Program
from experiments.real_data.problem import Problem, PyTree

# The only method that must know which tasks are equations, so it is not in the
# registry.
ANNEALING = "annealing"
_EVERY = 100  # updates for which the kernel's traces are kept
SPLITS = {"search": "validation", "report": "test"}  # the split of each stage


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A row of a problem's table."""

    name: str
    title: str
    problem: Problem
    weightings: Mapping[str, Sequence[float]]  # to choose from
    method: str = ""  # see `make_method`; empty for plain gradients of a weighted sum
    over_first: bool = False  # whether losses are divided by their values at the start
    alone: bool = False  # whether each task has a network of its own


def rows_of(problem: Problem, methods: Sequence[str]) -> list[Row]:
    """Returns the baselines that the problem allows, the tuned weights first."""
    ones = {"": [1.0] * problem.oracle.num_tasks}
    other = problem.standardised or problem
    rows = [
        Row("tuned", "Tuned weights", problem, problem.weightings),
        Row("sum", "Summed loss", problem, ones),
        Row("over_first", "Losses over first values", problem, ones, over_first=True),
    ]
    if problem.standardised:
        rows.append(Row("standardised", "Standardised targets, summed", other, ones))
    if problem.alone:
        rows.append(Row("alone", "Single networks", other, ones, alone=True))
    return rows + [
        Row(name, _title(name), problem, ones, name)
        for name in methods
        if _least_tasks(name, problem) <= problem.oracle.num_tasks
    ]


def _title(method: str) -> str:
    if method == ANNEALING:
        return "Learning-rate annealing"
    return mtlopt.METHODS[method].title


def _least_tasks(method: str, problem: Problem) -> float:
    if method == ANNEALING:
        return 2 if problem.inside else np.inf
    return mtlopt.METHODS[method].min_tasks


def make_method(row: Row) -> optax.GradientTransformation:
    """Returns the transformation before the optimizer.

    If residuals are known, NTK weights compute the kernel's traces on every 100th step
    only, because traces cost a gradient for each point.
    """
    problem, num_tasks = row.problem, row.problem.oracle.num_tasks
    if not row.method:
        return optax.identity()
    if row.method == ANNEALING:
        weighting = mtlopt.weight_by_annealing(num_tasks, problem.inside)
    elif _has_traces(row):
        weighting = mtlopt.every(_EVERY, mtlopt.weight_by_ntk(num_tasks))
    else:
        return mtlopt.METHODS[row.method].make(
            num_tasks,
            labels=problem.oracle.labels,
            steps_per_epoch=problem.steps_per_epoch,
        )
    return optax.chain(weighting, mtlopt.sum_tasks(num_tasks))


def _has_traces(row: Row) -> bool:
    return row.method == "ntk" and row.problem.residuals is not None


def _with_traces(step: Callable[..., Any], residuals: Any) -> Callable[..., Any]:
    """Returns a step that gives the optimizer a function for the kernel's traces."""

    def told(run: mtlopt.Run, batch: PyTree) -> Any:
        def traces() -> Any:
            return mtlopt.ntk_traces(residuals, run.params, batch)

        return step(run, batch, traces=traces)

    return told


def make_run(row: Row) -> Callable[..., dict[str, jax.Array]]:
    """Returns `run(rate, seed, nudged, weights, splits)`, which trains once.

    The function returns the errors at the end, `[parts]`, for validation and for test.
    Adam's learning rate falls to zero along a cosine. A `nudged` run starts from
    parameters whose last bit differs.
    """
    problem, oracle, steps = row.problem, row.problem.oracle, row.problem.steps
    losses, errors, init = oracle.losses, problem.errors, problem.init
    if row.alone:
        losses, errors, init = _each_own(losses), _each_own(errors), jax.vmap(init)
    aggregator = make_method(row)

    def run(rate: Any, seed: Any, nudged: Any, weights: Any, splits: Any) -> Any:
        key = jax.random.key(seed)
        falling = optax.cosine_decay_schedule(rate, steps)
        optimizer = optax.chain(aggregator, optax.adam(falling))

        def draw(number: Any) -> PyTree:
            return problem.draw(jax.random.fold_in(key, number), splits["train"])

        first = jax.random.fold_in(key, steps)
        params = init(jax.random.split(first, oracle.num_tasks) if row.alone else first)
        params = jax.tree.map(
            lambda leaf: jnp.where(nudged, jnp.nextafter(leaf, jnp.inf), leaf), params
        )
        if row.over_first:
            weights = weights / losses(params, draw(0))
        gradient = jax.grad(lambda params, batch: weights @ losses(params, batch))

        def plain(run: mtlopt.Run, batch: PyTree) -> tuple[mtlopt.Run, None]:
            grads = gradient(run.params, batch)
            updates, state = optimizer.update(grads, run.opt_state, run.params)
            return mtlopt.Run(optax.apply_updates(run.params, updates), state), None

        step = mtlopt.train_step(oracle, optimizer) if row.method else plain
        if _has_traces(row):
            step = _with_traces(step, problem.residuals)
        run = mtlopt.Run(params, optimizer.init(params))
        body = lambda number, run: step(run, draw(number))[0]  # noqa: E731
        run = jax.lax.fori_loop(0, steps, body, run)
        return {name: errors(run.params, splits[name]) for name in SPLITS.values()}

    return run


def _each_own(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a function of `[tasks]` networks; network i gives the entry of task i."""
    each = jax.vmap(function, in_axes=(0, None))
    return lambda params, data: jnp.diagonal(each(params, data))


def make_training(
    prefix: str,
    row: Row,
    program: Program,
    stage: str,
    candidates: Iterable[tuple[str, float]],  # names of weights, and rates
    seeds: Sequence[int],
) -> Training:
    """Returns the runs of a row with these candidates; reported runs are also nudged.

    A run keeps one core busy, so the number of simultaneous runs is the number of
    cores.
    """
    problem, nudges = row.problem, (0, 1) if stage == "report" else (0,)
    runs = [
        {"row": row.name, "weights": name, "rate": rate, "seed": seed, "nudged": nudged}
        for name, rate in candidates
        for seed in seeds
        for nudged in nudges
    ]

    def one(run: Mapping[str, Any]) -> jax.Array:
        weights = jnp.array(row.weightings[run["weights"]], float)
        args = (jnp.asarray(run[name]) for name in ("rate", "seed", "nudged"))
        out = program(*args, weights, problem.splits)
        return jax.block_until_ready(out[SPLITS[stage]])

    def epoch(state: tuple[()], _: int, progress: Progress) -> Any:
        errors = [one(runs[0])]  # compiles
        progress(1, "")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for found in pool.map(one, runs[1:]):
                errors.append(found)
                progress(1, "")
        return state, {"error": jnp.stack(errors)}

    name, parts = f"{prefix}-{row.name}-{stage}", {"error": problem.parts}
    return Training(name, runs, tuple, epoch, len(runs), parts=parts)
