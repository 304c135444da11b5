"""The one training loop: restore, train, evaluate, save, record, test.

A training is some epochs of one compiled program. It trains one run, or several runs at
once under `vmap`: seeds, or learning rates and seeds. An experiment defines the start,
the epoch and the final records; `train` does the rest.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.lab.folder import Checkpoints, RunFolder
from experiments.lab.records import Stream, rows_of
from experiments.lab.tables import Frame

PyTree = Any
# Numbers by name, each `[runs]` or `[runs, parts]`, or one number for all runs.
Values = Mapping[str, Any]
Progress = Callable[[int, str], None]
History = list[tuple[int, dict[str, Any]]]  # epochs, and what was recorded

CHECKPOINT_SECONDS = 30.0  # a killed run loses at most this many, and one epoch


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Runs that train together.

    `epoch(state, number, progress)` trains epoch `number`, from 0, and evaluates. It
    returns the state and the records of this epoch, and calls `progress(steps, text)`
    now and then.
    """

    name: str  # of its files
    runs: Sequence[Mapping[str, Any]]  # columns of each run, such as method and seed
    start: Callable[[], PyTree]  # the state before the first epoch, in its own arrays
    epoch: Callable[[PyTree, int, Progress], tuple[PyTree, Values]]
    steps: int  # of an epoch
    # Records at the end, such as test scores at the best epoch.
    finish: Callable[[PyTree], Values] = lambda _: {}
    goes_on: Callable[[PyTree], bool] = lambda _: True  # whether there is more to train
    # Labels of the second axis, for names whose numbers are not by task.
    parts: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)


def train(
    trainings: Iterable[Training],
    epochs: int,
    tasks: Sequence[str],
    folder: RunFolder,
    *,
    stream: str = "metrics",
) -> Frame:
    """Runs the trainings that are not finished, and returns the table of all records.

    The columns of the table are the columns of the runs, then `epoch`, `name`, `part`,
    `value`. A part is a task, or empty. The numbers of `finish` have the last epoch.
    The table is written to a CSV file as it grows; the file has the name of the stream.
    """
    trainings = list(trainings)
    table = Stream(folder, stream)
    ends = np.cumsum([each.steps * epochs for each in trainings]).tolist()
    with tqdm(total=ends[-1], unit="step", dynamic_ncols=True) as bar:
        for training, end in zip(trainings, ends, strict=True):
            history = folder.read_record(training.name)
            checkpoints = folder.checkpoints(training.name)
            if history is None:
                history = _train(training, epochs, tasks, checkpoints, table, bar)
                folder.write_record(training.name, history)
            else:
                _append(table, training, tasks, history)
            # Delete checkpoints only after the record is written, because a kill in
            # between would lose everything. After a kill, the next run deletes them.
            checkpoints.remove()
            bar.update(end - bar.n)  # some were stopped early, or are done
    return table.close()


def _append(
    table: Stream, training: Training, tasks: Sequence[str], history: History
) -> None:
    for epoch, values in history:
        rows = rows_of(training.runs, training.parts, tasks, epoch, values)
        table.append(rows)


def _train(
    training: Training,
    epochs: int,
    tasks: Sequence[str],
    checkpoints: Checkpoints,
    table: Stream,
    bar: tqdm,
) -> History:
    """Trains from the newest checkpoint; returns epochs and what was recorded."""
    state, history, done = training.start(), [], 0
    saved = checkpoints.restore(state)
    if saved is not None:
        done, state, history = saved
        bar.update(done * training.steps)
        _append(table, training, tasks, history)

    def record(values: Values) -> None:
        values = jax.device_get(dict(values))
        plain = {name: np.asarray(each).tolist() for name, each in values.items()}
        history.append((done, plain))
        _append(table, training, tasks, history[-1:])

    def progress(steps: int, text: str = "") -> None:
        bar.set_postfix_str(text, refresh=False)
        bar.update(steps)

    started = time.monotonic()
    for number in range(done, epochs):
        if not training.goes_on(state):
            break
        bar.set_description(f"{training.name} {number + 1}/{epochs}", refresh=False)
        state, values = training.epoch(state, number, progress)
        done = number + 1
        record(values)
        if time.monotonic() > started + CHECKPOINT_SECONDS and done < epochs:
            checkpoints.save(done, state, history)
            started = time.monotonic()
    values = training.finish(state)
    if values:
        record(values)
    return history
