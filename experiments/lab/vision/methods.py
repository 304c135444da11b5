"""The methods of a vision experiment: aggregators, turns, roaming, line search."""

import copy
import functools
import math
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
    """Everything that training changes; `more` is groups of tasks or roaming masks."""

    run: mtlopt.Run
    more: PyTree = ()


class Method:
    """All tasks move at once, by the optimizer that `make` returns for a learning rate.

    An optimizer that `searches` finds its step size itself, and ignores the rate. The
    step is called `repeats` times on every batch.
    """

    repeats = 1

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
        """The step, which is compiled once for all runs and donates the state."""
        return Program(self.step, donate_argnums=0)

    def start(self, seed: int) -> State:
        """Returns the state before the first step."""
        params, stats = self.problem.init(seed)
        opt_state = jax.jit(self._optimizer(0.0).init)(params)
        return State(mtlopt.Run(params, opt_state, stats))

    def step(self, state: State, batch: PyTree, rate: Any, members: Any) -> Any:
        """Returns state, losses and which tasks had labels, after the members' step.

        `members` is bool `[tasks]`; the loss of a task without labels is 0.
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
    """IUS or IO with tasks or groups; every turn updates the encoder's statistics."""

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
    """Maximum Roaming, in turns with one state of the optimizer, as in its paper.

    A channel is masked in its BatchNorm: if scale and bias are zero, ReLU gives zero.
    ResNets are refused, because a shortcut would bypass the mask. Each task has its own
    statistics, computed with its own channels.
    """

    def __init__(self, problem: VisionProblem, num_steps: int, individual: bool):
        super().__init__(problem, len(problem.tasks), individual)
        self.title = "Maximum Roaming" + (" by IO" if individual else "")
        widths = norm_widths(problem.init(0)[0]["encoder"])
        # The masks of the widest layer need this many steps to reach every channel.
        least = math.floor((1 - _SHARING_RATIO) * max(widths.values())) + 1
        self._roaming = mtlopt.maximum_roaming(
            len(problem.tasks), widths, _SHARING_RATIO, max(num_steps, least)
        )
        losses: Any = {
            task: functools.partial(self._named_loss, place)
            for place, task in enumerate(problem.tasks)
        }
        if problem.stacked:
            losses = mtlopt.stacked(self._loss, len(problem.tasks))
        self._oracle = mtlopt.task_grad(
            losses,
            problem.labels,
            has_state=True,
            state_labels="stacked" if problem.stacked else None,
        )
        self.predict = jax.jit(self._predict)

    def _loss(self, params: PyTree, task: Any, batch: Any, masks: Any, own: Any) -> Any:
        """The loss of a task, and its own statistics."""
        params = self._masked(params, masks, task)
        return self.problem.loss(task, params, own, batch)

    def _named_loss(
        self, place: int, params: PyTree, batch: Any, masks: Any, stats: Any
    ) -> Any:
        """The loss of a task, and the statistics of all tasks."""
        value, new = self._loss(params, place, batch, masks, _of_task(stats, place))
        put = jax.tree.map(lambda each, one: each.at[place].set(one), stats, new)
        return value, put

    def start(self, seed: int) -> State:
        run, _ = super().start(seed)
        stats = jax.tree.map(lambda x: jnp.stack([x] * self._num_groups), run.state)
        return State(run._replace(state=stats), self._roaming.init(seed))

    def step(self, state: State, batch: PyTree, rate: Any, members: Any) -> Any:
        after, *found = super().step(state, batch, rate, members)
        return after._replace(more=self._roaming.update(state.more)), *found

    def _move(self, optimizer: Any, state: State, batch: Any, present: Any) -> Any:
        step = mtlopt.individual_step(self._oracle, optimizer)
        return step(state.run, batch, state.more.masks, present=present)

    def _predict(self, state: State, image: jax.Array) -> ByTask:
        def all_heads(task: Any) -> ByTask:
            params = self._masked(state.run.params, state.more.masks, task)
            return self.problem.predict(params, _of_task(state.run.state, task), image)

        def own_head(task: Any) -> jax.Array:
            return jnp.stack(list(all_heads(task).values()))[task]

        tasks = self.problem.tasks
        if self.problem.stacked:
            outputs = jax.lax.map(own_head, jnp.arange(len(tasks)))
            return dict(zip(tasks, outputs, strict=True))
        return {task: all_heads(place)[task] for place, task in enumerate(tasks)}

    def _masked(self, params: PyTree, masks: PyTree, task: Any) -> PyTree:
        """Returns parameters with zeros in the encoder's channels of other tasks."""
        own = mtlopt.task_masks(masks, task)

        def one(keys: Any, leaf: jax.Array) -> jax.Array:
            mask = own.get(_path(keys[:-1]))
            return leaf if mask is None else leaf * mask

        return {**params, "encoder": jax.tree.map_with_path(one, params["encoder"])}


