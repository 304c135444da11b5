"""The line-search experiments' settings, training, tables and figures."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

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
from experiments.lab import tables
from experiments.lab.batches import host_order, map_batches, num_examples, take
from experiments.lab.figures import COLOURS, FAINT, Curve, draw_panels
from experiments.lab.folder import RunFolder
from experiments.lab.loop import Progress, Training, Values, train
from experiments.lab.program import Program
from experiments.lab.settings import Options, check_batch_size, loaded
from experiments.lab.tables import Frame, count, number

PyTree = Any
METHODS = tuple(make_methods(2, 1))
NAMES = {"methods": METHODS}
# Columns of the table: scores and their digits; what is told of a line search.
SCORES = {"train_loss": 3, "train_error": 2, "test_loss": 3, "test_error": 2}
SEARCHED = {"trials": ".2f", "step_size": ".3g", "at_upper": ".0%", "at_floor": ".0%"}
# File name of each figure, and its curves: a method at its first beta, or at its best
# learning rate; "*" is a method at all its values.
FIGURES = {
    "sgd": ("sgd*", "sgd", "fbls", "fbls_decay"),  # figures 3 and 5
    "betas": ("fbls*", "bls*"),  # figure 4
    "methods": ("sgd", "mgda_ub", "bls", "fbls", "fbls_calibrated"),  # figure 6
}

_EVALUATION_BATCH = 500  # examples per forward pass: bounds the memory
_COST_ROUNDS = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The settings that decide the numbers of a run.

    Attributes:
      methods: names of methods, or all.
      direction: what finds the direction of a line search.
      epochs: passes over the train split.
      seeds: number of seeds, from 0; they differ in initial parameters and order.
      batch_size: examples a step.
      decay_every: epochs after which FBLS + decay halves its upper bound.
      train_examples: number of train examples; 0 for all.
      test_examples: number of test examples; 0 for all.
      data_dir: folder of the official data; None for the stand-in.
    """

    methods: tuple[str, ...] = METHODS
    direction: Literal["mgda", "edm", "pcgrad"] = "mgda"
    epochs: int = 6
    seeds: int = 3
    batch_size: int = 256
    decay_every: int = 2
    train_examples: int = 4_096
    test_examples: int = 1_500
    data_dir: str | None = None


# The paper's settings, for images.
FULL = {"epochs": 100, "decay_every": 10, "train_examples": 0, "test_examples": 0}


@dataclasses.dataclass(frozen=True)
class Subject:
    """The subject of an experiment's tables."""

    name: str
    title: str
    network: str  # and what else the reader must know, a sentence or two
    source: str  # of the data
    error: str = "error [%]"  # what it is, with its unit
    factor: float = 100.0  # by which errors are multiplied to have that unit
    # Of the paper's steps, as multiples of SGD's, by method.
    paper_times: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load(loader: Callable[..., Any], settings: Settings, **more: Any) -> Any:
    """Returns the data of as many examples as the settings say."""
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
    known = make_methods(problem.oracle.num_tasks, decay_steps, settings.direction)
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
        report = make_report(subject, settings, methods, table, costs)
        folder.write_results(
            settings,
            report,
            command=tables.command_line(subject.name, argv),
            data={"source": subject.source, "stand_in": settings.data_dir is None},
            runs=last(table).reset_index().to_dict("records"),
            costs=costs,
        )
        draw_figures(subject, methods, table, folder.path)


def make_trainings(
    problem: Problem,
    methods: Mapping[str, Method],
    programs: Mapping[str, Program],
    settings: Settings,
) -> list[Training]:
    """Returns a training for each method, value and seed; the steps are by method."""
    data, size = problem.splits["train"], settings.batch_size
    num_train, evaluate = num_examples(data), make_evaluate(problem)
    judged = min(map(num_examples, problem.splits.values()))
    splits = {"train": take(data, jnp.arange(judged)), "test": problem.splits["test"]}

    def make(name: str, value: float, seed: int) -> Training:
        def epoch(
            run: mtlopt.Run, index: int, progress: Progress
        ) -> tuple[mtlopt.Run, Values]:
            did = []
            for rows in jnp.asarray(host_order(num_train, size, seed, index)):
                run, one = programs[name](jnp.float32(value), run, rows, data)
                did.append(one)
                progress(1, "")
            values = {key: np.mean([float(one[key]) for one in did]) for key in did[0]}
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
    """Measures a step of each method, at its first value, in turns."""
    runs, steps, data = {}, {}, problem.splits["train"]
    for name, method in methods.items():
        value = method.values[0]
        runs[name] = start(problem, method, value, 0)
        steps[name] = functools.partial(programs[name], jnp.float32(value))
    seconds, trials = in_turns(steps, runs, data, batch_size, _COST_ROUNDS)
    operations = {name: programs[name].operations for name in methods}
    return {"seconds": seconds, "operations": operations, "trials": trials}


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


def wide(records: Frame, factor: float) -> Frame:
    """Returns a row for each run and epoch, a column for each name; means over tasks.

    Errors are multiplied by a factor. NaN is infinite, and so is any mean over it.
    """
    keys = ["method", "number", "seed", "epoch", "name"]
    numbers = records.fillna({"value": np.inf}).groupby(keys)["value"]
    table = numbers.mean().unstack("name")
    errors = ["train_error", "test_error"]
    return table.assign(**{name: factor * table[name] for name in errors})


