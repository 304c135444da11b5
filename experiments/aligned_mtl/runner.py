"""Trains one method after the other: timed, streamed to CSV, resumable."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from experiments.aligned_mtl.dominance import make_dominance
from experiments.lab.checkpoints import Checkpoints
from experiments.lab.run_folder import CsvStream
from experiments.lab.training import (
    Problem,
    State,
    epoch_order,
    init_params,
    init_state,
    keep_best,
    make_evaluate,
    make_train,
)

MakeOptimizer = Callable[[str], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long everything is trained.

    Attributes:
      epochs: passes over the training split.
      seeds: number of seeds, from 0, all in one vmapped program.
      batch_size: examples per step.
      dominance_every: steps between two measurements of the dominance rate.
    """

    epochs: int
    seeds: int
    batch_size: int
    dominance_every: int


@dataclasses.dataclass
class History:
    """What was recorded of one method, as plain numbers.

    Attributes:
      compile_seconds: compilation of the training loop.
      seconds: for each epoch, training of all seeds; no compilation, no evaluation.
      train_loss: mean over the epoch, `[epochs][seeds][tasks]`.
      validation: for each metric `[epochs][seeds][tasks]`.
      dominance_step: steps before which the dominance rate was measured.
      dominance: dominance rate of the task gradients, `[measurements][seeds]`.
      dominance_aligned: the same after the method's alignment; empty if it has none.
    """

    compile_seconds: float = 0.0
    seconds: list[float] = dataclasses.field(default_factory=list)
    train_loss: list[Any] = dataclasses.field(default_factory=list)
    validation: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    dominance_step: list[int] = dataclasses.field(default_factory=list)
    dominance: list[list[float]] = dataclasses.field(default_factory=list)
    dominance_aligned: list[list[float]] = dataclasses.field(default_factory=list)

    def rows(
        self, method: str, tasks: tuple[str, ...], steps_per_epoch: int
    ) -> Iterator[dict[str, Any]]:
        """Yields the rows of the CSV: one for each epoch and seed."""
        for epoch in range(len(self.seconds)):
            steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
            now = [i for i, step in enumerate(self.dominance_step) if step in steps]
            for seed in range(len(self.train_loss[epoch])):
                row = {"method": method, "seed": seed, "epoch": epoch + 1}
                row["seconds_all_seeds"] = self.seconds[epoch]
                metrics = {"train_loss": self.train_loss}
                for name, values in self.validation.items():
                    metrics[f"validation_{name}"] = values
                for name, values in metrics.items():
                    for task, value in zip(tasks, values[epoch][seed], strict=True):
                        row[f"{name}_{task}"] = value
                for name in ("dominance", "dominance_aligned"):
                    rates = getattr(self, name)
                    row[f"{name}_mean"] = (
                        statistics.fmean(rates[i][seed] for i in now) if rates else ""
                    )
                yield row


@dataclasses.dataclass(frozen=True)
class Result:
    """A trained method.

    Attributes:
      history: what was recorded on the way.
      best_epoch: by validation, for each seed.
      test_best: test metrics at that epoch, for each metric `[seeds][tasks]`.
      test_last: test metrics after the last epoch.
    """

    history: History
    best_epoch: list[int]
    test_best: Mapping[str, Any]
    test_last: Mapping[str, Any]


