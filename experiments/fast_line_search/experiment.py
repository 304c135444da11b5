"""The line-search experiments' settings, training and costs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pandas as pd

import mtlopt
from experiments.fast_line_search.methods import (
    BETAS,
    Method,
    Problem,
    in_turns,
    make_methods,
    make_step,
    start,
)
from experiments.fast_line_search.report import (
    Subject,
    draw_figures,
    last,
    make_report,
    wide,
)
from experiments.lab.batches import host_order, map_batches, num_examples, take
from experiments.lab.folder import RunFolder
from experiments.lab.loop import Progress, Training, Values, train
from experiments.lab.program import Program
from experiments.lab.settings import Options, check_batch_size, loaded
from experiments.lab.tables import command_line, count

PyTree = Any
METHODS = tuple(make_methods(2, 1))
NAMES = {"methods": METHODS}

_EVALUATION_BATCH = 500  # examples in a forward pass, which limits the memory
_COST_ROUNDS = 9
_CHECK_EVERY = 4  # steps; a check is a forward pass more
_ROUNDING = 8  # in eps of a loss: a smaller rise is rounding between two programs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The settings that decide the numbers of a run.

    Attributes:
      methods: names of methods, or all.
      betas: shares of the predicted linear decrease that FBLS and BLS demand.
      direction: the method that gives the direction of a line search.
      epochs: passes over the train split.
      seeds: number of seeds, counted from 0; they differ in initial parameters and
        order.
      batch_size: examples in a batch.
      decay_every: number of epochs after which FBLS + decay halves its upper bound.
      train_examples: number of train examples; 0 means all.
      test_examples: number of test examples; 0 means all.
      data_dir: folder of the official data; None means the stand-in.
    """

    methods: tuple[str, ...] = ("fbls", "fbls_decay", "fbls_safe", "bls", "sgd")
    betas: tuple[float, ...] = (0.1, 0.4)
    direction: Literal["mgda", "edm", "pcgrad"] = "mgda"
    epochs: int = 6
    seeds: int = 3
    batch_size: int = 64
    decay_every: int = 1
    train_examples: int = 12_800
    test_examples: int = 1_500
    data_dir: str | None = None


# The paper's settings for the experiments on images.
FULL = {"epochs": 100, "batch_size": 256, "decay_every": 10, "methods": METHODS}
FULL |= {"train_examples": 0, "test_examples": 0, "betas": BETAS}


def load(loader: Callable[..., Any], settings: Settings, **more: Any) -> Any:
    """Returns the data with the number of examples in the settings."""
    return loaded(
        loader,
        settings.data_dir and Path(settings.data_dir),
        num_train=settings.train_examples or None,
        num_test=settings.test_examples or None,
        **more,
    )


