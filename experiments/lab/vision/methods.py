"""How the tasks of a vision experiment move: aggregators, turns, roaming, search."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mtlopt
from experiments.lab.program import Program
from experiments.lab.settings import methods_for
from experiments.lab.vision.losses import kind_of
from experiments.lab.vision.problem import ByTask, VisionProblem
from experiments.lab.vision.report import SINGLE, SUM

PyTree = Any

_SHARING_RATIO = 0.8


class State(NamedTuple):
    """All that changes while training; more: groups of tasks, or masks of roaming."""

    run: mtlopt.Run
    more: PyTree = ()


class Method:
    """All tasks move at once, by the optimizer that `make` returns for a learning rate.

    One that `searches` finds its step size itself, and ignores the rate.
    """

    def __init__(
        self,
        problem: VisionProblem,
        title: str,
        make: Callable[[Any], optax.GradientTransformation],
        searches: bool = False,
    ):
        self.problem, self.title, self.searches = problem, title, searches
        self._make = make

    @functools.cached_property
    def program(self) -> Program:
        """The step, compiled once for all runs; it donates the state."""
        return Program(self.step, donate_argnums=0)

    def start(self, seed: int) -> State:
        """Returns the state before the first step."""
        params, stats = self.problem.init(seed)
        return State(mtlopt.Run(params, self._optimizer(0.0).init(params), stats))

    def step(self, state: State, batch: PyTree, rate: Any, members: Any) -> Any:
        """Returns state, losses, and who had labels, after a step of the members.

        `members` is bool `[tasks]`; without a label, a loss is 0.
        """
        present = (jnp.sum(self.problem.labelled(batch), axis=1) > 0) & members
        run, output = self._move(self._optimizer(rate), state, batch, present)
        return state._replace(run=run), output.losses, present

    def predict(self, state: State, image: jax.Array) -> ByTask:
        """Returns the outputs of all tasks."""
        return self.problem.predict(state.run.params, state.run.state, image)

    def _optimizer(self, rate: Any) -> optax.GradientTransformationExtraArgs:
        tracked = mtlopt.track_distance(self.problem.labels)
        return optax.chain(self._make(rate), tracked)

    def _move(self, optimizer: Any, state: State, batch: Any, present: Any) -> Any:
        step = mtlopt.train_step(self.problem.oracle, optimizer)
        return step(state.run, batch, present=present)


class InTurns(Method):
    """IUS, or IO, of tasks or of groups; every turn moves the encoder's statistics."""

    def __init__(self, problem: VisionProblem, num_groups: int, individual: bool):
        self._num_groups = num_groups
        self._grouped = num_groups < len(problem.tasks)
        title = "IO" if individual else "IUS"
        title += f" ({num_groups} groups)" if self._grouped else ""

        def make(rate: Any) -> optax.GradientTransformation:
            return mtlopt.individual_optimizers(
                optax.adam(rate), num_groups, problem.labels, share_state=not individual
            )

        super().__init__(problem, title, make)

    def start(self, seed: int) -> State:
        state, num_tasks = super().start(seed), len(self.problem.tasks)
        if not self._grouped:
            return state
        return State(state.run, mtlopt.random_groups(seed, num_tasks, self._num_groups))

    def _move(self, optimizer: Any, state: State, batch: Any, present: Any) -> Any:
        number, groups = None, None
        if self._grouped:
            number, groups = self._num_groups, state.more
        step = mtlopt.individual_step(self.problem.oracle, optimizer, number)
        return step(state.run, batch, groups=groups, present=present)


