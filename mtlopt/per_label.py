"""One inner optimizer state per label, advanced only when that label moves."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt.labels import STACKED, Rules, label_params

PyTree = Any


class PerLabelState(NamedTuple):
    """State of `per_label`.

    Attributes:
      inner_states: mapping from label to inner state; that of stacked heads has a
        leading task axis on every leaf.
    """

    inner_states: dict[str, Any]


def advance(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    state: PyTree,
    params: PyTree,
    active: jax.Array | None,
    **extra_args: Any,
) -> tuple[PyTree, PyTree]:
    """Runs an update, or leaves the state bit for bit as it is and moves nothing.

    Args:
      inner: the optimizer.
      updates: its input.
      state: its state.
      params: parameters, or None.
      active: bool scalar; None for yes.
      **extra_args: passed on.

    Returns:
      The updates (zero if not active) and the state.
    """
    moved, advanced = inner.update(updates, state, params, **extra_args)
    if active is None:
        return moved, advanced
    moved = jax.tree.map(lambda leaf: jnp.where(active, leaf, 0), moved)
    state = jax.tree.map(lambda new, old: jnp.where(active, new, old), advanced, state)
    return moved, state


def per_label(
    inner: optax.GradientTransformation, labels: Rules
) -> optax.GradientTransformationExtraArgs:
    """Gives every label its own state of one optimizer, so that it can stand still.

    An optimizer with memory goes on moving a head whose task had no labels in the
    batch: a zero gradient is not the absence of a step. Behind this wrapper, the leaves
    and the state of a label that is not active stay bit for bit the same. Every task of
    stacked heads counts as a label of its own.

    `update` takes the keyword `active`: a mapping from label to a bool scalar (for
    `"stacked"` a `[tasks]` bool vector), labels that it leaves out being active; or
    None for all. `TaskGrads.active` is that mapping for a batch with absent tasks.
    The optimizer runs on each label apart, so what it computes over all its leaves
    (such as a global norm) is over one label's.

    Args:
      inner: any Optax optimizer.
      labels: who owns which leaf, see `label_params`.

    Returns:
      A transform to chain behind the aggregator.

    Raises:
      ValueError: if `active` names a label that no leaf has, or has a wrong shape.

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
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> PerLabelState:
        names = label_params(params, labels)
        states = {}
        for label in _distinct(names):
            own = _select(params, names, label)
            init = jax.vmap(inner.init) if label == STACKED else inner.init
            states[label] = init(own)
        return PerLabelState(states)

    def update_fn(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        active: Mapping[str, Any] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PerLabelState]:
        names = label_params(updates, labels)
        active = {k: jnp.asarray(flag) for k, flag in (active or {}).items()}
        for label, flag in active.items():
            if label not in state.inner_states:
                raise ValueError(
                    f"`active` must name labels of {tuple(state.inner_states)}, got "
                    f"{label!r}."
                )
            example = jax.tree.leaves(_select(updates, names, label))[0]
            shape = jnp.shape(example)[:1] if label == STACKED else ()
            if flag.shape != shape:
                raise ValueError(
                    f"`active[{label!r}]` must have shape {shape}, got {flag.shape}."
                )
        moved, states = {}, {}
        for label, inner_state in state.inner_states.items():

            def run(
                updates: PyTree, state: PyTree, params: PyTree, active: Any
            ) -> tuple[PyTree, PyTree]:
                return advance(inner, updates, state, params, active, **extra_args)

            run = jax.vmap(run) if label == STACKED else run
            moved[label], states[label] = run(
                _select(updates, names, label),
                inner_state,
                None if params is None else _select(params, names, label),
                active.get(label),
            )
        return _join(updates, names, moved), PerLabelState(states)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _distinct(names: PyTree) -> list[str]:
    return sorted(set(jax.tree.leaves(names)))


def _select(tree: PyTree, names: PyTree, label: str) -> PyTree:
    """Masks the leaves of other labels, as `optax.masked` does."""
    return jax.tree.map(
        lambda name, leaf: leaf if name == label else optax.MaskedNode(), names, tree
    )


def _join(tree: PyTree, names: PyTree, parts: dict[str, PyTree]) -> PyTree:
    """Inverse of `_select` over all labels."""
    leaves = {label: iter(jax.tree.leaves(part)) for label, part in parts.items()}
    return jax.tree.map(lambda name, _: next(leaves[name]), names, tree)
