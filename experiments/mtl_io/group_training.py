"""Training in turns: all learning rates and seeds at once, streamed, resumable."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import mtlopt
from experiments.lab.checkpoints import Checkpoints
from experiments.lab.run_folder import CsvStream
from experiments.lab.training import epoch_order, init_params, make_evaluate, take
from experiments.mtl_io.group_problems import Part

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the tasks move.

    Attributes:
      groups: number of groups; one is the summed loss (SUS).
      individual: whether each group has an optimizer state of its own for the shared
        parameters (IO), or all have one (IUS).
    """

    groups: int
    individual: bool = True

    @property
    def family(self) -> str:
        """SUS, IUS or IO."""
        if self.groups == 1:
            return "SUS"
        return "IO" if self.individual else "IUS"

    @property
    def title(self) -> str:
        """The paper's name."""
        suffix = "" if self.groups == 1 else f" ({self.groups} groups)"
        return self.family + suffix

    @property
    def slug(self) -> str:
        """A name for files."""
        return f"{self.family.lower()}_{self.groups}"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long everything is trained.

    Attributes:
      epochs: passes over the training split.
      seeds: number of seeds, from 0.
      batch_size: examples per batch; every group moves once a batch.
      learning_rates: of Adam, constant. A run is one rate and one seed; runs are
        numbered by rate and then by seed, and train in one vmapped program.
    """

    epochs: int
    seeds: int
    batch_size: int
    learning_rates: tuple[float, ...]


class State(NamedTuple):
    """All that changes while training. Every leaf has a leading axis of runs.

    Attributes:
      params: parameters.
      opt_state: state of the optimizers, and of the distance.
    """

    params: PyTree
    opt_state: PyTree


@dataclasses.dataclass
class History:
    """What was recorded of one setting, as plain numbers.

    Attributes:
      compile_seconds: compilation of the training loop.
      shared_bytes: the optimizer's state for the shared parameters, of one run.
      heads_bytes: the same for the heads.
      seconds: for each epoch, training of all runs; no compilation, no evaluation.
      train_loss: summed over the tasks, mean over the epoch, `[epochs][runs]`.
      validation: for each measure `[epochs][runs]`.
      test: the same; read only at the epoch that validation chooses.
      covered: distance covered in the shared parameters, `[epochs][runs]`.
      shortest: distance from the initial parameters, `[epochs][runs]`.
    """

    compile_seconds: float = 0.0
    shared_bytes: int = 0
    heads_bytes: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    train_loss: list[list[float]] = dataclasses.field(default_factory=list)
    validation: dict[str, list[list[float]]] = dataclasses.field(default_factory=dict)
    test: dict[str, list[list[float]]] = dataclasses.field(default_factory=dict)
    covered: list[list[float]] = dataclasses.field(default_factory=list)
    shortest: list[list[float]] = dataclasses.field(default_factory=list)

    def rows(self, setting: Setting, schedule: Schedule) -> Iterator[dict[str, Any]]:
        """Yields the rows of the CSV: one for each epoch and run."""
        columns = {"train_loss": self.train_loss}
        for split in ("validation", "test"):
            for name, values in getattr(self, split).items():
                columns[f"{split}_{name}"] = values
        columns |= {"covered": self.covered, "shortest": self.shortest}
        for epoch, seconds in enumerate(self.seconds):
            for run in range(len(self.train_loss[epoch])):
                rate, seed = divmod(run, schedule.seeds)
                yield {
                    "setting": setting.title,
                    "learning_rate": schedule.learning_rates[rate],
                    "seed": seed,
                    "epoch": epoch + 1,
                    **{name: values[epoch][run] for name, values in columns.items()},
                    "seconds_all_runs": seconds,
                }


Histories = dict[Setting, History]


def run_settings(
    name: str, part: Part, settings: Sequence[Setting], schedule: Schedule, out: Path
) -> Histories:
    """Trains with every setting, each from its checkpoint if it has one.

    Args:
      name: of the part, for its files.
      part: what is trained.
      settings: how the tasks move.
      schedule: how long, and with which learning rates and seeds.
      out: the claimed folder of the run, see `run_folder.claim`.

    Returns:
      What was recorded, by setting.
    """
    evaluate = make_evaluate(part.problem)  # compiled once, for all settings
    # All settings start from the same parameters.
    params = _tile(init_params(part.problem, schedule.seeds), schedule)
    csv = CsvStream(out / f"{name}_metrics.csv")
    steps = part.problem.num_train // schedule.batch_size
    total = schedule.epochs * steps * sum(setting.groups for setting in settings)
    histories = {}
    with tqdm(total=total, unit="turn", dynamic_ncols=True) as bar:
        for setting in settings:
            train = _Trainer(part, setting, schedule)
            state = train.init(params)
            history = train.measure_memory(state)
            with Checkpoints(out / "checkpoints" / name / setting.slug) as checkpoints:
                saved = checkpoints.restore(state)
                done = 0
                if saved is not None:
                    done, state, recorded = saved
                    history = History(**recorded)
                    for row in history.rows(setting, schedule):
                        csv.append(row)
                    bar.update(done * steps * setting.groups)
                for epoch in range(done, schedule.epochs):
                    text = f"{name}: {setting.title} {epoch + 1}/{schedule.epochs}"
                    bar.set_description(text)
                    state = train.run_epoch(state, history, epoch)
                    _evaluate(part, evaluate, state, history)
                    checkpoints.save(epoch + 1, state, dataclasses.asdict(history))
                    rows = list(history.rows(setting, schedule))
                    for row in rows[-len(history.train_loss[-1]) :]:
                        csv.append(row)
                    bar.update(steps * setting.groups)
            histories[setting] = history
    return histories


def make_optimizer(
    part: Part, setting: Setting, learning_rate: float | jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Returns IUS or IO with Adam, and behind it the distances."""
    return optax.chain(
        mtlopt.individual_optimizers(
            optax.adam(learning_rate),
            setting.groups,
            part.labels,
            share_state=not setting.individual,
        ),
        mtlopt.track_distance(part.labels),
    )


