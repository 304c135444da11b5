"""How the tasks of a vision experiment move: aggregators, turns, roaming, search."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mtlopt
from experiments.lab.program import Program
from experiments.lab.settings import methods_for
from experiments.lab.vision.problem import ByTask, VisionProblem

PyTree = Any

SUM, SINGLE = "sum_tasks", "single"
_SHARING_RATIO = 0.8


class State(NamedTuple):
    """All that changes while training; more: groups of tasks, or masks of roaming."""

    run: mtlopt.Run
    more: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A way to train.

    Attributes:
      title: for the tables.
      start: from a seed to the state before the first step.
      step: `step(state, batch, rate, members)`, of the tasks `members`, bool `[tasks]`;
        returns the new state and the losses. `rate` is the learning rate.
      predict: `predict(state, image)`, jitted: the outputs of all tasks.
      searches: whether it finds its step size itself, and ignores the rate.
    """

    title: str
    start: Callable[[int], State]
    step: Callable[[State, PyTree, jax.Array, jax.Array], tuple[State, jax.Array]]
    predict: Callable[[State, jax.Array], ByTask]
    searches: bool = False

    @functools.cached_property
    def program(self) -> Program:
        """The step, compiled once for all runs; it donates the state."""
        return Program(self.step, donate_argnums=0)


def method_names(num_tasks: int, *, stacked: bool = False) -> tuple[str, ...]:
    """Returns the names that `--methods` knows."""
    names = list(methods_for(num_tasks))
    for name in ("ius", "io"):
        groups = [num for num in (2, 4, 8, 20) if num < num_tasks]
        names += [name, *(f"{name}_{num}" for num in groups)]
    names += ["sgd", "fbls"] if stacked else ["roaming", "sgd", "fbls", SINGLE]
    return tuple(names)


def make_methods(
    problem: VisionProblem, names: Iterable[str], num_steps: int, steps_per_epoch: int
) -> dict[str, Method]:
    """Returns methods by name; single tasks are members of the summed loss."""
    labels, num_tasks = problem.labels, len(problem.tasks)

    def aggregated(name: str) -> Method:
        kinds = tuple(map(problem.learnt.kind, problem.tasks))
        options = {"kind": kinds} if name == "uncertainty" else {}
        make = functools.partial(
            mtlopt.METHODS[name].make,
            num_tasks,
            labels=labels,
            steps_per_epoch=steps_per_epoch,
            **options,
        )
        return _method(
            problem,
            mtlopt.METHODS[name].title,
            lambda rate: optax.chain(
                make(), mtlopt.per_label(optax.adam(rate), labels)
            ),
        )

    def by_name(name: str) -> Method:
        family, _, num_groups = name.partition("_")
        if name in mtlopt.METHODS:
            return aggregated(name)
        if family in ("ius", "io"):
            return _in_turns(problem, int(num_groups or num_tasks), family == "io")
        if name == "roaming":
            return _roaming(problem, num_steps)
        if name == "sgd":
            sums, title = mtlopt.sum_tasks(num_tasks), "Summed loss, SGD"
            return _method(
                problem, title, lambda rate: optax.chain(sums, optax.sgd(rate))
            )
        search = mtlopt.fast_backtracking(mtlopt.mgda(num_tasks))
        return _method(problem, "FBLS", lambda _: search, searches=True)

    methods: dict[str, Method] = {}
    for name in names:
        own = SUM if name == SINGLE else name
        methods[name] = methods[own] if own in methods else by_name(own)
    return methods


def _method(
    problem: VisionProblem,
    title: str,
    make: Callable[[Any], optax.GradientTransformation],
    *,
    one_step: Callable[..., Any] | None = None,
    stats_of: Callable[[PyTree], PyTree] = lambda stats: stats,
    more: Callable[[int], PyTree] = lambda _: (),
    update: Callable[[PyTree], PyTree] = lambda more: more,
    predict: Callable[[State, jax.Array], ByTask] | None = None,
    searches: bool = False,
) -> Method:
    """Makes a method of `make(rate)` and `one_step(optimizer, state, batch, present)`.

    `more(seed)` is what a state has more, `update` its new value, `stats_of` the
    first statistics.
    """

    def chained(optimizer: Any, state: State, batch: Any, present: Any) -> Any:
        step = mtlopt.train_step(problem.oracle, optimizer)
        return step(state.run, batch, present=present)

    def optimizer(rate: Any) -> optax.GradientTransformationExtraArgs:
        return optax.chain(make(rate), mtlopt.track_distance(problem.labels))

    def start(seed: int) -> State:
        params, stats = problem.init(seed)
        run = mtlopt.Run(params, optimizer(0.0).init(params), stats_of(stats))
        return State(run, more(seed))

    def step(state: State, batch: PyTree, rate: Any, members: Any) -> Any:
        present = problem.present(batch) & members
        step = one_step or chained
        run, output = step(optimizer(rate), state, batch, present)
        return State(run, update(state.more)), output.losses

    def seen(state: State, image: jax.Array) -> ByTask:
        return problem.predict(state.run.params, state.run.state, image)

    return Method(title, start, step, predict or seen, searches)


