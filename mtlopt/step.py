"""One training step: the variables that it changes, and how to build it."""

import difflib
import itertools
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from mtlopt._checks import as_transform
from mtlopt._guard import WHAT_TO_DO
from mtlopt.labels import FROZEN
from mtlopt.oracle import Oracle
from mtlopt.partition import check_no_state
from mtlopt.skip_not_finite import SkipNotFiniteState, finite
from mtlopt.task_grads import TaskGrads

PyTree = Any


class Run(NamedTuple):
    """Everything a training step changes; you can save it, donate it or scan over it.

    Attributes:
      params: parameters, a pytree of arrays.
      opt_state: state of the optimizer, from its `init`.
      state: the model's state, a pytree of arrays, with
        `task_grad(..., has_state=True)`; otherwise None.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt, optax
      >>> params = {"trunk": jnp.ones(2)}
      >>> optimizer = optax.chain(mtlopt.upgrad(2), optax.sgd(0.05))
      >>> mtlopt.Run(params, optimizer.init(params)).state is None
      True
    """

    params: PyTree
    opt_state: PyTree
    state: PyTree = None


class StepOutput(NamedTuple):
    """Losses and aux of a training step.

    Attributes:
      losses: `[tasks]`, before the step.
      aux: an `Aux`; None without `has_aux`.
    """

    losses: jax.Array
    aux: Any


def train_step(
    oracle: Oracle, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Run, StepOutput]]:
    """Builds a training step from an oracle and a chain of transforms.

    The step evaluates the gradients of all tasks, and the chain turns them into one
    update. The step then updates the parameters, the optimizer state and the model's
    state. It tells the chain which tasks are present: if the chain ends with
    `per_label`, heads of absent tasks do not move. Leaves labelled `"frozen"` never
    move, whatever the optimizer.

    Args:
      oracle: an oracle from `task_grad`.
      optimizer: a chain of an aggregator, possibly with weightings before it, and an
        optimizer after it, such as `optax.adam`; or a line search.

    Returns:
      `step(run, *args, present=None, **extra_args) -> (run, output)`. Put it under
      `jax.jit`, or use it as the body of a `lax.scan`. `args` are the arguments of the
      functions without the model's state, `present` is as in `Oracle.__call__`, and
      `extra_args` are for the optimizer.

    Raises:
      TypeError: if `oracle` is not an `mtlopt.Oracle`; at a step, if the chain has no
        aggregator or has no optimizer after it, or if `run` is not a `Run`.
      ValueError: at a step, if `run.state` is missing, or if it is given although the
        oracle has no state.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import mtlopt, optax
      >>> params = {"trunk": jnp.ones(2), "up": jnp.ones(()), "down": jnp.ones(())}
      >>> oracle = mtlopt.task_grad(
      ...     {
      ...         "up": lambda params, z, x: (params["up"] * z - 1) ** 2,
      ...         "down": lambda params, z, x: (params["down"] * z + 1) ** 2,
      ...     },
      ...     {"trunk": "shared", "up": "up", "down": "down"},
      ...     encode=lambda params, x: params["trunk"] @ x,
      ... )
      >>> optimizer = optax.chain(mtlopt.upgrad(2), optax.sgd(0.05))
      >>> step = jax.jit(mtlopt.train_step(oracle, optimizer))
      >>> run = mtlopt.Run(params, optimizer.init(params))
      >>> for _ in range(100):
      ...     run, output = step(run, jnp.ones(2))
      >>> print(jnp.round(output.losses, 3))
      [0. 0.]
    """
    check_oracle(oracle)
    optimizer = as_transform("optimizer", optimizer)

    def step(
        run: Run, *args: Any, present: Any = None, **extra_args: Any
    ) -> tuple[Run, StepOutput]:
        args = with_state(oracle, args, run)
        check_names(extra_args)
        grads = oracle(run.params, *args, present=present)
        updates, opt_state = update_of(
            optimizer, grads, run.opt_state, run.params, **extra_args
        )
        params = optax.apply_updates(run.params, updates)
        state = keep_finite(run, opt_state, grads.state)
        return Run(params, opt_state, state), StepOutput(grads.losses, grads.aux)

    return step


