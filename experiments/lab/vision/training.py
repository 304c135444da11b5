"""Training of a vision experiment, run after run: recorded, timed, resumable."""

import dataclasses
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.lab.checkpoints import Checkpoints
from experiments.lab.run_folder import CsvStream, read_json, write_json
from experiments.lab.training import batches
from experiments.lab.vision.data import Data, Split
from experiments.lab.vision.methods import SINGLE, SUM, Method, State, make_methods
from experiments.lab.vision.problems import Problem, as_numbers

PyTree = Any

NUM_DRAWN = 3  # test images whose predictions are kept
_SECONDS_BETWEEN_CHECKPOINTS = 60.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long everything is trained.

    Attributes:
      methods: names, see `method_names`.
      epochs: passes over the train split.
      seeds: number of seeds, from 0.
      batch_size: samples a step.
      learning_rates: the grid, the same for every method.
    """

    methods: tuple[str, ...]
    epochs: int
    seeds: int
    batch_size: int
    learning_rates: tuple[float, ...]


@dataclasses.dataclass
class History:
    """What was recorded of one run, one entry an epoch.

    Attributes:
      seconds: of the training steps, without compilation and evaluation.
      train_loss: for each task.
      validation_loss: for each task.
      validation: metrics.
      covered: distance covered in the shared parameters.
      shortest: distance from the initial ones.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    train_loss: list[list[float]] = dataclasses.field(default_factory=list)
    validation_loss: list[list[float]] = dataclasses.field(default_factory=list)
    validation: list[dict[str, float]] = dataclasses.field(default_factory=list)
    covered: list[float] = dataclasses.field(default_factory=list)
    shortest: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Run:
    """One method with one learning rate and one seed.

    Attributes:
      method: its name.
      title: of the method.
      only: the task that alone is trained; empty for all of them.
      rate: the learning rate.
      seed: of initial parameters, order and all else.
      history: what was recorded.
      best_epoch: from 1, that with the lowest validation loss, mean over the tasks.
      test: metrics there.
      compile_seconds: of the training step.
      temporary_bytes: that the compiled step needs beside its arguments and results.
    """

    method: str
    title: str
    only: str
    rate: float
    seed: int
    history: History = dataclasses.field(default_factory=History)
    best_epoch: int = 0
    test: dict[str, float] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0
    temporary_bytes: int = 0

    @property
    def name(self) -> str:
        """Name of its files."""
        only = f"_{self.only}" if self.only else ""
        return f"{self.method}{only}-{self.rate:g}-seed{self.seed}"

    @property
    def best_loss(self) -> float:
        """The lowest validation loss."""
        return min(map(self.criterion, self.history.validation_loss))

    def criterion(self, losses: list[float]) -> float:
        """The mean of the losses; infinite where it is not a number."""
        mean = statistics.fmean(losses)
        return math.inf if math.isnan(mean) else mean

    def rows(self, tasks: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Yields the rows of the CSV, one an epoch."""
        names = (self.only,) if self.only else tasks
        history = self.history
        for epoch, seconds in enumerate(history.seconds):
            row = {"method": self.method, "only": self.only, "rate": self.rate}
            row |= {"seed": self.seed, "epoch": epoch + 1, "seconds": seconds}
            for split in ("train", "validation"):
                losses = getattr(history, f"{split}_loss")[epoch]
                by_task = dict(zip(names, losses, strict=True))
                for task in tasks:
                    row[f"{split}_loss_{task}"] = by_task.get(task, "")
            for name, value in history.validation[epoch].items():
                row[f"validation_{name}"] = value
            row["covered"] = history.covered[epoch]
            row["shortest"] = history.shortest[epoch]
            yield row


def run_methods(
    problem: Problem, data: Data, schedule: Schedule, out: Path
) -> list[Run]:
    """Trains every method with every learning rate and every seed.

    A finished run is a file in `out / "runs"`, and is not run again. A run that takes
    longer than a minute leaves checkpoints.

    Args:
      problem: what is trained.
      data: on what.
      schedule: how long.
      out: the claimed folder, see `run_folder.claim`.

    Returns:
      The runs.
    """
    steps = len(data.train) // schedule.batch_size
    makers = make_methods(problem, steps * schedule.epochs, steps)
    csv = CsvStream(out / "metrics.csv")
    for folder in ("runs", "drawn"):
        (out / folder).mkdir(exist_ok=True)
    evaluate = Evaluator(problem, schedule.batch_size)
    plan: dict[str, list[Run]] = {}
    for name in schedule.methods:
        # Single tasks share the program of the summed loss.
        key = SUM if name == SINGLE else name
        plan.setdefault(key, []).extend(_plan(name, makers[key](), problem, schedule))
    runs = []
    total = sum(map(len, plan.values())) * schedule.epochs * steps
    with tqdm(total=total, unit="step", dynamic_ncols=True) as bar:
        for name, planned in plan.items():
            trainer = Trainer(
                problem, makers[name](), data, schedule, evaluate, bar, csv
            )
            for run in planned:
                path = out / "runs" / f"{run.name}.json"
                if path.exists():
                    run = read_run(path)
                    for row in run.rows(problem.names):
                        csv.append(row)
                    bar.update(schedule.epochs * steps)
                else:
                    run = trainer.train(run, out)
                    write_json(path, dataclasses.asdict(run))
                runs.append(run)
    return runs


def _plan(
    name: str, method: Method, problem: Problem, schedule: Schedule
) -> Iterator[Run]:
    # A line search has nothing to tune.
    rates = (1.0,) if method.searches else schedule.learning_rates
    title = "Single task" if name == SINGLE else method.title
    for only in problem.names if name == SINGLE else ("",):
        for rate in rates:
            for seed in range(schedule.seeds):
                yield Run(name, title, only, rate, seed)


def read_run(path: Path) -> Run:
    """Reads a finished run."""
    found = read_json(path)
    return Run(**{**found, "history": History(**found["history"])})


class Evaluator:
    """Losses and metrics of a split; compiled once for all methods that predict alike.

    Args:
      problem: what is trained.
      batch_size: samples in a forward pass.
    """

    def __init__(self, problem: Problem, batch_size: int):
        self._problem = problem
        self._batch_size = batch_size

        def measure(outputs: PyTree, batch: PyTree) -> PyTree:
            tasks, labels = problem.tasks, batch["labels"]
            losses = [
                loss(outputs[task], labels[task]) for task, loss in tasks.losses.items()
            ]
            counts = jnp.sum(problem.labelled(batch), axis=1)
            return jnp.stack(losses), counts, tasks.count(outputs, labels)

        self._measure = jax.jit(measure)

    def __call__(
        self, predict: Callable[..., PyTree], state: State, split: Split
    ) -> tuple[list[float], dict[str, float]]:
        """Returns the losses, a mean over the labelled samples, and the metrics."""
        losses, counts, parts = [], [], []
        for start in range(0, len(split), self._batch_size):
            batch = split.padded(start, self._batch_size)
            outputs = predict(state, batch["image"])
            loss, count, part = jax.device_get(self._measure(outputs, batch))
            losses.append(np.asarray(loss, float))
            counts.append(np.asarray(count, float))
            parts.append(part)
        weights = np.stack(counts)
        mean = (np.stack(losses) * weights).sum(0) / np.maximum(weights.sum(0), 1)
        return mean.tolist(), as_numbers(self._problem.tasks.scores(parts))


class Trainer:
    """Trains the runs of one method, which share compiled programs.

    Args:
      problem: what is trained.
      method: how.
      data: on what.
      schedule: how long.
      evaluate: for losses and metrics.
      bar: the progress.
      csv: to which the epochs are written.
    """

    def __init__(
        self,
        problem: Problem,
        method: Method,
        data: Data,
        schedule: Schedule,
        evaluate: Evaluator,
        bar: tqdm,
        csv: CsvStream,
    ):
        self._problem = problem
        self._method = method
        self._data = data
        self._schedule = schedule
        self._evaluate = evaluate
        self._bar = bar
        self._csv = csv
        self._step = jax.jit(method.step, donate_argnums=0)
        self._compiled: Any = None
        self._compile_seconds = 0.0

    def train(self, run: Run, out: Path) -> Run:
        """Trains one run, from its checkpoint if it has one, and tests it."""
        schedule, tasks = self._schedule, self._problem.names
        state = jax.tree.map(jnp.copy, self._method.start(run.seed))
        best = jax.tree.map(jnp.copy, state)
        done, folder = 0, out / "checkpoints" / run.name
        if folder.exists():
            with Checkpoints(folder) as checkpoints:
                saved = checkpoints.restore({"state": state, "best": best})
            if saved is not None:
                done, both, recorded = saved
                state, best = both["state"], both["best"]
                run = dataclasses.replace(run, history=History(**recorded))
                for row in run.rows(tasks):
                    self._csv.append(row)
        num_train = len(self._data.train)
        self._bar.update(done * (num_train // schedule.batch_size))
        saved_at = time.monotonic()
        for epoch in range(done, schedule.epochs):
            order = batches(num_train, schedule.batch_size, run.seed, epoch)
            state = self._run_epoch(state, run, order)
            self._validate(state, run)
            if run.criterion(run.history.validation_loss[-1]) <= run.best_loss:
                best = jax.tree.map(jnp.copy, state)
            self._csv.append(list(run.rows(tasks))[-1])
            due = time.monotonic() > saved_at + _SECONDS_BETWEEN_CHECKPOINTS
            if due and epoch + 1 < schedule.epochs:
                both = {"state": state, "best": best}
                with Checkpoints(folder) as checkpoints:
                    checkpoints.save(epoch + 1, both, dataclasses.asdict(run.history))
                saved_at = time.monotonic()
        run = self._test(best, run, out)
        if folder.exists():
            shutil.rmtree(folder)
        return run

    def _run_epoch(self, state: State, run: Run, order: np.ndarray) -> State:
        rate = jnp.asarray(run.rate, jnp.float32)
        members = jnp.array(
            [run.only in ("", task) for task in self._problem.names], bool
        )
        if self._compiled is None:
            args = (state, self._data.train.batch(order[0]), rate, members)
            started = time.perf_counter()
            self._compiled = self._step.lower(*args).compile()
            self._compile_seconds = time.perf_counter() - started
        losses, mean, seconds = [], [], 0.0
        number = len(run.history.seconds) + 1
        self._bar.set_description(f"{run.name} {number}/{self._schedule.epochs}")
        for rows in order:
            batch = self._data.train.batch(rows)
            started = time.perf_counter()
            state, loss = self._compiled(state, batch, rate, members)
            losses.append(np.asarray(loss, float))
            seconds += time.perf_counter() - started
            mean = self._members(run, np.mean(losses, axis=0).tolist())
            text = " ".join(f"{value:.3f}" for value in mean[:6])
            self._bar.set_postfix_str(f"loss: {text}", refresh=False)
            self._bar.update()
        run.history.seconds.append(seconds)
        run.history.train_loss.append(mean)
        distance = state.opt_state[-1]
        run.history.covered.append(float(distance.covered))
        run.history.shortest.append(float(distance.shortest))
        return state

    def _members(self, run: Run, losses: list[float]) -> list[float]:
        """The losses of the tasks that are trained."""
        pairs = zip(self._problem.names, losses, strict=True)
        return [loss for task, loss in pairs if run.only in ("", task)]

    def _validate(self, state: State, run: Run) -> None:
        self._bar.set_description(f"{run.name} validation")
        losses, metrics = self._evaluate(
            self._method.predict, state, self._data.validation
        )
        run.history.validation_loss.append(self._members(run, losses))
        run.history.validation.append(metrics)

    def _test(self, best: State, run: Run, out: Path) -> Run:
        """Reads the test split, once, at the epoch that validation chose."""
        losses = [run.criterion(each) for each in run.history.validation_loss]
        self._bar.set_description(f"{run.name} test")
        _, metrics = self._evaluate(self._method.predict, best, self._data.test)
        memory = None if self._compiled is None else self._compiled.memory_analysis()
        if run.seed == 0 and self._problem.tasks.draw:
            self._keep_drawn(best, out / "drawn" / f"{run.name}.npz")
        # The last of equals, as it was kept.
        best_epoch = len(losses) - losses[::-1].index(min(losses))
        return dataclasses.replace(
            run,
            best_epoch=best_epoch,
            test=metrics,
            compile_seconds=self._compile_seconds,
            temporary_bytes=getattr(memory, "temp_size_in_bytes", 0),
        )

    def _keep_drawn(self, state: State, path: Path) -> None:
        """Writes what the network sees in a few test images."""
        # Of the size of all other batches: nothing is compiled for it.
        batch = self._data.test.padded(0, self._schedule.batch_size)
        outputs = self._method.predict(state, batch["image"])
        drawn = {
            title: np.asarray(draw(outputs)[:NUM_DRAWN])
            for title, draw in self._problem.tasks.draw.items()
        }
        partial = path.with_name(f"{path.stem}.partial.npz")
        np.savez_compressed(partial, **drawn)  # pyright: ignore[reportArgumentType]
        os.replace(partial, path)
