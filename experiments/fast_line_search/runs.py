"""Training of one line-search run after the other: recorded, timed, resumable."""

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.fast_line_search.methods import (
    Method,
    Problem,
    State,
    make_step,
    num_examples,
    start,
)
from experiments.lab.checkpoints import Checkpoints
from experiments.lab.run_folder import CsvStream, read_json, write_json
from experiments.lab.training import batches, take

PyTree = Any

CURVES = ("train_loss", "train_error", "test_loss", "test_error")
SEARCHED = ("trials", "step_size", "at_upper", "at_floor")

_EVALUATION_BATCH = 500
_SECONDS_BETWEEN_CHECKPOINTS = 60.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; each field is an option of its name.

    Attributes:
      methods: names of methods, see `make_methods`.
      direction: what finds the direction, a name in `DIRECTIONS`.
      epochs: passes over the train split.
      seeds: number of seeds, from 0; they differ in initial parameters and order.
      batch_size: examples a step.
      decay_every: epochs after which FBLS + decay halves its upper bound.
      train_examples: number of train examples; 0 for all.
      test_examples: number of test examples; 0 for all.
      data_dir: folder of the official data; None for the stand-in.
    """

    methods: tuple[str, ...]
    direction: str = "mgda"
    epochs: int = 4
    seeds: int = 3
    batch_size: int = 256
    decay_every: int = 2
    train_examples: int = 0
    test_examples: int = 0
    data_dir: str | None = None


@dataclasses.dataclass
class History:
    """What was recorded of one run, one entry an epoch.

    Losses and errors are lists, with a number for each task.

    Attributes:
      seconds: of the training steps, without compilation and evaluation.
      train_loss: mean over as many train examples as there are test examples.
      train_error: likewise.
      test_loss: mean over the test split.
      test_error: likewise.
      trials: mean number of a line search's trials; empty for other methods.
      step_size: mean of its step sizes.
      at_upper: share of steps whose first trial was accepted.
      at_floor: share of steps without an accepted trial.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    train_loss: list[list[float]] = dataclasses.field(default_factory=list)
    train_error: list[list[float]] = dataclasses.field(default_factory=list)
    test_loss: list[list[float]] = dataclasses.field(default_factory=list)
    test_error: list[list[float]] = dataclasses.field(default_factory=list)
    trials: list[float] = dataclasses.field(default_factory=list)
    step_size: list[float] = dataclasses.field(default_factory=list)
    at_upper: list[float] = dataclasses.field(default_factory=list)
    at_floor: list[float] = dataclasses.field(default_factory=list)

    def mean(self, name: str) -> list[float]:
        """Returns one of the four curves, averaged over the tasks."""
        return [statistics.fmean(values) for values in getattr(self, name)]


