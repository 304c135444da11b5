"""Training in phases: both blocks of parameters at once, or one after the other.

An epoch is one compiled program for all seeds together. Each seed has its own learning
rate, which falls between epochs on plateaus of the validation loss. The training of a
seed ends if its validation loss has not fallen for a long time.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.ate_sg.classifiers import Classifier
from experiments.lab.batches import epoch_order, num_examples, take
from experiments.lab.best import choose
from experiments.lab.loop import Progress, Training, Values
from experiments.lab.pace import Pace, Patience
from experiments.lab.problem import Problem
from experiments.lab.program import Program, fastest
from experiments.lab.settings import Options

PyTree = Any
Moving = Literal["full", "shared", "task"]
Features = tuple[PyTree, PyTree]  # latents of the training and the validation split
OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
NAMES = {"optimizers": OPTIMIZERS}  # values of the options that are names
# The paper's settings for all three experiments. The paper prints "50,00" epochs.
PAPERS = {"epochs": 5_000, "seeds": 11, "learning_rates": (1e-2, 1e-3)}
COST_ROUNDS = 5

# The factor of the learning rate on a plateau, and the smallest fall of the loss that
# ends a plateau (section 4 of the paper on ATE-SG).
_FACTOR, _MIN_DELTA = 0.75, 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Settings that decide the numbers of a run; an experiment adds fields of its own.

    Attributes:
      epochs: largest number of passes over the training split.
      seeds: number of seeds, trained together; they differ in initial parameters and
        order.
      batch_size: examples in a batch; an epoch leaves out an incomplete batch.
      optimizers: some of sgd and adam, or all.
      learning_rates: initial learning rates; each rate has runs of its own.
      phases: lengths E0 = Ets of the phases in epochs; each length is compared with
        training without phases.
      stop_patience: epochs without a lower validation loss after which a seed stops.
      plateau_patience: epochs without a lower validation loss after which the learning
        rate of a seed falls to three quarters.
    """

    epochs: int
    seeds: int
    batch_size: int
    optimizers: tuple[str, ...] = ("sgd",)
    learning_rates: tuple[float, ...] = (1e-2, 1e-3)
    phases: tuple[int, ...] = (1, 10, 100)
    stop_patience: int = 350
    plateau_patience: int = 50

    @property
    def runs(self) -> list["Run"]:
        """The runs; runs to be compared are neighbours."""
        lengths = (*self.phases, 0)
        choices = itertools.product(self.optimizers, self.learning_rates, lengths)
        return list(dict.fromkeys(itertools.starmap(Run, choices)))


class Run(NamedTuple):
    """One training for all seeds; its fields are columns of the table of records."""

    optimizer: str
    rate: float  # of learning, to start from
    length: int  # of both phases in epochs, `E_0 = E_ts`; 0 for no alternation

    @property
    def title(self) -> str:
        """Training type, as in the paper's tables."""
        name = {"sgd": "SG", "adam": "Adam"}[self.optimizer]
        length = self.length
        return f"ATE-{name}, E0 = Ets = {length}" if length else f"Classic {name}"

    @property
    def name(self) -> str:
        """Name of the run's files, and of its line in the paper's table."""
        kind = f"ate_{self.length}" if self.length else "classic"
        # Not rounded: two runs must not share a file.
        return f"{self.optimizer}_{self.rate}_{kind}"


def moving_at(epoch: int, length: int) -> Moving:
    """Returns which parameters move in an epoch, counted from 0, see `Run`.

    Examples:
      >>> [moving_at(epoch, 2) for epoch in range(5)], moving_at(7, 0)
      (['shared', 'shared', 'task', 'task', 'shared'], 'full')
    """
    return mtlopt.block_at(epoch, length, length) if length else "full"