def check_names(extra_args: Iterable[str], *others: str) -> None:
    """Raises if a step's argument is misspelt: transforms ignore unknown arguments.

    The check knows the names of the step's own arguments, and names of arguments of
    weightings.

    Args:
      extra_args: names of the arguments that the step got for the optimizer.
      others: names of the step's own arguments, except `present`.
    """
    for name in ("present", "traces", "losses_after", *others):
        near = [] if name in extra_args else extra_args
        for like in difflib.get_close_matches(name, near, n=1, cutoff=0.8):
            raise TypeError(f"a step has no argument {like!r}. Did you mean `{name}`?")


def keep_finite(run: Run, opt_state: PyTree, state: PyTree) -> PyTree:
    """Returns the new state, or the old state if `skip_not_finite` skipped the step.

    If only some tasks were left out, a leaf keeps its value if its new value would not
    be finite. If the chain has no `skip_not_finite`, the result is the new state.
    """

    def skipped(tree: PyTree) -> list[Any]:
        nodes = jax.tree.leaves(tree, is_leaf=_skips)
        return [node.num_skipped for node in nodes if _skips(node)]

    counts = list(zip(skipped(run.opt_state), skipped(opt_state), strict=True))
    if not counts or state is None:
        return state
    skip = jnp.any(jnp.stack([after != before for before, after in counts]))

    def keep(old: Any, new: Any) -> Any:
        spoilt = jnp.any(finite(old) & ~finite(new))
        return jnp.where(skip | spoilt, old, new)

    return jax.tree.map(keep, run.state, state)


def _skips(node: Any) -> bool:
    return isinstance(node, SkipNotFiniteState)


def update_of(
    optimizer: optax.GradientTransformation,
    grads: TaskGrads,
    opt_state: PyTree,
    params: PyTree,
    **extra_args: Any,
) -> tuple[PyTree, PyTree]:
    """Returns the update that a chain with an aggregator makes, and its state.

    Raises:
      TypeError: if there is no aggregator, no optimizer after it, or an ordinary
        transform before it.
    """
    transform = optax.with_extra_args_support(optimizer)
    told = {"active": grads.active, "partition": grads.partition}
    extra_args = {**told, **extra_args}
    found: Any = grads
    try:
        found, opt_state = transform.update(found, opt_state, params, **extra_args)
    except (NotImplementedError, TypeError, ValueError) as error:
        if _is_of_sam(error):
            raise TypeError(
                "`optimizer` must not contain optax.contrib.sam, which takes one "
                "gradient, not the gradients of several tasks. Make the oracle "
                "sharpness-aware instead: mtlopt.sharpness_aware(oracle)."
            ) from error
        # Without jit the guard's entries have no real part, from which norms are made.
        if WHAT_TO_DO not in str(error) and "abstract method" not in str(error):
            raise
        found, cause = grads, error
    else:
        cause = None
    if isinstance(found, TaskGrads):
        raise TypeError(
            "`optimizer` must have an aggregator, such as mtlopt.upgrad, before all of "
            "its ordinary Optax transforms and wrappers, clipping included: "
            "optax.chain(mtlopt.upgrad(num_tasks), optax.adam(1e-3))."
        ) from cause
    if _continues_after_search(opt_state):
        raise TypeError(
            "`optimizer` must end with its line search, which moves the parameters "
            "without an optimizer, got a chain with a transform after it. Only "
            "mtlopt.track_distance may follow."
        )
    if _has_methods_only(opt_state):
        raise TypeError(
            "`optimizer` must end with an optimizer, such as optax.sgd or optax.adam, "
            "got a chain that ends with an aggregator. An aggregator returns a "
            "direction in which the losses rise."
        )
    return keep_frozen(found, grads.partition.labels), opt_state