@dataclasses.dataclass(frozen=True)
class Run:
    """One method at one value with one seed."""

    method: str
    value: float
    seed: int
    history: History

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.method}-{self.value:.4g}-seed{self.seed}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows of the CSV, one an epoch."""
        for epoch, seconds in enumerate(self.history.seconds):
            row = {"method": self.method, "value": self.value, "seed": self.seed}
            row |= {"epoch": epoch + 1, "seconds": seconds}
            row |= {name: self.history.mean(name)[epoch] for name in CURVES}
            for name in SEARCHED:
                values = getattr(self.history, name)
                row[name] = values[epoch] if values else ""
            yield row


def run_methods(
    problem: Problem, methods: Mapping[str, Method], settings: Settings, out: Path
) -> list[Run]:
    """Trains every method at every value with every seed.

    A finished run is a file in `out / "runs"`, and is not run again. A run that takes
    longer than a minute leaves checkpoints.
    """
    runs = []
    csv = CsvStream(out / "metrics.csv")
    (out / "runs").mkdir(exist_ok=True)
    evaluate = make_evaluate(problem)
    total = sum(len(method.values) for method in methods.values())
    num_steps = num_examples(problem.train) // settings.batch_size
    total *= settings.seeds * settings.epochs * num_steps
    with tqdm(total=total, unit="step", dynamic_ncols=True) as bar:
        for name, method in methods.items():
            trainer = _Trainer(problem, method, settings, evaluate, bar, csv)
            for value in method.values:
                for seed in range(settings.seeds):
                    run = Run(name, value, seed, History())
                    path = out / "runs" / f"{run.name}.json"
                    if path.exists():
                        run = _read_run(path)
                        for row in run.rows():
                            csv.append(row)
                        bar.update(settings.epochs * num_steps)
                    else:
                        run = trainer.train(run, out / "checkpoints" / run.name)
                        write_json(path, dataclasses.asdict(run))
                    runs.append(run)
    return runs


def _read_run(path: Path) -> Run:
    found = read_json(path)
    return Run(**{**found, "history": History(**found["history"])})


class _Trainer:
    """Trains the runs of one method, which share a compiled step."""

    def __init__(
        self,
        problem: Problem,
        method: Method,
        settings: Settings,
        evaluate: Callable[[State, PyTree], dict[str, list[float]]],
        bar: tqdm,
        csv: CsvStream,
    ):
        self._problem = problem
        self._method = method
        self._settings = settings
        self._evaluate = evaluate
        self._bar = bar
        self._csv = csv
        self._step = jax.jit(make_step(problem, method), donate_argnums=0)
        self._compiled: Any = None
        size = min(num_examples(problem.train), num_examples(problem.test))
        self._splits = {
            "train": jax.tree.map(lambda leaf: leaf[:size], problem.train),
            "test": problem.test,
        }

    def train(self, run: Run, folder: Path) -> Run:
        """Trains one run, from its checkpoint if it has one."""
        settings, history = self._settings, run.history
        state = start(self._problem, self._method, run.value, run.seed)
        done = 0
        if folder.exists():
            with Checkpoints(folder) as checkpoints:
                saved = checkpoints.restore(state)
            if saved is not None:
                done, state, recorded = saved
                history = History(**recorded)
                run = dataclasses.replace(run, history=history)
                for row in run.rows():
                    self._csv.append(row)
        num_train = num_examples(self._problem.train)
        self._bar.update(done * (num_train // settings.batch_size))
        saved_at = time.monotonic()
        for epoch in range(done, settings.epochs):
            order = batches(num_train, settings.batch_size, run.seed, epoch)
            self._bar.set_description(f"{run.name} {epoch + 1}/{settings.epochs}")
            state = self._run_epoch(state, run.value, order, history)
            for split, data in self._splits.items():
                for name, values in self._evaluate(state, data).items():
                    getattr(history, f"{split}_{name}").append(values)
            self._csv.append(list(run.rows())[-1])
            due = time.monotonic() > saved_at + _SECONDS_BETWEEN_CHECKPOINTS
            if due and epoch + 1 < settings.epochs:
                with Checkpoints(folder) as checkpoints:
                    checkpoints.save(epoch + 1, state, dataclasses.asdict(history))
                saved_at = time.monotonic()
        if folder.exists():
            shutil.rmtree(folder)
        return run

    def _run_epoch(
        self, state: State, value: float, order: np.ndarray, history: History
    ) -> State:
        data, number = self._problem.train, jnp.asarray(value, jnp.float32)
        rows = jnp.asarray(order)
        if self._compiled is None:
            lowered = self._step.lower(state, number, rows[0], data)
            self._compiled = lowered.compile()
        did = []
        started = time.perf_counter()
        for i in range(len(rows)):
            state, one = self._compiled(state, number, rows[i], data)
            did.append(one)
            self._bar.update()
        jax.block_until_ready(state)
        history.seconds.append(time.perf_counter() - started)
        for name in did[0]:
            values = np.array([one[name] for one in did], float)
            getattr(history, name).append(float(values.mean()))
        return state


def make_evaluate(
    problem: Problem,
) -> Callable[[State, PyTree], dict[str, list[float]]]:
    """Returns `evaluate(state, split)`: loss and error, a number for each task."""
    score = jax.jit(lambda state, batch: problem.score(state[0], state[1], batch))

    def evaluate(state: State, split: PyTree) -> dict[str, list[float]]:
        num = num_examples(split)
        size = min(_EVALUATION_BATCH, num)
        # The last batch is filled up from the front, and cut off again below.
        rows = (np.arange(-(-num // size) * size) % num).reshape(-1, size)
        parts = [score(state[:2], take(split, jnp.asarray(chosen))) for chosen in rows]
        return {
            name: np.concatenate([part[name] for part in parts], axis=1)[:, :num]
            .mean(axis=1, dtype=float)
            .tolist()
            for name in ("loss", "error")
        }

    return evaluate