def make_groups(num_tasks: int, num_groups: int, seeds: int) -> jax.Array:
    """Deals the tasks into groups, anew for every seed: int32 `[seeds, tasks]`."""
    dealt = [mtlopt.random_groups(seed, num_tasks, num_groups) for seed in range(seeds)]
    return jnp.stack(dealt)


def make_train(part: Part, setting: Setting) -> jax.stages.Wrapped:
    """Returns the jitted training epoch of all runs.

    Args:
      part: what is trained.
      setting: how the tasks move.

    Returns:
      `train(state, rate, groups, order, data)` with a leading axis of runs on all but
      the data. It returns the new state and the summed loss, mean over the epoch,
      `[runs]`, and donates the state.
    """
    oracle = part.problem.oracle
    # Groups of one need no membership: only the head of the task runs.
    grouped = setting.groups < oracle.num_tasks

    def train(
        state: State, rate: jax.Array, groups: jax.Array, order: jax.Array, data: PyTree
    ) -> tuple[State, jax.Array]:
        step = mtlopt.individual_step(
            oracle,
            make_optimizer(part, setting, rate),
            setting.groups if grouped else None,
        )

        def one(state: State, rows: jax.Array) -> tuple[State, jax.Array]:
            run, output = step(
                mtlopt.Run(*state), take(data, rows), groups=groups if grouped else None
            )
            return State(run.params, run.opt_state), jnp.sum(output.losses)

        state, losses = jax.lax.scan(one, state, order)
        return state, jnp.mean(losses)

    every_run = jax.vmap(train, in_axes=(0, 0, 0, 0, None))
    return jax.jit(every_run, donate_argnums=0)


class _Trainer:
    """Runs the epochs of one setting."""

    def __init__(self, part: Part, setting: Setting, schedule: Schedule):
        self._problem = part.problem
        self._schedule = schedule
        self._optimizer = make_optimizer(part, setting, 0.0)  # for `init` only
        self._train = make_train(part, setting)
        self._compiled: Callable[..., Any] | None = None
        groups = make_groups(
            part.problem.oracle.num_tasks, setting.groups, schedule.seeds
        )
        self._groups = _tile(groups, schedule)
        self._rates = jnp.repeat(
            jnp.array(schedule.learning_rates), schedule.seeds, axis=0
        )

    def init(self, params: PyTree) -> State:
        """Returns the state before the first epoch."""
        state = State(params, jax.jit(jax.vmap(self._optimizer.init))(params))
        # Training donates it: nothing else may hold the same buffers.
        return jax.tree.map(jnp.copy, state)

    def measure_memory(self, state: State) -> History:
        """Returns a history that knows the sizes of the optimizer's state arrays."""
        optimizers, _ = state.opt_state

        def size(tree: PyTree) -> int:
            return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) // self._num_runs

        return History(
            shared_bytes=size(optimizers.shared), heads_bytes=size(optimizers.heads)
        )

    @property
    def _num_runs(self) -> int:
        return self._rates.shape[0]

    def run_epoch(self, state: State, history: History, epoch: int) -> State:
        """Trains one epoch and records what it cost and how far it went."""
        schedule, data = self._schedule, self._problem.train
        order = epoch_order(
            self._problem.num_train, schedule.batch_size, schedule.seeds, epoch
        )
        args = (self._rates, self._groups, _tile(order, schedule), data)
        if self._compiled is None:
            started = time.perf_counter()
            self._compiled = self._train.lower(state, *args).compile()
            history.compile_seconds = time.perf_counter() - started
        started = time.perf_counter()
        state, loss = jax.block_until_ready(self._compiled(state, *args))
        history.seconds.append(time.perf_counter() - started)
        history.train_loss.append(loss.tolist())
        _, distance = state.opt_state
        history.covered.append(distance.covered.tolist())
        history.shortest.append(distance.shortest.tolist())
        return state


def _evaluate(
    part: Part,
    evaluate: Callable[..., Mapping[str, jax.Array]],
    state: State,
    history: History,
) -> None:
    """Records the measures on validation and test."""
    for split, recorded in (
        (part.problem.validation, history.validation),
        (part.problem.test, history.test),
    ):
        metrics = evaluate(state.params, split)
        means = {name: np.asarray(values) for name, values in metrics.items()}
        for name, values in part.measures(means).items():
            recorded.setdefault(name, []).append(values.tolist())


def _tile(tree: PyTree, schedule: Schedule) -> PyTree:
    """Repeats what belongs to the seeds for every learning rate: from seeds to runs."""
    times = len(schedule.learning_rates)
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf] * times), tree)
