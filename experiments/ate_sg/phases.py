"""Training in phases: both blocks of parameters at once, or one after the other.

An epoch is one compiled program, for all seeds together. Between epochs, each seed for
itself, the learning rate falls on plateaus of the validation loss, and training ends
when that has not fallen for long.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mtlopt
from experiments.lab.training import epoch_order, take

PyTree = Any
Moving = Literal["full", "shared", "task"]
OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}

# Of the learning rate on a plateau, and the least fall of the loss that ends one
# (section 4 of the paper on ATE-SG).
_FACTOR, _MIN_DELTA = 0.75, 1e-4


class Model(NamedTuple):
    """A network's variables.

    Attributes:
      params: what optimizers move.
      stats: running statistics of BatchNorm, empty without.
    """

    params: PyTree
    stats: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is trained. A split or a batch is a pytree with a leading axis of examples.

    Attributes:
      oracle: gradients in training mode, called as `oracle(params, batch, stats)`.
      init: from a PRNG key to the initial model.
      encode: `encode(model, batch)` returns the latent in evaluation mode.
      losses: `losses(model, z, batch)` returns each example's losses `[tasks, batch]`.
      scores: `scores(model, z, split)` returns for each metric `[tasks]`.
      train: the split to learn from.
      validation: the split that sets the learning rate and ends the training.
      test: the split that is looked at once, at the end.
    """

    oracle: mtlopt.Oracle
    init: Callable[[jax.Array], Model]
    encode: Callable[[Model, PyTree], PyTree]
    losses: Callable[[Model, PyTree, PyTree], jax.Array]
    scores: Callable[[Model, PyTree, PyTree], dict[str, jax.Array]]
    train: PyTree
    validation: PyTree
    test: PyTree

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return _num_examples(self.train)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long everything is trained.

    Attributes:
      epochs: passes over the training split, at most.
      seeds: number of seeds, from 0, all in one vmapped program.
      batch_size: examples per step; what does not fill a batch is left out of an epoch.
      stop_patience: epochs without a lower validation loss after which a seed stops.
      plateau_patience: those after which its learning rate falls.
    """

    epochs: int
    seeds: int
    batch_size: int
    stop_patience: int
    plateau_patience: int


class State(NamedTuple):
    """All that changes while training. Every leaf has a leading axis of seeds.

    Attributes:
      model: the network.
      opt_state: state of the optimizer.
      plateau: state of `optax.contrib.reduce_on_plateau`.
      best_model: the network after the best epoch so far.
      best_loss: its validation loss, summed over the tasks.
      best_epoch: that epoch, from 1; 0 for none.
      epochs: number of epochs trained.
    """

    model: Model
    opt_state: PyTree
    plateau: Any
    best_model: Model
    best_loss: jax.Array
    best_epoch: jax.Array
    epochs: jax.Array


class Epoch(NamedTuple):
    """What is recorded of an epoch, for all seeds.

    Attributes:
      train_loss: mean over the batches, as the parameters moved, `[seeds, tasks]`.
      validation_loss: after the epoch, in evaluation mode, `[seeds, tasks]`.
      learning_rate: of the epoch, `[seeds]`.
      running: whether the seed still learned, `[seeds]`.
    """

    train_loss: jax.Array
    validation_loss: jax.Array
    learning_rate: jax.Array
    running: jax.Array


class Features(NamedTuple):
    """Latents of the splits that a task phase reads, for all seeds."""

    train: PyTree
    validation: PyTree


def moving_at(epoch: int, length: int | None) -> Moving:
    """Returns what moves in an epoch.

    Args:
      epoch: number of epochs so far.
      length: of both phases in epochs, `E_0 = E_ts`; None for no alternation.

    Examples:
      >>> [moving_at(epoch, 2) for epoch in range(5)]
      ['shared', 'shared', 'task', 'task', 'shared']
      >>> moving_at(7, None)
      'full'
    """
    return "full" if length is None else mtlopt.block_at(epoch, length, length)


def make_optimizer(name: str) -> optax.GradientTransformation:
    """Returns an optimizer whose learning rate is in its state."""
    return optax.inject_hyperparams(OPTIMIZERS[name])(learning_rate=1.0)


def make_steps(
    problem: Problem, optimizer: str
) -> tuple[dict[Moving, optax.GradientTransformation], dict[Moving, Callable]]:
    """Returns for each phase its optimizer and its training step.

    Args:
      problem: what is trained.
      optimizer: a name in `OPTIMIZERS`; each block gets one of its own.

    Returns:
      Optimizers and steps. A step is `step(run, z, batch) -> (run, output)`, as those
      of mtlopt; `z` is read in the phase "task" only.
    """
    oracle = problem.oracle
    whole = make_optimizer(optimizer)
    # Phases are chosen outside: the lengths in steps are never read.
    parts = mtlopt.alternate_blocks(
        make_optimizer(optimizer), make_optimizer(optimizer), oracle.labels
    )
    shared_step = mtlopt.block_step(oracle, parts, "shared")

    def full(
        run: mtlopt.Run, z: None, batch: PyTree
    ) -> tuple[mtlopt.Run, mtlopt.StepOutput]:
        del z
        grads = oracle(run.params, batch, run.state)
        updates, opt_state = whole.update(grads.total(), run.opt_state, run.params)
        params = optax.apply_updates(run.params, updates)
        run = mtlopt.Run(params, opt_state, grads.state)
        return run, mtlopt.StepOutput(grads.losses, None)

    def shared(
        run: mtlopt.Run, z: None, batch: PyTree
    ) -> tuple[mtlopt.Run, mtlopt.StepOutput]:
        del z
        return shared_step(run, batch)

    def task(
        run: mtlopt.Run, z: PyTree, batch: PyTree
    ) -> tuple[mtlopt.Run, mtlopt.StepOutput]:
        grad = oracle.heads(run.params, z, batch, run.state)
        updates, opt_state = parts.update(
            grad.grad, run.opt_state, run.params, block="task"
        )
        params = optax.apply_updates(run.params, updates)
        run = mtlopt.Run(params, opt_state, grad.state)
        return run, mtlopt.StepOutput(grad.losses, None)

    optimizers: dict[Moving, Any] = {"full": whole, "shared": parts, "task": parts}
    return optimizers, {"full": full, "shared": shared, "task": task}


class Trainer:
    """The compiled epochs of one optimizer, for any learning rate and phase length.

    Args:
      problem: what is trained.
      optimizer: a name in `OPTIMIZERS`.
      schedule: how long.
    """

    def __init__(self, problem: Problem, optimizer: str, schedule: Schedule):
        self._problem = problem
        self._schedule = schedule
        self._optimizers, self._steps = make_steps(problem, optimizer)
        self._compiled: dict[Moving, Any] = {}
        self._init = jax.jit(jax.vmap(problem.init))
        self._order = jax.jit(
            functools.partial(
                epoch_order, problem.num_train, schedule.batch_size, schedule.seeds
            )
        )
        self._encode = jax.jit(
            jax.vmap(
                functools.partial(encode_split, problem, size=schedule.batch_size),
                in_axes=(0, None),
            )
        )
        self._scores = jax.jit(jax.vmap(problem.scores, in_axes=(0, 0, None)))
        self.compile_seconds = 0.0

    def init(self, length: int | None) -> State:
        """Returns the state before the first epoch, for phases of that length."""
        num = self._schedule.seeds
        model = self._init(jax.vmap(jax.random.key)(jnp.arange(num)))
        params = model.params
        return State(
            model=model,
            opt_state=jax.vmap(self._optimizers[moving_at(0, length)].init)(params),
            plateau=jax.vmap(_plateau(self._schedule).init)(params),
            # The epoch donates its state: no two leaves may be the same buffer.
            best_model=jax.tree.map(jnp.copy, model),
            best_loss=jnp.full(num, jnp.inf),
            best_epoch=jnp.zeros(num, jnp.int32),
            epochs=jnp.zeros(num, jnp.int32),
        )

    def is_running(self, state: State) -> bool:
        """Returns whether a seed still learns."""
        return bool(jnp.any(_running(self._schedule, state)))

    def features(self, state: State) -> Features:
        """Encodes the splits, for a phase in which the shared parameters stand still.

        In evaluation mode: statistics that stand still, as in Keras's layers that are
        not trainable, make the latent of an example a constant of the phase.
        """
        problem = self._problem
        train, validation = (
            self._encode(state.model, split)
            for split in (problem.train, problem.validation)
        )
        return Features(train, validation)

    def run_epoch(
        self,
        state: State,
        moving: Moving,
        epoch: int,
        learning_rate: float,
        features: Features | None = None,
    ) -> tuple[State, Epoch, float]:
        """Trains one epoch. The state is donated.

        Args:
          state: before the epoch.
          moving: what moves.
          epoch: number of epochs so far; it decides the order of the examples.
          learning_rate: without plateaus.
          features: for the phase "task".

        Returns:
          The state after it, what is recorded, and the seconds that it took.
        """
        order = self._order(epoch)
        args = (state, order, learning_rate, features)
        args = (*args, self._problem.train, self._problem.validation)
        if moving not in self._compiled:
            started = time.perf_counter()
            one_seed = functools.partial(self._one_seed, moving)
            run = jax.vmap(one_seed, in_axes=(0, 0, None, 0, None, None))
            run = jax.jit(run, donate_argnums=0)
            self._compiled[moving] = run.lower(*args).compile()
            self.compile_seconds += time.perf_counter() - started
        started = time.perf_counter()
        state, record = jax.block_until_ready(self._compiled[moving](*args))
        return state, record, time.perf_counter() - started

    def test_scores(self, state: State) -> dict[str, jax.Array]:
        """Returns the best models' scores on the test split, each `[seeds, tasks]`."""
        z = self._encode(state.best_model, self._problem.test)
        return self._scores(state.best_model, z, self._problem.test)

    def _one_seed(
        self,
        moving: Moving,
        state: State,
        order: jax.Array,
        learning_rate: jax.Array,
        features: Features | None,
        train: PyTree,
        validation: PyTree,
    ) -> tuple[State, Epoch]:
        problem, schedule = self._problem, self._schedule
        learning_rate = learning_rate * state.plateau.scale
        step = self._steps[moving]

        def body(run: mtlopt.Run, rows: jax.Array) -> Any:
            z = None if features is None else take(features.train, rows)
            run, output = step(run, z, take(train, rows))
            return run, output.losses

        params, stats = state.model
        opt_state = optax.tree.set(state.opt_state, learning_rate=learning_rate)
        run, losses = jax.lax.scan(body, mtlopt.Run(params, opt_state, stats), order)
        model = Model(run.params, run.state)
        if features is None:
            z = encode_split(problem, model, validation, size=schedule.batch_size)
        else:
            z = features.validation
        validation_loss = jnp.mean(problem.losses(model, z, validation), axis=1)

        total = jnp.sum(validation_loss)
        _, plateau = _plateau(schedule).update((), state.plateau, value=total)
        better = total < state.best_loss
        epochs = state.epochs + 1
        moved = State(
            model=model,
            opt_state=run.opt_state,
            plateau=plateau,
            best_model=_choose(better, model, state.best_model),
            best_loss=jnp.where(better, total, state.best_loss),
            best_epoch=jnp.where(better, epochs, state.best_epoch),
            epochs=epochs,
        )
        running = _running(schedule, state)
        record = Epoch(
            jnp.mean(losses, axis=0), validation_loss, learning_rate, running
        )
        return _choose(running, moved, state), record


def encode_split(problem: Problem, model: Model, split: PyTree, *, size: int) -> PyTree:
    """Encodes a split, `size` examples at a time: that bounds the memory."""
    num = _num_examples(split)
    size = min(size, num)
    # The last batch is filled up from the front, and cut off again below.
    order = jnp.arange(-(-num // size) * size) % num
    z = jax.lax.map(
        lambda rows: problem.encode(model, take(split, rows)), order.reshape(-1, size)
    )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num], z)


def _plateau(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    return optax.contrib.reduce_on_plateau(
        factor=_FACTOR, patience=schedule.plateau_patience, rtol=0.0, atol=_MIN_DELTA
    )


def _running(schedule: Schedule, state: State) -> jax.Array:
    return state.epochs - state.best_epoch < schedule.stop_patience


def _choose(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _num_examples(split: PyTree) -> int:
    return jax.tree.leaves(split)[0].shape[0]
