"""The trainings of a vision experiment, one run at a time, by a host loop.

A host loop is used because plain convolutions on a CPU are many times slower inside a
`lax.scan`, and because samples are read from disk when they are needed.
"""

import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.batches import host_order
from experiments.lab.loop import Progress, Training, Values
from experiments.lab.program import fastest
from experiments.lab.vision import methods as ways
from experiments.lab.vision.data import Split
from experiments.lab.vision.methods import Method
from experiments.lab.vision.problem import VisionProblem
from experiments.lab.vision.report import NO_RATE, SINGLE

PyTree = Any
Evaluate = Callable[[Method, ways.State, Split], tuple[np.ndarray, dict[str, Any]]]

NUM_DRAWN = 3  # test images whose predictions are kept
_COST_ROUNDS = 5


class State(NamedTuple):
    """The current run, and the run at the epoch of the lowest mean validation loss."""

    now: ways.State
    best: ways.State
    loss: np.ndarray
    epoch: np.ndarray  # of the lowest loss, from 1


def make_trainings(
    problem: VisionProblem,
    methods: Mapping[str, Method],
    rates: Sequence[float],
    num_seeds: int,
    batch_size: int,
    drawn: Path,
    decay: Callable[[int], float] = lambda _: 1.0,
) -> list[Training]:
    """Returns the trainings of every method with every learning rate and every seed.

    Predictions of seed 0 are written to the folder `drawn`. `decay(epoch)` is a factor
    of the learning rate.
    """
    evaluate = make_evaluate(problem, batch_size)
    return [
        _training(problem, batch_size, method, run, evaluate, drawn, decay)
        for name, method in methods.items()
        for only in (problem.tasks if name == SINGLE else ("",))
        # A line search has nothing to tune.
        for rate in ((NO_RATE,) if method.searches else rates)
        for seed in range(num_seeds)
        for run in [{"method": name, "only": only, "rate": rate, "seed": seed}]
    ]


def run_name(method: str, only: str, rate: float, seed: int) -> str:
    """Returns the name of a run's files."""
    # Not rounded: two runs must not share a file.
    return f"{method}{only and '_' + only}-{rate}-seed{seed}"


def _training(
    problem: VisionProblem,
    size: int,
    method: Method,
    run: Mapping[str, Any],
    evaluate: Evaluate,
    drawn: Path,
    decay: Callable[[int], float] = lambda _: 1.0,
) -> Training:
    splits, name, program = problem.splits, run_name(**run), method.program
    train: Split = splits["train"]
    trained = [run["only"] in ("", task) for task in problem.tasks]
    mine = np.flatnonzero(trained)
    members = jnp.array(trained)

    def start() -> State:
        state = jax.device_put(method.start(run["seed"]), may_alias=False)
        best = jax.device_put(state, may_alias=False)
        return State(state, best, np.array(np.inf), np.array(0))

    def epoch(state: State, number: int, progress: Progress) -> tuple[State, Values]:
        now, seconds = state.now, 0.0
        total, labelled, mean = np.zeros(len(mine)), np.zeros(len(mine)), np.zeros(0)
        for rows in host_order(len(train), size, run["seed"], number):
            batch = train.batch(rows)
            rate = jnp.asarray(run["rate"] * decay(number), jnp.float32)
            program.compile(now, batch, rate, members)
            started = time.perf_counter()
            for _ in range(method.repeats):
                now, losses, present = program(now, batch, rate, members)
                total += np.asarray(losses, float)[mine]
                labelled += np.asarray(present)[mine]
            seconds += time.perf_counter() - started
            mean = total / np.where(labelled, labelled, np.nan)
            progress(1, f"loss: {' '.join(f'{value:.3f}' for value in mean[:6])}")
        validation, metrics = evaluate(method, now, splits["validation"])
        score = statistics.fmean(validation[mine].tolist())
        score = math.inf if math.isnan(score) else score
        state = state._replace(now=now)
        if score <= state.loss:  # the last of equal epochs
            best = jax.device_put(now, may_alias=False)
            state = State(now, best, np.array(score), np.array(number + 1))
        distance = now.run.opt_state[-1]
        return state, {
            "train_loss": [mean],
            "validation_loss": [validation[mine]],
            **{f"validation_{name}": value for name, value in metrics.items()},
            "covered": distance.covered,
            "shortest": distance.shortest,
            "seconds": seconds,
        }

    def finish(state: State) -> Values:
        """Reads the test split, once, at the epoch that validation chose."""
        _, metrics = evaluate(method, state.best, splits["test"])
        if run["seed"] == 0 and problem.learnt.draw:
            # The batch has the size of all other batches, so that nothing is compiled
            # for it.
            images = splits["test"].padded(0, size)["image"]
            outputs = method.predict(state.best, images)
            draw = problem.learnt.draw
            _save(drawn / f"{name}.npz", {t: own(outputs) for t, own in draw.items()})
        return {
            "best_epoch": state.epoch,
            "best_loss": state.loss,
            "compile_seconds": program.compile_seconds,
            "temporary_bytes": program.temporary_bytes,
            **{f"test_{name}": value for name, value in metrics.items()},
        }

    own = [problem.tasks[index] for index in mine]
    parts = {"train_loss": own, "validation_loss": own}
    steps = len(train) // size
    return Training(name, [run], start, epoch, steps, finish, parts=parts)