def _has_methods_only(opt_state: PyTree) -> bool:
    """Returns whether all states of a chain or of a wrapper belong to methods.

    States of weightings and aggregators have `task_weights`. A line search has states
    of methods too, but it moves the parameters without an optimizer.
    """
    if hasattr(opt_state, "hit_floor"):
        return False
    if hasattr(opt_state, "task_weights"):
        return True
    states = [state for state in _states(opt_state) if not _measures(state)]
    if not _is_chain(opt_state):  # the other fields of a wrapper are no states
        states = [state for state in states if isinstance(state, tuple | OrderedDict)]
    return bool(states) and all(map(_has_methods_only, states))


def _continues_after_search(opt_state: PyTree) -> bool:
    """Returns whether a chain, at any depth, goes on after a line search."""
    if hasattr(opt_state, "hit_floor"):
        return False
    states = _states(opt_state)
    if _is_chain(opt_state):
        after = list(itertools.dropwhile(lambda s: not _searches(s), states))[1:]
        if not all(map(_measures, after)):
            return True
    return any(map(_continues_after_search, states))


def _is_chain(opt_state: PyTree) -> bool:
    """Returns whether a state may be that of `optax.chain` or `optax.named_chain`."""
    return type(opt_state) is tuple or isinstance(opt_state, OrderedDict)


def _states(opt_state: PyTree) -> list[Any]:
    """Returns the states in the state of a chain, or the fields of another state."""
    if isinstance(opt_state, OrderedDict):
        return list(opt_state.values())
    return list(opt_state) if isinstance(opt_state, tuple) else []


def _searches(opt_state: PyTree) -> bool:
    def is_search(node: Any) -> bool:
        return hasattr(node, "hit_floor")

    return any(map(is_search, jax.tree.leaves(opt_state, is_leaf=is_search)))


def _measures(opt_state: PyTree) -> bool:
    """Returns whether the state is that of `track_distance`, or of a chain of them."""
    if _is_chain(opt_state):
        return all(map(_measures, _states(opt_state)))
    return hasattr(opt_state, "covered")


def keep_frozen(updates: PyTree, labels: Sequence[str]) -> PyTree:
    """Sets updates of frozen leaves to zero: weight decay would move them."""
    if FROZEN not in labels:
        return updates
    leaves, treedef = jax.tree.flatten(updates)
    kept = [
        jnp.zeros_like(leaf) if label == FROZEN else leaf
        for leaf, label in zip(leaves, labels, strict=True)
    ]
    return treedef.unflatten(kept)


def _is_of_sam(error: Exception) -> bool:
    """Returns whether `optax.contrib.sam` raised the error, or refused `active`."""
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__") for frame, _ in frames]
    return optax.contrib.sam.__module__ in modules or "sam.<locals>" in str(error)


def check_oracle(oracle: Any) -> None:
    """Raises unless a step is built from an oracle of arrays, `mtlopt.Oracle`."""
    if not isinstance(oracle, Oracle):
        kind = type(oracle)
        advice = "If it is an oracle of modules, pass oracle.pure(model).oracle."
        if isinstance(oracle, optax.GradientTransformation):
            advice = "Pass the oracle first, and then the optimizer."
        raise TypeError(
            f"`oracle` must be a mtlopt.Oracle, got {kind.__module__}.{kind.__name__}. "
            f"{advice}"
        )


def with_state(oracle: Oracle, args: tuple[Any, ...], run: Run) -> tuple[Any, ...]:
    """Returns the arguments of a call, including the model's state if there is one."""
    if not isinstance(run, Run):
        raise TypeError(
            f"`run` must be a mtlopt.Run, got {type(run).__name__}. Pass "
            "mtlopt.Run(params, optimizer.init(params)) to the first step, and the run "
            "that a step returns to the next step."
        )
    check_no_state(run.params)
    if run.opt_state is None or isinstance(run.opt_state, optax.GradientTransformation):
        raise TypeError(
            "`run.opt_state` must be optimizer.init(params), got "
            f"{type(run.opt_state).__name__}."
        )
    if oracle.has_state:
        if run.state is None:
            raise ValueError(
                "`run.state` must be the model's state with has_state=True, got None."
            )
        return *args, run.state
    if run.state is not None:
        raise ValueError(
            "`run.state` must be None unless the oracle is built with has_state=True."
        )
    return args
