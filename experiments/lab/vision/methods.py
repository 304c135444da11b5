"""How the tasks of a vision experiment move: aggregators, turns, roaming, search."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mtlopt
from experiments.lab.vision.problems import ByTask, Problem

PyTree = Any

SUM, SINGLE = "sum_tasks", "single"
_SHARING_RATIO = 0.8


class State(NamedTuple):
    """All that changes while training.

    Attributes:
      params: parameters.
      stats: BatchNorm statistics; with Maximum Roaming those of every task.
      opt_state: state of the method and of the optimizers.
      more: the groups of the tasks, or the masks of Maximum Roaming.
    """

    params: PyTree
    stats: PyTree
    opt_state: PyTree
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


def make_methods(
    problem: Problem, num_steps: int, steps_per_epoch: int
) -> dict[str, Callable[[], Method]]:
    """Returns all methods that there are for a problem, by name.

    Args:
      problem: what is trained.
      num_steps: of the whole training.
      steps_per_epoch: of them in an epoch.
    """
    num_tasks, labels = problem.oracle.num_tasks, problem.labels

    own_options = {"uncertainty": {"kind": problem.kinds}}

    def named(name: str, method: Any) -> Callable[[], Method]:
        options = {
            "labels": labels,
            "steps_per_epoch": steps_per_epoch,
            **own_options.get(name, {}),
        }
        return lambda: _chained(
            problem,
            method.title,
            lambda rate: optax.chain(
                method.make(num_tasks, **options),
                mtlopt.per_label(optax.adam(rate), labels),
            ),
        )

    def turns(num_groups: int, individual: bool) -> Callable[[], Method]:
        return lambda: _in_turns(problem, num_groups, individual)

    methods = {
        name: named(name, method)
        for name, method in mtlopt.METHODS.items()
        if method.min_tasks <= num_tasks
    }
    for name, individual in (("ius", False), ("io", True)):
        methods[name] = turns(num_tasks, individual)
        for num_groups in _groupings(num_tasks):
            methods[f"{name}_{num_groups}"] = turns(num_groups, individual)
    if "stacked" not in labels.values():
        methods["roaming"] = lambda: _roaming(problem, num_steps)
    methods["sgd"] = lambda: _chained(
        problem,
        "Summed loss, SGD",
        lambda rate: optax.chain(mtlopt.sum_tasks(num_tasks), optax.sgd(rate)),
    )
    methods["fbls"] = lambda: dataclasses.replace(
        _chained(
            problem,
            "FBLS",
            lambda _: mtlopt.fast_backtracking(mtlopt.mgda(num_tasks)),
        ),
        searches=True,
    )
    return methods


def method_names(num_tasks: int, *, stacked: bool = False) -> tuple[str, ...]:
    """Returns the names that `--methods` knows."""
    names = [n for n, m in mtlopt.METHODS.items() if m.min_tasks <= num_tasks]
    for name in ("ius", "io"):
        names += [name, *(f"{name}_{num}" for num in _groupings(num_tasks))]
    names += ["sgd", "fbls"] if stacked else ["roaming", "sgd", "fbls", SINGLE]
    return tuple(names)


def _groupings(num_tasks: int) -> tuple[int, ...]:
    return tuple(num for num in (2, 4, 8, 20) if num < num_tasks)


def _chained(
    problem: Problem,
    title: str,
    make: Callable[[Any], optax.GradientTransformationExtraArgs],
) -> Method:
    """A chain behind the oracle, made for a learning rate."""

    def optimizer(rate: Any) -> optax.GradientTransformationExtraArgs:
        return optax.chain(make(rate), mtlopt.track_distance(problem.labels))

    def start(seed: int) -> State:
        params, stats = problem.init(seed)
        return State(params, stats, optimizer(0.0).init(params), ())

    def step(
        state: State, batch: PyTree, rate: jax.Array, members: jax.Array
    ) -> tuple[State, jax.Array]:
        one_step = mtlopt.train_step(problem.oracle, optimizer(rate))
        present = problem.present(batch) & members
        run, output = one_step(_run(state), batch, present=present)
        return _moved(run, state.more), output.losses

    return Method(title, start, step, _predict(problem))


def _run(state: State) -> mtlopt.Run:
    return mtlopt.Run(state.params, state.opt_state, state.stats)


def _moved(run: mtlopt.Run, more: PyTree) -> State:
    return State(run.params, run.state, run.opt_state, more)


def _predict(problem: Problem) -> Callable[[State, jax.Array], ByTask]:
    return lambda state, image: problem.predict(state.params, state.stats, image)


def _turns_optimizer(
    problem: Problem, num_groups: int, individual: bool, rate: Any
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(
        mtlopt.individual_optimizers(
            optax.adam(rate), num_groups, problem.labels, share_state=not individual
        ),
        mtlopt.track_distance(problem.labels),
    )


def _in_turns(problem: Problem, num_groups: int, individual: bool) -> Method:
    """IUS, or IO, of tasks or of groups; every turn moves the encoder's statistics."""
    num_tasks = problem.oracle.num_tasks
    grouped = num_groups < num_tasks

    def start(seed: int) -> State:
        params, stats = problem.init(seed)
        tx = _turns_optimizer(problem, num_groups, individual, 0.0)
        groups = mtlopt.random_groups(seed, num_tasks, num_groups) if grouped else ()
        return State(params, stats, tx.init(params), groups)

    def step(
        state: State, batch: PyTree, rate: jax.Array, members: jax.Array
    ) -> tuple[State, jax.Array]:
        groups = state.more
        turns = mtlopt.individual_step(
            problem.oracle,
            _turns_optimizer(problem, num_groups, individual, rate),
            num_groups if grouped else None,
        )
        run, output = turns(
            _run(state),
            batch,
            groups=groups if grouped else None,
            present=problem.present(batch) & members,
        )
        return _moved(run, groups), output.losses

    title = ("IO" if individual else "IUS") + (
        f" ({num_groups} groups)" if grouped else ""
    )
    return Method(title, start, step, _predict(problem))