class Roaming(InTurns):
    """Maximum Roaming, in turns with one state of the optimizer, as its paper has it.

    A channel is masked by its BatchNorm: if scale and bias are zero, ReLU gives zero.
    A shortcut would add what the mask took away: ResNets are refused. Statistics are
    those of each task's own channels, and so one for each task.
    """

    def __init__(self, problem: VisionProblem, num_steps: int):
        self._tasks = problem.tasks
        super().__init__(problem, len(self._tasks), individual=False)
        self.title = "Maximum Roaming"
        widths = norm_widths(problem.init(0)[0]["encoder"])
        self._roaming = mtlopt.maximum_roaming(
            len(self._tasks), widths, _SHARING_RATIO, num_steps
        )
        losses = {task: self._loss(task) for task in self._tasks}
        self._oracle = mtlopt.task_grad(losses, problem.labels, has_state=True)
        self.predict = jax.jit(self._predict)

    def _loss(self, task: str) -> Callable[..., Any]:
        def loss(params: PyTree, batch: PyTree, masks: PyTree, stats: PyTree) -> Any:
            params = self._masked(params, masks, task)
            value, own = self.problem.loss(task, params, stats[task], batch)
            return value, {**stats, task: own}

        return loss

    def start(self, seed: int) -> State:
        run, _ = super().start(seed)
        stats = {task: jax.tree.map(jnp.copy, run.state) for task in self._tasks}
        return State(run._replace(state=stats), self._roaming.init(seed))

    def step(self, state: State, batch: PyTree, rate: Any, members: Any) -> Any:
        after, *found = super().step(state, batch, rate, members)
        return after._replace(more=self._roaming.update(state.more)), *found

    def _move(self, optimizer: Any, state: State, batch: Any, present: Any) -> Any:
        step = mtlopt.individual_step(self._oracle, optimizer)
        return step(state.run, batch, state.more.masks, present=present)

    def _predict(self, state: State, image: jax.Array) -> ByTask:
        def one(task: str) -> jax.Array:
            params = self._masked(state.run.params, state.more.masks, task)
            return self.problem.predict(params, state.run.state[task], image)[task]

        return {task: one(task) for task in self._tasks}

    def _masked(self, params: PyTree, masks: PyTree, task: str) -> PyTree:
        """Parameters in which the encoder's channels of other tasks are zero."""
        own = mtlopt.task_masks(masks, self._tasks.index(task))

        def one(keys: Any, leaf: jax.Array) -> jax.Array:
            mask = own.get(_path(keys[:-1]))
            return leaf if mask is None else leaf * mask

        return {**params, "encoder": jax.tree.map_with_path(one, params["encoder"])}


def method_names(num_tasks: int, stacked: bool, roams: bool) -> tuple[str, ...]:
    """Returns the names that `--methods` knows; see `Experiment` for the arguments."""
    names = list(methods_for(num_tasks))
    for name in ("ius", "io"):
        groups = [num for num in (2, 4, 8, 20) if num < num_tasks]
        names += [name, *(f"{name}_{num}" for num in groups)]
    names += ["roaming"] * roams + ["sgd", "fbls"] + [SINGLE] * (not stacked)
    return tuple(names)


def make_methods(
    problem: VisionProblem, names: Iterable[str], num_steps: int, steps_per_epoch: int
) -> dict[str, Method]:
    """Returns methods by name; single tasks are members of the summed loss."""
    labels, num_tasks = problem.labels, len(problem.tasks)

    def aggregated(name: str, inner: Any = optax.adam, suffix: str = "") -> Method:
        method = mtlopt.METHODS[name]
        options: Any = {"labels": labels, "steps_per_epoch": steps_per_epoch}
        if name == "uncertainty":
            options["kind"] = tuple(map(kind_of, problem.learnt.losses.values()))

        def make(rate: Any) -> optax.GradientTransformation:
            aggregator = method.make(num_tasks, **options)
            return optax.chain(aggregator, mtlopt.per_label(inner(rate), labels))

        return Method(problem, method.title + suffix, make)

    def by_name(name: str) -> Method:
        family, _, num_groups = name.partition("_")
        if name in mtlopt.METHODS:
            return aggregated(name)
        if family in ("ius", "io"):
            return InTurns(problem, int(num_groups or num_tasks), family == "io")
        if name == "roaming":
            return Roaming(problem, num_steps)
        if name == "sgd":
            return aggregated(SUM, optax.sgd, ", SGD")
        search = mtlopt.fast_backtracking(mtlopt.mgda(num_tasks))
        return Method(problem, "FBLS", lambda _: search, searches=True)

    methods: dict[str, Method] = {}
    for name in names:
        own = SUM if name == SINGLE else name
        methods[name] = methods[own] if own in methods else by_name(own)
    return methods


def norm_widths(tree: PyTree) -> dict[str, int]:
    """Returns the channels of each BatchNorm below, by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        _path(keys[:-1]): len(leaf) for keys, leaf in leaves if keys[-1].key == "scale"
    }


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