def _turns(problem: VisionProblem, num_groups: int, individual: bool) -> Any:
    """Returns the optimizers of turns, for a learning rate."""
    return lambda rate: mtlopt.individual_optimizers(
        optax.adam(rate), num_groups, problem.labels, share_state=not individual
    )


def _in_turns(problem: VisionProblem, num_groups: int, individual: bool) -> Method:
    """IUS, or IO, of tasks or of groups; every turn moves the encoder's statistics."""
    num_tasks = len(problem.tasks)
    grouped = num_groups < num_tasks

    def one_step(optimizer: Any, state: State, batch: Any, present: Any) -> Any:
        number, groups = (num_groups, state.more) if grouped else (None, None)
        step = mtlopt.individual_step(problem.oracle, optimizer, number)
        return step(state.run, batch, groups=groups, present=present)

    def more(seed: int) -> PyTree:
        return mtlopt.random_groups(seed, num_tasks, num_groups) if grouped else ()

    title = "IO" if individual else "IUS"
    title += f" ({num_groups} groups)" if grouped else ""
    make = _turns(problem, num_groups, individual)
    return _method(problem, title, make, one_step=one_step, more=more)


def _roaming(problem: VisionProblem, num_steps: int) -> Method:
    """Maximum Roaming, in turns with one state of the optimizer, as its paper has it.

    A channel is masked by its BatchNorm: if scale and bias are zero, ReLU gives zero.
    Statistics are those of each task's own channels, and so one for each task.
    """
    tasks, (params, _) = problem.tasks, problem.init(0)
    widths = norm_widths(params["encoder"])
    roaming = mtlopt.maximum_roaming(len(tasks), widths, _SHARING_RATIO, num_steps)

    def loss(index: int, task: str) -> Callable[..., Any]:
        def one(params: PyTree, batch: PyTree, masks: PyTree, stats: PyTree) -> Any:
            params = _masked(params, masks, index)
            value, own = problem.loss(task, params, stats[task], batch)
            return value, {**stats, task: own}

        return one

    losses = {task: loss(index, task) for index, task in enumerate(tasks)}
    oracle = mtlopt.task_grad(losses, problem.labels, has_state=True)

    def one_step(optimizer: Any, state: State, batch: Any, present: Any) -> Any:
        step = mtlopt.individual_step(oracle, optimizer)
        return step(state.run, batch, state.more.masks, present=present)

    def predict(state: State, image: jax.Array) -> ByTask:
        params, _, stats = state.run
        masked = [_masked(params, state.more.masks, i) for i in range(len(tasks))]
        return {
            task: problem.predict(own, stats[task], image)[task]
            for task, own in zip(tasks, masked, strict=True)
        }

    return _method(
        problem,
        "Maximum Roaming",
        _turns(problem, len(tasks), False),
        one_step=one_step,
        stats_of=lambda stats: {task: jax.tree.map(jnp.copy, stats) for task in tasks},
        more=roaming.init,
        update=roaming.update,
        predict=jax.jit(predict),
    )


def norm_widths(tree: PyTree) -> dict[str, int]:
    """Returns the channels of each BatchNorm below, by its path.

    Examples:
      >>> norm = {"scale": jnp.ones(3), "bias": jnp.ones(3)}
      >>> norm_widths({"conv": {"kernel": jnp.ones(5), "norm": norm}})
      {'conv/norm': 3}
    """
    leaves = jax.tree.leaves_with_path(tree)
    return {
        _path(keys[:-1]): len(leaf) for keys, leaf in leaves if keys[-1].key == "scale"
    }


def _masked(params: PyTree, masks: PyTree, task: int) -> PyTree:
    """Parameters in which the encoder's channels of other tasks are zero."""
    own = mtlopt.task_masks(masks, task)

    def one(keys: Any, leaf: jax.Array) -> jax.Array:
        mask = own.get(_path(keys[:-1]))
        return leaf if mask is None else leaf * mask

    return {**params, "encoder": jax.tree.map_with_path(one, params["encoder"])}


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