def _save(path: Path, drawn: Mapping[str, jax.Array]) -> None:
    """Writes the network's predictions for a few test images, atomically."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial.npz")
    kept = {title: np.asarray(image[:NUM_DRAWN]) for title, image in drawn.items()}
    np.savez_compressed(partial, **kept)  # pyright: ignore[reportArgumentType]
    os.replace(partial, path)


def make_evaluate(problem: VisionProblem, batch_size: int) -> Evaluate:
    """Returns `evaluate(method, state, split)`, compiled once for all methods.

    The function returns the losses, which are means over the labelled samples, and the
    metrics.
    """
    tasks = problem.learnt

    @jax.jit
    def measure(outputs: PyTree, batch: PyTree) -> PyTree:
        labels = batch["labels"]
        losses = [loss(outputs[t], labels[t]) for t, loss in tasks.losses.items()]
        counts = jnp.sum(problem.labelled(batch), axis=1)
        return jnp.stack(losses), counts, tasks.count(outputs, labels)

    def evaluate(method: Method, state: ways.State, split: Split) -> Any:
        found = []
        for start in range(0, len(split), batch_size):
            batch = split.padded(start, batch_size)
            outputs = method.predict(state, batch["image"])
            found.append(jax.device_get(measure(outputs, batch)))
        losses, counts, parts = zip(*found, strict=True)
        weights = np.stack(counts).astype(float)
        sums = (np.stack(losses).astype(float) * weights).sum(0)
        return sums / np.maximum(weights.sum(0), 1), dict(tasks.scores(parts))

    return evaluate


def measure_costs(
    problem: VisionProblem, methods: Mapping[str, Method], batch_size: int
) -> dict[str, dict[str, float]]:
    """Measures the methods' steps in turns: `"seconds"` and XLA's `"operations"`."""
    methods = {name: method for name, method in methods.items() if name != SINGLE}
    batch = problem.splits["train"].batch(np.arange(batch_size))
    rate, members = jnp.float32(1e-3), jnp.ones(len(problem.tasks), bool)
    states = {
        name: jax.device_put(own.start(0), may_alias=False)
        for name, own in methods.items()
    }

    def call(name: str) -> Any:
        program = methods[name].program
        found: Any = ()
        for _ in range(methods[name].repeats):
            states[name], *found = program(states[name], batch, rate, members)
        return found

    calls = {name: functools.partial(call, name) for name in methods}
    seconds = fastest(calls, _COST_ROUNDS)
    operations = {n: own.repeats * own.program.operations for n, own in methods.items()}
    return {"seconds": seconds, "operations": operations}