def _roaming(problem: Problem, num_steps: int) -> Method:
    """Maximum Roaming, in turns with one state of the optimizer, as its paper has it.

    A channel is masked behind its BatchNorm: where scale and bias are zero, ReLU gives
    zero. Statistics are those of each task's own channels, and so one for each task.
    """
    names = problem.names
    params, _ = problem.init(0)
    roaming = mtlopt.maximum_roaming(
        len(names), norm_widths(params["encoder"]), _SHARING_RATIO, num_steps
    )

    def loss(index: int) -> Callable[..., Any]:
        task = names[index]

        def one(params: PyTree, batch: PyTree, masks: PyTree, stats: PyTree) -> Any:
            params = _masked(params, masks, index)
            value, own = problem.loss(task, params, stats[task], batch)
            return value, {**stats, task: own}

        return one

    oracle = mtlopt.task_grad(
        {task: loss(index) for index, task in enumerate(names)},
        problem.labels,
        has_state=True,
    )

    def start(seed: int) -> State:
        params, stats = problem.init(seed)
        stats = {task: jax.tree.map(jnp.copy, stats) for task in names}
        tx = _turns_optimizer(problem, len(names), False, 0.0)
        return State(params, stats, tx.init(params), roaming.init(seed))

    def step(
        state: State, batch: PyTree, rate: jax.Array, members: jax.Array
    ) -> tuple[State, jax.Array]:
        tx = _turns_optimizer(problem, len(names), False, rate)
        run, output = mtlopt.individual_step(oracle, tx)(
            _run(state),
            batch,
            state.more.masks,
            present=problem.present(batch) & members,
        )
        return _moved(run, roaming.update(state.more)), output.losses

    def predict(state: State, image: jax.Array) -> ByTask:
        return {
            task: problem.predict(
                _masked(state.params, state.more.masks, index), state.stats[task], image
            )[task]
            for index, task in enumerate(names)
        }

    return Method("Maximum Roaming", start, step, jax.jit(predict))


def norm_widths(tree: PyTree) -> dict[str, int]:
    """Returns the channels of each BatchNorm below, by its path.

    Examples:
      >>> norm = {"scale": jnp.ones(3), "bias": jnp.ones(3)}
      >>> norm_widths({"conv": {"kernel": jnp.ones(5), "norm": norm}})
      {'conv/norm': 3}
    """
    widths = {}

    def visit(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            if set(node) == {"scale", "bias"}:
                widths["/".join(path)] = node["scale"].shape[0]
            for name, child in node.items():
                visit(child, (*path, name))

    visit(tree, ())
    return widths


def _masked(params: PyTree, masks: PyTree, task: int) -> PyTree:
    """Parameters in which the encoder's channels of other tasks are zero."""
    own = mtlopt.task_masks(masks, task)

    def visit(node: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(node, Mapping):
            return node
        mask = own.get("/".join(path))
        if mask is not None:
            return {name: leaf * mask for name, leaf in node.items()}
        return {name: visit(child, (*path, name)) for name, child in node.items()}

    return {**params, "encoder": visit(params["encoder"], ())}
