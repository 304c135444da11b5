"""The runs of the alternation experiments: recorded, streamed to CSV, resumable."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.ate_sg.costs import Costs
from experiments.ate_sg.phases import (
    Epoch,
    Moving,
    Problem,
    Schedule,
    Trainer,
    moving_at,
)
from experiments.lab.checkpoints import Checkpoints
from experiments.lab.run_folder import CsvStream

CHECKPOINT_SECONDS = 30.0  # what a killed run loses at most, and one epoch
_NAMES = {"sgd": "SG", "adam": "Adam"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, of all seeds.

    Attributes:
      optimizer: a name in `phases.OPTIMIZERS`.
      learning_rate: to start from.
      length: of both phases in epochs, `E_0 = E_ts`; None for no alternation.
    """

    optimizer: str
    learning_rate: float
    length: int | None

    @property
    def training_type(self) -> str:
        """Name as in the paper's tables."""
        name = _NAMES[self.optimizer]
        if self.length is None:
            return f"Classic {name}"
        return f"ATE-{name}, E0 = Ets = {self.length}"

    @property
    def folder(self) -> str:
        """Name of its checkpoints."""
        kind = "classic" if self.length is None else f"ate_{self.length}"
        return f"{self.optimizer}_{self.learning_rate:g}_{kind}"


@dataclasses.dataclass
class History:
    """What was recorded of a run, as plain numbers.

    Attributes:
      moving: for each epoch what moved.
      seconds: for each epoch, of all seeds; no compilation.
      train_loss: `[epochs][seeds][tasks]`, like all that follow NaN in the epochs after
        a seed has stopped.
      validation_loss: `[epochs][seeds][tasks]`.
      learning_rate: `[epochs][seeds]`.
    """

    moving: list[Moving] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    train_loss: list[Any] = dataclasses.field(default_factory=list)
    validation_loss: list[Any] = dataclasses.field(default_factory=list)
    learning_rate: list[list[float]] = dataclasses.field(default_factory=list)

    def append(self, epoch: Epoch, moving: Moving, seconds: float) -> None:
        """Appends an epoch."""
        self.moving.append(moving)
        self.seconds.append(seconds)
        running = np.asarray(epoch.running)
        for name in ("train_loss", "validation_loss", "learning_rate"):
            values = np.asarray(getattr(epoch, name))
            there = running.reshape(-1, *[1] * (values.ndim - 1))
            getattr(self, name).append(np.where(there, values, math.nan).tolist())

    def rows(
        self, run: Run, tasks: Sequence[str], cost: Mapping[str, np.ndarray], first: int
    ) -> Iterator[dict[str, Any]]:
        """Yields rows of the CSV: one for each epoch from `first` and running seed."""
        for epoch in range(first, len(self.seconds)):
            for seed, rate in enumerate(self.learning_rate[epoch]):
                if math.isnan(rate):
                    continue
                row = {
                    "optimizer": run.optimizer,
                    "initial_learning_rate": run.learning_rate,
                    "phase_epochs": "" if run.length is None else run.length,
                    "seed": seed,
                    "epoch": epoch + 1,
                    "moving": self.moving[epoch],
                    "learning_rate": rate,
                    "seconds_all_seeds": self.seconds[epoch],
                }
                for unit, values in cost.items():
                    row[f"cost_by_{unit}"] = values[epoch]
                for name in ("train_loss", "validation_loss"):
                    losses = getattr(self, name)[epoch][seed]
                    for task, loss in zip(tasks, losses, strict=True):
                        row[f"{name}_{task}"] = loss
                yield row


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
      history: what was recorded on the way.
      epochs: number of epochs, for each seed.
      best_epoch: that with the lowest validation loss, for each seed; 0 for none.
      test: test scores at that epoch, for each metric `[seeds][tasks]`.
    """

    history: History
    epochs: list[int]
    best_epoch: list[int]
    test: Mapping[str, Any]


def run_all(
    problem: Problem,
    runs: Sequence[Run],
    schedule: Schedule,
    units: Mapping[str, Costs],
    out: Path,
) -> dict[Run, Result]:
    """Trains all runs, each from its checkpoint if it has one.

    Args:
      problem: what is trained.
      runs: the runs.
      schedule: how long.
      units: what epochs cost, for each unit.
      out: the claimed folder of the run, see `run_folder.claim`.

    Returns:
      The result of each run.
    """
    trainers = {
        name: Trainer(problem, name, schedule)
        for name in dict.fromkeys(run.optimizer for run in runs)
    }
    csv = CsvStream(out / "metrics.csv")
    results = {}
    total = len(runs) * schedule.epochs
    with tqdm(total=total, unit="epoch", dynamic_ncols=True) as bar:
        for number, run in enumerate(runs):
            start = number * schedule.epochs
            title = f"{run.training_type}, learning rate {run.learning_rate:g}"
            bar.set_description(title)
            bar.update(start - bar.n)
            cost = {
                unit: costs.until(schedule.epochs, run.length)
                for unit, costs in units.items()
            }

            def report(
                history: History,
                first: int,
                run: Run = run,
                start: int = start,
                cost: Mapping[str, np.ndarray] = cost,
            ) -> None:
                for row in history.rows(run, problem.oracle.tasks, cost, first):
                    csv.append(row)
                losses = np.sum(history.validation_loss[-1], axis=-1)
                # fmin ignores NaN, the seeds that have stopped.
                lowest = np.fmin.reduce(losses)
                bar.set_postfix_str(f"validation loss {lowest:.4f}", refresh=False)
                bar.update(start + len(history.seconds) - bar.n)

            folder = out / "checkpoints" / run.folder
            results[run] = train(trainers[run.optimizer], run, schedule, folder, report)
        bar.update(total - bar.n)
    return results


def train(
    trainer: Trainer,
    run: Run,
    schedule: Schedule,
    folder: Path,
    report: Callable[[History, int], None],
) -> Result:
    """Trains one run, from its checkpoint if it has one.

    Args:
      trainer: of the run's optimizer and the schedule.
      run: the run.
      schedule: how long.
      folder: its checkpoints.
      report: called as `report(history, first)` when the epochs from number `first` on
        are new in the history.

    Returns:
      The result.
    """
    state, history, done = trainer.init(run.length), History(), 0
    with Checkpoints(folder) as checkpoints:
        saved = checkpoints.restore(state)
        if saved is not None:
            done, state, recorded = saved
            history = History(**recorded)
            report(history, 0)
        saved_at, saved_time = done, time.monotonic()
        features = None
        while done < schedule.epochs and trainer.is_running(state):
            moving = moving_at(done, run.length)
            # Encoded once a phase; a resumed phase encodes to the same bits.
            if moving != "task":
                features = None
            elif features is None:
                features = trainer.features(state)
            state, epoch, seconds = trainer.run_epoch(
                state, moving, done, run.learning_rate, features
            )
            history.append(epoch, moving, seconds)
            report(history, done)
            done += 1
            if time.monotonic() - saved_time >= CHECKPOINT_SECONDS:
                checkpoints.save(done, state, dataclasses.asdict(history))
                saved_at, saved_time = done, time.monotonic()
        if saved_at < done:
            checkpoints.save(done, state, dataclasses.asdict(history))
    scores = jax.tree.map(lambda leaf: leaf.tolist(), trainer.test_scores(state))
    return Result(history, state.epochs.tolist(), state.best_epoch.tolist(), scores)