def make_steps(problem: Problem, optimizer: str) -> dict[Moving, tuple[Any, Callable]]:
    """Returns the optimizer of each phase, and `step(run, z, batch)`.

    Each block has an optimizer, with the learning rate in its state. The step returns
    the run and the losses; it reads `z` in the phase "task" only.
    """
    oracle = problem.oracle
    make = optax.inject_hyperparams(OPTIMIZERS[optimizer])
    # The caller chooses the phases, so the lengths in steps are never read.
    whole, trunk, heads = (make(learning_rate=1.0) for _ in range(3))
    parts = mtlopt.alternate_blocks(trunk, heads, oracle.labels)
    shared_step = mtlopt.block_step(oracle, parts, "shared")

    def move(transform: Any, run: mtlopt.Run, grad: Any, new: Any, **block: str) -> Any:
        updates, opt_state = transform.update(grad, run.opt_state, run.params, **block)
        params = optax.apply_updates(run.params, updates)
        return mtlopt.Run(params, opt_state, new.state), new.losses

    def full(run: mtlopt.Run, _: None, batch: PyTree) -> Any:
        grads = oracle(run.params, batch, run.state)
        return move(whole, run, grads.total(), grads)

    def shared(run: mtlopt.Run, _: None, batch: PyTree) -> Any:
        run, output = shared_step(run, batch)
        return run, output.losses

    def task(run: mtlopt.Run, z: PyTree, batch: PyTree) -> Any:
        grads = oracle.heads(run.params, z, batch, run.state)
        return move(parts, run, grads.grad, grads, block="task")

    return {"full": (whole, full), "shared": (parts, shared), "task": (parts, task)}


class State(NamedTuple):
    """Everything that training changes. Every leaf has a leading axis of seeds."""

    run: mtlopt.Run
    pace: Pace


