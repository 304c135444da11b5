"""One inner optimizer state per label, which changes only when that label moves."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_state_tasks
from mtlopt.grad import check_updates
from mtlopt.labels import FROZEN, STACKED, Rules, label_params
from mtlopt.partition import Partition, check_params, check_same_labels

PyTree = Any


class PerLabelState(NamedTuple):
    """State of `per_label`.

    Attributes:
      inner_states: mapping from label to inner state; the state of stacked heads has a
        leading task axis on every leaf.
    """

    inner_states: dict[str, Any]


def advance(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    state: PyTree,
    params: PyTree,
    active: jax.Array | bool | None,
    **extra_args: Any,
) -> tuple[PyTree, PyTree]:
    """Runs an update, or moves nothing and leaves the state as it is, bit for bit.

    Args:
      inner: the optimizer.
      updates: its input.
      state: its state.
      params: parameters, or None.
      active: bool scalar; None means True. A Python bool decides at trace time.
      **extra_args: passed on to `inner`.

    Returns:
      The updates, which are zero if not active, and the state.
    """
    if active is False:
        return jax.tree.map(jnp.zeros_like, updates), state
    moved, advanced = inner.update(updates, state, params, **extra_args)
    if active is None or active is True:
        return moved, advanced
    moved = jax.tree.map(lambda leaf: jnp.where(active, leaf, 0), moved)
    state = jax.tree.map(lambda new, old: jnp.where(active, new, old), advanced, state)
    return moved, state


def per_label(
    inner: optax.GradientTransformation | Callable[[str], optax.GradientTransformation],
    labels: Rules,
) -> optax.GradientTransformationExtraArgs:
    """Gives every label its own optimizer state, so that individual labels can pause.

    An optimizer with memory makes a step even for a zero gradient. So it moves the head
    of a task that has no labels in a batch. With this wrapper, the leaves and the state
    of a label that is not active stay the same, bit for bit. With stacked heads, every
    task counts as a separate label. Frozen leaves have no state, and their updates are
    zeros. So `inner` cannot move frozen leaves, but weight decay outside of the wrapper
    can.

    `update` takes the keyword `active`: None for all labels, or a mapping from label to
    a bool scalar (for `"stacked"` also a `[tasks]` bool vector). Labels that are not in
    the mapping are active. For a batch with absent tasks, `TaskGrads.active` is this
    mapping. If a value is Python's `False`, the compiled program does not contain the
    label's update. The optimizer runs on each label separately, so a quantity over all
    leaves (such as a global norm) covers one label's leaves. A schedule inside counts
    the steps of one label: while a task is absent, its learning rate does not change.
    If a schedule must count global steps, chain it after this wrapper, as in
    `chain(per_label(scale_by_adam(), labels), scale_by_learning_rate(schedule))`.

    `update` also takes the keyword `partition`, the partition of an oracle. If you pass
    it, labels that differ from it raise an error. `train_step` and
    `mtlopt.nnx.Optimizer` pass both keywords; in a step of your own, pass
    `active=grads.active` and `partition=grads.partition`.

    Args:
      inner: any Optax optimizer, or a function from label to optimizer.
      labels: which leaf is shared and which belongs to which task, see `label_params`.

    Returns:
      A transform to chain after the aggregator.

    Raises:
      TypeError: if `inner` is neither an optimizer nor a function that returns an
        optimizer; at an update, if the transform gets `TaskGrads`, because the chain
        has no aggregator before it.
      ValueError: if `active` names a label that no leaf has, or has a wrong shape, or
        if the labels differ from the labels in `partition`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import mtlopt, optax
      >>> params = {"trunk": jnp.ones(2), "a": jnp.ones(2), "b": jnp.ones(2)}
      >>> optimizer = mtlopt.per_label(
      ...     optax.sgd(0.1, momentum=0.9), {"trunk": "shared", "a": "a", "b": "b"}
      ... )
      >>> state = optimizer.init(params)
      >>> grads = {"trunk": jnp.ones(2), "a": jnp.ones(2), "b": jnp.ones(2)}
      >>> updates, state = optimizer.update(grads, state, active={"b": False})
      >>> updates["a"], updates["b"]
      (Array([-0.1, -0.1], dtype=float32), Array([0., 0.], dtype=float32))
    """
    if isinstance(labels, optax.GradientTransformation):
        raise TypeError(
            "`per_label` takes the optimizer first, then the labels, got an optimizer "
            "as `labels`."
        )
    if not isinstance(inner, optax.GradientTransformation) and not callable(inner):
        raise TypeError(
            "`inner` must be an Optax optimizer, or a function from label to "
            f"optimizer, got {type(inner).__name__}. If you have a mapping from label "
            "to optimizer, pass mapping.get."
        )

    def optimizer(label: str) -> optax.GradientTransformationExtraArgs:
        own = inner if isinstance(inner, optax.GradientTransformation) else inner(label)
        if not isinstance(own, optax.GradientTransformation):
            raise TypeError(
                "`inner` must return an Optax optimizer for every label, got "
                f"{type(own).__name__} for {label!r}."
            )
        return optax.with_extra_args_support(own)

    def init_fn(params: PyTree) -> PerLabelState:
        check_params(params)
        names = label_params(params, labels)
        states = {}
        for label in sorted(set(jax.tree.leaves(names)) - {FROZEN}):
            init = optimizer(label).init
            init = jax.vmap(init) if label == STACKED else init
            states[label] = init(select(params, names, label))
        return PerLabelState(states)

    def update_fn(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        active: Mapping[str, Any] | None = None,
        partition: Partition | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PerLabelState]:
        check_updates(updates, "per_label")
        structure = jax.tree.structure(updates)  # inside optax.masked, leaves lack
        if partition is not None and structure == partition.treedef:
            check_same_labels(labels, updates, partition)
        names = label_params(updates, labels)
        _check_state(state, updates, names)
        active = active or {}
        for label in active:
            if label not in state.inner_states:
                raise ValueError(
                    f"`active` must name labels of {tuple(state.inner_states)}, got "
                    f"{label!r}. Pass `per_label` the labels of the oracle. Stacked "
                    f"heads have the label {STACKED!r}."
                )
        still = jax.tree.map(jnp.zeros_like, select(updates, names, FROZEN))
        moved, states = {FROZEN: still}, {}
        for label, inner_state in state.inner_states.items():
            own = (
                select(updates, names, label),
                inner_state,
                None if params is None else select(params, names, label),
            )
            run = functools.partial(advance, optimizer(label), **extra_args)
            flag = active.get(label)
            if isinstance(flag, bool | None):
                run = functools.partial(run, active=flag)
            else:
                own = (*own, _as_flag(label, flag, own[0]))
            run = jax.vmap(run) if label == STACKED else run
            moved[label], states[label] = run(*own)
        return join(updates, names, moved), PerLabelState(states)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_state(state: PerLabelState, updates: PyTree, names: PyTree) -> None:
    """Raises unless each label, and each stacked head, has a state."""
    found = set(state.inner_states)
    expected = set(jax.tree.leaves(names)) - {FROZEN}
    if found != expected:
        raise ValueError(
            "`state` must be the state of `per_label` for the labels "
            f"{sorted(expected)}, got a state for {sorted(found)}. Pass the state from "
            "`init` with the same labels. A checkpoint for other tasks does not fit."
        )
    if STACKED in found:
        num_tasks = len(jax.tree.leaves(select(updates, names, STACKED))[0])
        for leaf in jax.tree.leaves(state.inner_states[STACKED]):
            check_state_tasks("per_label", jnp.shape(leaf)[0], num_tasks)


def _as_flag(label: str, flag: Any, own: PyTree) -> jax.Array:
    """Returns `active[label]`; for stacked heads one flag per task."""
    flag = jnp.asarray(flag)
    shape = jnp.shape(jax.tree.leaves(own)[0])[:1] if label == STACKED else ()
    if flag.shape not in ((), shape):
        raise ValueError(
            f"`active[{label!r}]` must have shape {shape}, got {flag.shape}."
        )
    return jnp.broadcast_to(flag, shape)


def select(tree: PyTree, names: PyTree, label: str) -> PyTree:
    """Masks the leaves of other labels, as `optax.masked` does."""
    return jax.tree.map(
        lambda name, leaf: leaf if name == label else optax.MaskedNode(), names, tree
    )


def join(tree: PyTree, names: PyTree, parts: dict[str, PyTree]) -> PyTree:
    """Joins the results of `select` for all labels; `tree` gives the structure."""
    leaves = {label: iter(jax.tree.leaves(part)) for label, part in parts.items()}
    return jax.tree.map(lambda name, _: next(leaves[name]), names, tree)
