"""The one training loop: restore, train, evaluate, save, record, test.

A training is some epochs of one compiled program, for one run or for several runs at
once: seeds, or learning rates and seeds, under `vmap`. An experiment says how it
starts, how an epoch goes and what is told at the end; `train` does the rest.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from tqdm import tqdm

from experiments.lab.folder import RunFolder
from experiments.lab.records import Stream, rows_of

PyTree = Any
# Numbers by name, each `[runs]` or `[runs, parts]`, or one for all runs.
Values = Mapping[str, Any]
Progress = Callable[[int, str], None]

CHECKPOINT_SECONDS = 30.0  # a killed run loses no more, and one epoch


def _always(state: PyTree) -> bool:
    del state
    return True


def _nothing(state: PyTree) -> Values:
    del state
    return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Runs that train together.

    Attributes:
      name: of its files.
      runs: for each run the columns that tell it apart, such as its method and seed.
      start: returns the state before the first epoch, in arrays of its own.
      epoch: `epoch(state, number, progress)` trains epoch `number`, from 0, evaluates,
        and returns the state and what to record of this epoch. It calls
        `progress(steps, text)` now and then.
      steps: number of steps of an epoch.
      finish: from the last state to what to record at the end, such as test scores at
        the best epoch.
      goes_on: whether, from the state, there is anything left to train.
      parts: for names whose numbers are not by task, the labels of their second axis.
    """

    name: str
    runs: Sequence[Mapping[str, Any]]
    start: Callable[[], PyTree]
    epoch: Callable[[PyTree, int, Progress], tuple[PyTree, Values]]
    steps: int
    finish: Callable[[PyTree], Values] = _nothing
    goes_on: Callable[[PyTree], bool] = _always
    parts: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)


def train(
    trainings: Iterable[Training],
    epochs: int,
    tasks: Sequence[str],
    folder: RunFolder,
    *,
    stream: str = "metrics",
) -> pd.DataFrame:
    """Trains what is not trained yet, and returns the table of all records.

    Args:
      trainings: one after the other.
      epochs: passes over the training split, at most.
      tasks: names, of the second axis of what is recorded.
      folder: for checkpoints, records, and the table as it grows.
      stream: name of the CSV file of that table.

    Returns:
      The long table: the columns of the runs, then `epoch`, `name`, `part`, `value`. A
      part is a task, or empty. What `finish` returns is of the last epoch.
    """
    trainings = list(trainings)
    table = Stream(folder, stream)
    total = sum(each.steps * epochs for each in trainings)
    with tqdm(total=total, unit="step", dynamic_ncols=True) as bar:
        for number, training in enumerate(trainings):
            before = sum(each.steps * epochs for each in trainings[:number])
            bar.update(before - bar.n)
            append = _appender(training, tasks, table)
            record = folder.record(training.name)
            history = record.read()
            if history is None:
                record.write(_train(training, epochs, folder, append, bar))
            else:
                for epoch, values in history:
                    append(epoch, values)
        bar.update(total - bar.n)
    return table.close()


def _appender(
    training: Training, tasks: Sequence[str], table: Stream
) -> Callable[[int, Values], None]:
    def append(epoch: int, values: Values) -> None:
        rows = rows_of(training.runs, training.parts, tasks, epoch, values)
        table.append(rows)

    return append


def _train(
    training: Training,
    epochs: int,
    folder: RunFolder,
    append: Callable[[int, Values], None],
    bar: tqdm,
) -> list[Any]:
    """Trains from the newest checkpoint; returns epochs and what was recorded."""
    checkpoints = folder.checkpoints(training.name)
    state, history, done = training.start(), [], 0
    saved = checkpoints.restore(state)
    if saved is not None:
        done, state, history = saved
        bar.update(done * training.steps)
        for epoch, values in history:
            append(epoch, values)
    started = time.monotonic()
    for number in range(done, epochs):
        if not training.goes_on(state):
            break
        bar.set_description(f"{training.name} {number + 1}/{epochs}", refresh=False)

        def progress(steps: int, text: str = "") -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(steps)

        state, values = training.epoch(state, number, progress)
        done = number + 1
        history.append((done, _plain(values)))
        append(*history[-1])
        if time.monotonic() > started + CHECKPOINT_SECONDS and done < epochs:
            checkpoints.save(done, state, history)
            started = time.monotonic()
    values = _plain(training.finish(state))
    if values:
        history.append((done, values))
        append(done, values)
    checkpoints.remove()
    return history


def _plain(values: Values) -> dict[str, Any]:
    """Returns plain numbers, which JSON can hold."""
    on_host = jax.device_get(dict(values))
    return {name: np.asarray(each).tolist() for name, each in on_host.items()}