def run_experiment(
    subject: Subject, settings: Settings, problem: Problem, argv: Sequence[str]
) -> None:
    """Trains all runs, measures costs, and writes metrics, tables and figures."""
    num_train = num_examples(problem.splits["train"])
    check_batch_size(settings.batch_size, num_train)
    decay_steps = settings.decay_every * (num_train // settings.batch_size)
    known = make_methods(
        problem.oracle.num_tasks, decay_steps, settings.direction, settings.betas
    )
    loaded(known["fbls"].make, max(settings.betas))  # which checks it
    methods = {name: known[name] for name in settings.methods}
    with RunFolder(settings) as folder:
        programs = {
            name: Program(make_step(problem, method), donate_argnums=1)
            for name, method in methods.items()
        }
        trainings = make_trainings(problem, methods, programs, settings)
        records = train(trainings, settings.epochs, problem.tasks, folder)
        table = wide(records, subject.factor)
        costs = measure_costs(problem, methods, programs, settings.batch_size)
        report = make_report(subject, _words(settings), methods, table, costs)
        folder.write_results(
            settings,
            report,
            command=command_line(subject.name, argv),
            data={"source": subject.source, "stand_in": settings.data_dir is None},
            runs=last(table).reset_index().to_dict("records"),
            costs=costs,
        )
        draw_figures(subject, methods, table, folder.path)


def _words(settings: Settings) -> str:
    return (
        f"Batch {settings.batch_size}, {count(settings.epochs, 'epoch')}, "
        f"{count(settings.seeds, 'seed')} (± is their standard deviation), direction "
        f"of {settings.direction}. FBLS + decay halves its upper bound every "
        f"{count(settings.decay_every, 'epoch')}."
    )


def make_trainings(
    problem: Problem,
    methods: Mapping[str, Method],
    programs: Mapping[str, Program],
    settings: Settings,
) -> list[Training]:
    """Returns a training for each method, value and seed; `steps` is by method."""
    data, size = problem.splits["train"], settings.batch_size
    num_train, evaluate = num_examples(data), make_evaluate(problem)
    rose = make_check(problem)
    judged = min(map(num_examples, problem.splits.values()))
    splits = {"train": take(data, jnp.arange(judged)), "test": problem.splits["test"]}

    def make(name: str, value: float, seed: int) -> Training:
        def epoch(
            run: mtlopt.Run, index: int, progress: Progress
        ) -> tuple[mtlopt.Run, Values]:
            did = []
            for rows in jnp.asarray(host_order(num_train, size, seed, index)):
                run, one = programs[name](jnp.float32(value), run, rows, data)
                before = one.pop("losses")
                if len(did) % _CHECK_EVERY == 0:
                    one["raised_a_loss"] = rose(before, run, rows, data)
                did.append(one)
                progress(1, "")
            values = dict(pd.DataFrame(jax.device_get(did), dtype=float).mean())
            for split, examples in splits.items():
                for key, own in evaluate(run, examples).items():
                    values[f"{split}_{key}"] = own[None]
            return run, values

        return Training(
            f"{name}-{value:.4g}-seed{seed}",
            [{"method": name, "number": value, "seed": seed}],
            lambda: start(problem, methods[name], value, seed),
            epoch,
            num_train // size,
        )

    return [
        make(name, value, seed)
        for name, method in methods.items()
        for value in method.values
        for seed in range(settings.seeds)
    ]


def measure_costs(
    problem: Problem,
    methods: Mapping[str, Method],
    programs: Mapping[str, Program],
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """Measures a step of each method with its first value; the methods take turns."""
    runs, steps, data = {}, {}, problem.splits["train"]
    for name, method in methods.items():
        value = method.values[0]
        runs[name] = start(problem, method, value, 0)
        steps[name] = functools.partial(programs[name], jnp.float32(value))
    seconds, trials = in_turns(steps, runs, data, batch_size, _COST_ROUNDS)
    operations = {name: programs[name].operations for name in methods}
    return {"seconds": seconds, "operations": operations, "trials": trials}


def make_check(problem: Problem) -> Callable[..., jax.Array]:
    """Returns `rose(before, run, rows, data)`: whether a step raised a batch's loss."""

    @jax.jit
    def rose(
        before: jax.Array, run: mtlopt.Run, rows: jax.Array, data: PyTree
    ) -> jax.Array:
        after = problem.oracle.losses(run.params, take(data, rows), run.state)
        rounding = _ROUNDING * jnp.finfo(after.dtype).eps * jnp.abs(before)
        return jnp.any(~(after <= before + rounding))  # NaN counts as a rise

    return rose


def make_evaluate(problem: Problem) -> Callable[[mtlopt.Run, PyTree], Values]:
    """Returns `evaluate(run, split)`: loss and error, each `[tasks]`."""

    @jax.jit
    def score(params: PyTree, state: PyTree, split: PyTree) -> dict[str, jax.Array]:
        own = functools.partial(problem.score, params, state)
        return map_batches(own, split, _EVALUATION_BATCH, axis=1)

    def evaluate(run: mtlopt.Run, split: PyTree) -> Values:
        scores = jax.device_get(score(run.params, run.state, split))
        return {name: own.mean(axis=1, dtype=float) for name, own in scores.items()}

    return evaluate