def method_names(num_tasks: int, stacked: bool, roams: bool) -> tuple[str, ...]:
    """Returns the names that `--methods` accepts; `Experiment` has the arguments."""
    names = list(methods_for(num_tasks))
    groups = [num for num in (2, 4, 8, 20) if num < num_tasks]
    names += [f"sum_{num}" for num in (*groups, num_tasks)]
    for name in ("ius", "io"):
        names += [name, *(f"{name}_{num}" for num in groups)]
    names += ["roaming", "roaming_io"] * roams
    return (*names, "sgd", "fbls", *([] if stacked else [SINGLE]))


def make_methods(
    problem: VisionProblem,
    names: Iterable[str],
    *,
    steps_per_epoch: int,
    roaming_steps: int,
    alpha: float,
) -> dict[str, Method]:
    """Returns methods by name; single tasks are members of the summed loss.

    The masks of roaming move for `roaming_steps` steps; `alpha` is GradNorm's
    parameter.
    """
    labels, num_tasks = problem.labels, len(problem.tasks)
    kinds = tuple(map(kind_of, problem.learnt.losses.values()))
    own = {"uncertainty": {"kind": kinds}, "gradnorm": {"alpha": alpha}}

    def aggregated(name: str, inner: Any = optax.adam, suffix: str = "") -> Method:
        method = mtlopt.METHODS[name]
        options: Any = {"steps_per_epoch": steps_per_epoch, **own.get(name, {})}

        def make(rate: Any) -> optax.GradientTransformation:
            aggregator = method.make(num_tasks, labels=labels, **options)
            return optax.chain(aggregator, mtlopt.per_label(inner(rate), labels))

        return Method(problem, method.title + suffix, make)

    def by_name(name: str) -> Method:
        family, _, number = name.partition("_")
        if name in mtlopt.METHODS:
            return aggregated(name)
        if family == "sum":
            again = copy.copy(methods[SUM])
            again.repeats, again.title = int(number), f"Summed loss, {number} steps"
            return again
        if family in ("ius", "io"):
            return InTurns(problem, int(number or num_tasks), family == "io")
        if family == "roaming":
            return Roaming(problem, roaming_steps, individual=number == "io")
        if name == "sgd":
            return aggregated(SUM, optax.sgd, ", SGD")
        search = mtlopt.fast_backtracking(mtlopt.mgda(num_tasks))
        return Method(problem, "FBLS", lambda _: search, searches=True)

    methods = {SUM: aggregated(SUM)}
    assert methods[SUM].program  # computed now, so that all copies share the value
    for name in names:
        methods[name] = methods[SUM] if name == SINGLE else by_name(name)
    return {name: methods[name] for name in names}


def norm_widths(tree: PyTree) -> dict[str, int]:
    """Returns the number of channels of each BatchNorm in a module, by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        _path(keys[:-1]): len(leaf) for keys, leaf in leaves if keys[-1].key == "scale"
    }


def _of_task(tree: PyTree, task: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[task], tree)


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