def last(table: Frame) -> Frame:
    """Returns the rows of the last epoch."""
    return table.xs(table.index.get_level_values("epoch").max(), level="epoch")


def best_value(table: Frame, method: str) -> float:
    """Returns the value of a method with the least test error after the last epoch.

    Chosen on the test split: a choice in favour of the methods with a learning rate.
    """
    errors = last(table).loc[method, "test_error"]
    return float(errors.groupby("number").mean().idxmin())


def make_report(
    subject: Subject,
    settings: Settings,
    methods: Mapping[str, Method],
    table: Frame,
    costs: Mapping[str, Mapping[str, float]],
) -> str:
    """Returns the tables of losses, errors and costs as Markdown."""
    ends = last(table)
    titles = {name: method.title for name, method in methods.items()}
    scores, searched = (
        [name.replace("_", " ").replace("error", subject.error) for name in names]
        for names in (SCORES, SEARCHED)
    )
    rows = [
        [
            method.title,
            f"{method.symbol} = {value:.4g}",
            *_scores(ends.loc[name, value]),
            *_searched(table.loc[name, value]),
        ]
        for name, method in methods.items()
        for value in method.values
    ]
    parts = [
        f"# {subject.title}",
        f"Data: {subject.source}. {subject.network} Batch {settings.batch_size}, "
        f"{count(settings.epochs, 'epoch')}, {count(settings.seeds, 'seed')} (± is "
        f"their standard deviation), direction by {settings.direction}. β is the share "
        "of the linear decrease that a line search asks for, η a learning rate. FBLS + "
        f"decay halves its upper bound every {count(settings.decay_every, 'epoch')}.",
        "## After the last epoch, mean over the tasks",
        "Train scores are those of the first examples, as many as there are in the "
        "smaller split; trials, step sizes and shares are means over all steps.",
        tables.markdown_table(["method", "value", *scores, *searched], rows),
    ]
    if "fbls" in methods:
        parts.append(_comparison(subject, methods, table))
    if {"fbls", "bls"} <= set(methods):
        rows = [[titles[name], *_scores(ends.loc[name])] for name in ("fbls", "bls")]
        parts.append("## FBLS and BLS, over all β and seeds (figure 4)")
        parts.append(tables.markdown_table(["method", *scores], rows))
    base = "sgd" if "sgd" in methods else settings.methods[0]
    paper = subject.paper_times if base == "sgd" else None  # multiples of SGD's
    parts += [
        "## Cost of a step",
        f"After the training, methods in turns, the fastest of {_COST_ROUNDS} steps; "
        f"multiples are of {titles[base]}. XLA counts one trial.",
        tables.cost_table(costs["seconds"], costs["operations"], titles, base, paper),
    ]
    return "\n\n".join(parts) + "\n"


def _scores(ends: Frame) -> list[str]:
    return [number(ends[name], 1, digits) for name, digits in SCORES.items()]


def _searched(rows: Frame) -> list[str]:
    """Returns means over all steps of a line search, as cells."""
    means = rows.reindex(columns=list(SEARCHED)).mean()
    cells = zip(means, SEARCHED.values(), strict=True)
    return ["" if np.isnan(mean) else format(mean, form) for mean, form in cells]


def _comparison(subject: Subject, methods: Mapping[str, Method], table: Frame) -> str:
    """Returns the sentence that compares FBLS with the best learning rates."""
    errors = last(table)["test_error"]
    parts = [f"FBLS (β = {BETAS[0]}), no tuning: {number(errors['fbls', BETAS[0]])}"]
    for name in [name for name in ("sgd", "mgda_ub") if name in methods]:
        value = best_value(table, name)
        parts.append(
            f"best of {len(methods[name].values)} learning rates of "
            f"{methods[name].title}, η = {value:.4g}: {number(errors[name, value])}"
        )
    return (
        f"Test {subject.error}: {'; '.join(parts)}. Best is by this very column, which "
        "is in favour of the methods with a learning rate."
    )


def draw_figures(
    subject: Subject, methods: Mapping[str, Method], table: Frame, out: Path
) -> None:
    """Draws the losses and the errors over epochs, for train and test."""

    def drawn(member: str) -> tuple[str, Frame, str]:
        name, all_values = member.removesuffix("*"), member.endswith("*")
        method, colour = methods[name], COLOURS[METHODS.index(name)]
        is_rate = method.symbol == "η"
        if all_values:  # all eight learning rates are a backdrop
            label = f"{method.title}, all {method.symbol}"
            return label, table.loc[name], FAINT if is_rate else colour
        value = best_value(table, name) if is_rate else method.values[0]
        label = f"{method.title}, {value:.2g}" if is_rate else method.title
        return label, table.loc[name, value], colour

    for figure, members in FIGURES.items():
        lines = [drawn(name) for name in members if name.strip("*") in methods]
        for metric, ylabel in (("loss", "loss"), ("error", subject.error)):
            panels: dict[str, list[Curve]] = {"train": [], "test": []}
            for split, curves in panels.items():
                for label, rows, colour in lines:
                    own = rows[f"{split}_{metric}"].unstack("epoch")
                    curves.append(Curve(label, list(own), own.to_numpy().T, colour))
            if lines:
                draw_panels(
                    out / f"{figure}_{metric}.png",
                    panels,
                    xlabel="epoch",
                    ylabel=ylabel,
                    title=f"{subject.title} (line: mean, band: minimum to maximum). "
                    f"Data: {subject.source}",
                )