def run_methods(
    problem: Problem,
    methods: tuple[str, ...],
    make_optimizer: MakeOptimizer,
    schedule: Schedule,
    out: Path,
) -> dict[str, Result]:
    """Trains the methods, each from its checkpoint if it has one.

    Args:
      problem: what is trained.
      methods: names.
      make_optimizer: from a name to the complete optimizer.
      schedule: how long.
      out: the claimed folder of the run, see `run_folder.claim`.

    Returns:
      The result of each method.
    """
    # Compiled once, for all methods.
    evaluate = make_evaluate(problem)
    measure = make_dominance(problem.oracle, methods)
    steps_per_epoch = problem.num_train // schedule.batch_size
    params = init_params(problem, schedule.seeds)
    tasks = problem.oracle.tasks
    csv = CsvStream(out / "metrics.csv")
    results = {}
    total = len(methods) * schedule.epochs * steps_per_epoch
    with tqdm(total=total, unit="step", dynamic_ncols=True) as bar:
        for method in methods:
            optimizer = make_optimizer(method)
            state = init_state(params, optimizer)
            history = History()
            with Checkpoints(out / "checkpoints" / method) as checkpoints:
                saved = checkpoints.restore(state)
                done = 0
                if saved is not None:
                    done, state, recorded = saved
                    history = History(**recorded)
                    for row in history.rows(method, tasks, steps_per_epoch):
                        csv.append(row)
                    bar.update(done * steps_per_epoch)
                trainer = _Trainer(problem, method, optimizer, schedule, measure, bar)
                for epoch in range(done, schedule.epochs):
                    state = trainer.run_epoch(state, history, epoch)
                    state = _validate(problem, evaluate, state, history, epoch)
                    checkpoints.save(epoch + 1, state, dataclasses.asdict(history))
                    rows = list(history.rows(method, tasks, steps_per_epoch))
                    for row in rows[-schedule.seeds :]:
                        csv.append(row)
            best_epoch = state.best_epoch.tolist()
            last = _as_lists(evaluate(state.params, problem.test))
            # Often the last epoch is the best, and one evaluation is enough.
            best = last
            if best_epoch != [schedule.epochs] * schedule.seeds:
                best = _as_lists(evaluate(state.best_params, problem.test))
            results[method] = Result(history, best_epoch, best, last)
    return results


class _Trainer:
    """Runs the epochs of one method."""

    def __init__(
        self,
        problem: Problem,
        method: str,
        optimizer: optax.GradientTransformation,
        schedule: Schedule,
        measure: Callable[..., dict[str, jax.Array]],
        bar: tqdm,
    ):
        self._problem = problem
        self._method = method
        self._train = make_train(problem.oracle, optimizer)
        self._compiled = None
        self._schedule = schedule
        self._measure = measure
        self._bar = bar

    def run_epoch(self, state: State, history: History, epoch: int) -> State:
        """Trains one epoch, with a measurement of dominance every few steps."""
        data, schedule = self._problem.train, self._schedule
        order = epoch_order(
            self._problem.num_train, schedule.batch_size, schedule.seeds, epoch
        )
        num_steps = order.shape[1]
        params, opt_state = state.params, state.opt_state
        if self._compiled is None:
            started = time.perf_counter()
            lowered = self._train.lower(params, opt_state, order, 0, num_steps, data)
            self._compiled = lowered.compile()
            history.compile_seconds = time.perf_counter() - started

        losses, seconds = jnp.zeros([]), 0.0
        for start in range(0, num_steps, schedule.dominance_every):
            stop = min(start + schedule.dominance_every, num_steps)
            rates = _as_lists(self._measure(params, order, start, data))
            history.dominance_step.append(epoch * num_steps + start)
            history.dominance.append(rates["raw"])
            if self._method in rates:
                history.dominance_aligned.append(rates[self._method])

            started = time.perf_counter()
            params, opt_state, total = jax.block_until_ready(
                self._compiled(params, opt_state, order, start, stop, data)
            )
            seconds += time.perf_counter() - started

            losses = losses + total
            self._report(epoch, stop - start, total / (stop - start))
        history.seconds.append(seconds)
        history.train_loss.append((losses / num_steps).tolist())
        return state._replace(params=params, opt_state=opt_state)

    def _report(self, epoch: int, num_steps: int, losses: jax.Array) -> None:
        tasks = self._problem.oracle.tasks
        values = zip(tasks, losses.mean(axis=0).tolist(), strict=True)
        text = " ".join(f"{task} {value:.3f}" for task, value in values)
        self._bar.set_description(
            f"{self._method} {epoch + 1}/{self._schedule.epochs}", refresh=False
        )
        self._bar.set_postfix_str(f"loss: {text}", refresh=False)
        self._bar.update(num_steps)


def _validate(
    problem: Problem,
    evaluate: Callable[..., dict[str, jax.Array]],
    state: State,
    history: History,
    epoch: int,
) -> State:
    """Records the validation metrics, and keeps the parameters if they are the best."""
    metrics = evaluate(state.params, problem.validation)
    for name, values in _as_lists(metrics).items():
        history.validation.setdefault(name, []).append(values)
    return keep_best(state, metrics["accuracy"].mean(axis=1), epoch + 1)


def _as_lists(metrics: Mapping[str, jax.Array]) -> dict[str, Any]:
    return {name: values.tolist() for name, values in metrics.items()}