class Phases:
    """The compiled epochs of one optimizer, for any learning rate and phase length."""

    def __init__(self, problem: Classifier, settings: Settings, optimizer: str):
        self._problem, self._settings = problem, settings
        patience = (settings.stop_patience, settings.plateau_patience)
        self._patience = Patience(*patience, _FACTOR, _MIN_DELTA)
        self._programs, self._inits = {}, {}
        self._features: Features | None = None  # of this phase
        for moving, (transform, step) in make_steps(problem, optimizer).items():
            self._inits[moving] = jax.jit(jax.vmap(transform.init))
            one_seed = functools.partial(self._one_seed, step)
            all_seeds = jax.vmap(one_seed, in_axes=(0, 0, None, 0, None))
            self._programs[moving] = Program(all_seeds, donate_argnums=0)
        self._num_train = num_examples(problem.splits["train"])
        sizes = (self._num_train, settings.batch_size, settings.seeds)
        self._order = jax.jit(functools.partial(epoch_order, *sizes))
        self._init = jax.jit(jax.vmap(problem.init))
        self._set_out = jax.jit(jax.vmap(self._patience.start))
        encode = functools.partial(problem.encode_split, size=settings.batch_size)
        self._encode = jax.jit(jax.vmap(encode, in_axes=(0, None)))
        self._predict = jax.jit(jax.vmap(problem.predict))

    def training(self, run: Run) -> Training:
        """Returns the training for all seeds of a run with this optimizer."""
        steps = self._num_train // self._settings.batch_size

        def epoch(state: State, number: int, progress: Progress) -> Any:
            moving = moving_at(number, run.length)
            # Examples are encoded once in a phase; a resumed phase gets the same bits.
            if moving != "task":
                self._features = None
            elif self._features is None:
                self._features = self.features(state)
            state, values = self.epoch(state, moving, number, run.rate, self._features)
            losses = np.sum(values["validation_loss"], axis=-1)
            # fmin ignores NaN, the seeds that have stopped.
            progress(steps, f"validation loss {np.fmin.reduce(losses):.4f}")
            return state, values

        def goes_on(state: State) -> bool:
            return bool(self._patience.goes_on(state.pace).any())

        seeds = range(self._settings.seeds)
        runs = [{**run._asdict(), "seed": seed} for seed in seeds]
        start = functools.partial(self.start, moving_at(0, run.length))
        return Training(run.name, runs, start, epoch, steps, self.finish, goes_on)

    def start(self, moving: Moving) -> State:
        """Returns the state before the first epoch; in it the block `moving` moves."""
        self._features = None
        params, stats = self._init(jnp.arange(self._settings.seeds))
        opt_state = self._inits[moving](params)
        pace = self._set_out((params, stats))
        return State(mtlopt.Run(params, opt_state, stats), pace)

    def features(self, state: State) -> Features:
        """Encodes the splits for a "task" phase, in which the encoder does not change.

        The encoder is in evaluation mode, so its statistics do not change either, as in
        Keras's layers that are not trainable. So the latent of an example is constant
        during the phase.
        """
        model, splits = (state.run.params, state.run.state), self._problem.splits
        train, validation = splits["train"], splits["validation"]
        return self._encode(model, train), self._encode(model, validation)

    def epoch(
        self,
        state: State,
        moving: Moving,
        number: int,
        learning_rate: float,
        features: Features | None = None,
    ) -> tuple[State, Values]:
        """Trains epoch `number`, from 0, which decides the order of the examples.

        Returns the state after the epoch, and the losses and learning rates of the
        seeds, with NaN for seeds that have stopped. The state before the epoch is
        donated.
        """
        order, splits = self._order(number), self._problem.splits
        return self._programs[moving](state, order, learning_rate, features, splits)

    def finish(self, state: State) -> Values:
        """Returns how long each seed trained, and the best models' test scores."""
        best, test = state.pace.best, self._problem.splits["test"]
        classes = self._predict(best.model, self._encode(best.model, test))
        ends = {"epochs": state.pace.epochs, "best_epoch": best.epoch}
        return {**ends, **self._problem.scores(classes, test)}

    def seconds(self) -> dict[str, float]:
        """Measures an epoch of each phase, with its evaluation, in turns."""
        rate = min(self._settings.learning_rates)
        states = {moving: self.start(moving) for moving in self._programs}
        features = self.features(states["task"])

        def call(moving: Moving) -> State:
            latents = features if moving == "task" else None
            states[moving], _ = self.epoch(states[moving], moving, 0, rate, latents)
            return states[moving]

        calls = {str(moving): functools.partial(call, moving) for moving in states}
        return fastest(calls, COST_ROUNDS)

    def _one_seed(
        self,
        step: Callable[..., Any],
        state: State,
        order: jax.Array,
        learning_rate: jax.Array,
        features: Features | None,
        splits: Mapping[str, PyTree],
    ) -> tuple[State, dict[str, jax.Array]]:
        problem, pace = self._problem, state.pace
        train, validation = splits["train"], splits["validation"]
        learning_rate = learning_rate * pace.plateau.scale

        def body(run: mtlopt.Run, rows: jax.Array) -> Any:
            z = take(features[0], rows) if features else None
            return step(run, z, take(train, rows))

        opt_state = optax.tree.set(state.run.opt_state, learning_rate=learning_rate)
        start = state.run._replace(opt_state=opt_state)
        run, losses = jax.lax.scan(body, start, order)
        model = (run.params, run.state)
        size = self._settings.batch_size
        z = features[1] if features else problem.encode_split(model, validation, size)
        validation_loss = jnp.mean(problem.losses(model, z, validation), axis=1)
        after = self._patience.after(pace, model, jnp.sum(validation_loss))
        learns = self._patience.goes_on(pace)
        names = ("train_loss", "validation_loss", "learning_rate")
        values = (jnp.mean(losses, axis=0), validation_loss, learning_rate)
        values = (jnp.where(learns, each, math.nan) for each in values)
        after = choose(learns, State(run, after), state)
        return after, dict(zip(names, values, strict=True))
