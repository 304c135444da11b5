"""Model state, such as BatchNorm statistics: its writers, and the next state.

Every function takes the state as its last argument and returns it as its second value.
If a function returns the same object that it got for a leaf, it did not write the leaf.
So functions can return the whole state.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import dependent_outputs, forwarded_inputs, split_arrays
from mtlopt.heads import Inputs
from mtlopt.labels import (
    SHARED,
    STACKED,
    Rules,
    label_params,
    names_to_match,
    path_string,
    tree_mismatch,
)
from mtlopt.problems import (
    Aux,
    Evaluation,
    HeadEvaluation,
    OfProblem,
    Problem,
    Reads,
)

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Written:
    """State leaves that one function wrote, by their position in the state."""

    leaves: dict[int, Any]


class StateForm(NamedTuple):
    """How the functions of a problem carry state.

    Attributes:
      has_aux: whether the functions return a third value.
      labels: rules on the state's paths, which say who owns a leaf; None without rules.
      of_samples: whether the functions take one sample.
    """

    has_aux: bool
    labels: Rules | None = None
    of_samples: bool = False

    def owners(self, state: PyTree) -> list[str]:
        """Returns the label of every leaf of the state."""
        leaves = jax.tree.leaves(state)
        if self.labels is None or not leaves:
            return [SHARED] * len(leaves)
        rules = self.labels
        if isinstance(rules, list | tuple) and isinstance(state, Mapping):
            rules = names_to_match(rules, state)
        try:
            return jax.tree.leaves(label_params(state, rules))
        except ValueError as error:
            is_array = jax.tree_util.all_leaves([state])
            named = " (name only the tasks whose heads have state)"
            why = ", got one array." if is_array else f"{named}: {error}"
            raise ValueError(
                "the last argument of the call must be the model's state, and "
                f"`state_labels` must fit it{why}"
            ) from error

    def carry(
        self,
        function: Callable[..., Any],
        name: str,
        task_position: int | None = None,
    ) -> Callable[..., Any]:
        """Makes `f(...) -> (value, (Written, aux))` from `f(...) -> (value, state)`.

        Args:
          function: the user's function.
          name: name of the function, for errors.
          task_position: for a stacked head, place of the task among the arguments after
            the parameters; the head gets its own part of the leaves labelled
            `"stacked"`.
        """
        if not callable(function):
            return function  # `make_problem` reports it

        def run(params: PyTree, *args: Any) -> tuple[Any, tuple[Written, Any]]:
            if not args:
                raise ValueError(
                    "with has_state=True the last argument of a call must be the "
                    "model's state, got no argument."
                )
            *others, state = args
            if task_position is not None:
                state = self._of_task(state, others[task_position])

            def call(state: PyTree, others: list[Any]) -> tuple[Any, PyTree, Any]:
                return self._unpack(function(params, *others, state), name)

            value, new, aux = call(state, others)
            written = _written(state, new, name)
            if written:
                # A function inside `jit` or `checkpoint` returns other objects.
                same = forwarded_inputs(lambda state: call(state, others)[1], state)
                written = {i: leaf for i, leaf in written.items() if same[i] != i}
            self._check_written(written, state, name, task_position is not None)
            if self.of_samples and written:
                found = _from_arguments(lambda others: call(state, others)[1], others)
                for i in written:
                    if found[i]:
                        raise ValueError(
                            f"{name} computes the state `{_paths(state)[i]}` from its "
                            "arguments, but with samplewise every sample has different "
                            "arguments. New state may depend only on old state, as a "
                            "count does."
                        )
            return value, (Written(written), aux)

        return run

    def _unpack(self, out: Any, name: str) -> tuple[Any, PyTree, Any]:
        size = 3 if self.has_aux else 2
        if not isinstance(out, tuple) or len(out) != size:
            form = "(value, state, aux)" if self.has_aux else "(value, state)"
            values = f"a tuple of {len(out)}" if isinstance(out, tuple) else None
            raise ValueError(
                f"with has_state=True, {name} must return {form}, got "
                f"{values or type(out).__name__}. A function that changes no state "
                "returns the state that it got."
            )
        value, state, aux = (*out, None)[:3]
        return value, state, aux

    def _of_task(self, state: PyTree, task: Any) -> PyTree:
        leaves, treedef = jax.tree.flatten(state)
        return treedef.unflatten(
            jnp.asarray(leaf)[task] if owner == STACKED else leaf
            for leaf, owner in zip(leaves, self.owners(state), strict=True)
        )

    def check(self, state: PyTree, tasks: tuple[str, ...], stacked: bool) -> None:
        """Raises unless the labels of the state fit the problem.

        Args:
          state: the state.
          tasks: names of the tasks.
          stacked: whether heads are stacked.
        """
        allowed = (SHARED, STACKED) if stacked else (SHARED, *tasks)
        leaves = jax.tree.leaves(state)
        for path, label, leaf in zip(
            _paths(state), self.owners(state), leaves, strict=True
        ):
            if label not in allowed:
                raise ValueError(
                    f"the label of the state `{path}` must be one of "
                    f"{', '.join(map(repr, allowed))}, got {label!r}."
                )
            if label == STACKED and jnp.shape(leaf)[:1] != (len(tasks),):
                raise ValueError(
                    f"the stacked state `{path}` must have a leading task axis of size "
                    f"{len(tasks)}, got shape {jnp.shape(leaf)}."
                )

    def _check_written(
        self, written: dict[int, Any], state: PyTree, name: str, stacked: bool
    ) -> None:
        paths, owners = _paths(state), self.owners(state)
        for i, leaf in written.items():
            is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
            if self.of_samples and stacked:
                raise ValueError(
                    f"{name} writes the state `{paths[i]}`. With samplewise it runs "
                    "once for each sample, and would write the state each time. Remove "
                    "layers such as dropout from stacked heads, or write a loss for "
                    "each task."
                )
            if self.of_samples and is_float:
                raise ValueError(
                    f"{name} writes the state `{paths[i]}`, but with samplewise it "
                    "gets one sample, which has no statistics of the batch. Use a "
                    "layer without batch statistics, such as LayerNorm or GroupNorm, "
                    "or run BatchNorm on its running averages."
                )
            if stacked and owners[i] != STACKED:
                raise ValueError(
                    f"{name} writes the state `{paths[i]}`, which all tasks share. If "
                    "this state has a leading task axis, label it "
                    f"{STACKED!r} in `state_labels`."
                )


@dataclasses.dataclass(frozen=True, eq=False)
class StatefulProblem(OfProblem):
    """A problem whose functions carry state: evaluations return the new state."""

    problem: Problem[Any]
    form: StateForm

    @property
    def label_counts(self) -> Callable[..., Any] | None:
        return self.problem.label_counts

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        if args:
            self.form.check(args[-1], self.tasks, self.stacked)
        return self.problem.reads(params, stacked, args, z, members)

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation[Any]:
        out = self.problem.evaluate(inputs, factors, members)
        state, aux = self._next(inputs, out.aux, members)
        return out._replace(state=state, aux=aux)

    def heads_at(self, inputs: Inputs, z: PyTree) -> HeadEvaluation:
        out = self.problem.heads_at(inputs, z)
        state, aux = self._next(inputs, out.aux, None)
        return out._replace(state=state, aux=aux)

    def _next(self, inputs: Inputs, aux: Aux, members: Any) -> tuple[PyTree, Any]:
        """Returns the new state after all functions, and the user's aux."""
        old = inputs.args[-1]
        new = _NextState(old, self.form.owners(old), self.tasks, inputs.present)
        encode_aux, task_aux = None, None
        if aux.encode is not None:
            written, encode_aux = aux.encode
            if aux.tasks is None and inputs.present is not None:
                self._check_labels(written, old)
            # Without functions for single tasks, one function returned all losses.
            name = "`losses`" if aux.tasks is None else "encode"
            new.write(self._first(written), name, by_owner=aux.tasks is None)
        if isinstance(aux.tasks, Mapping):
            task_aux = {}
            for task, (written, task_aux[task]) in aux.tasks.items():
                name = f"the loss of task {task!r}"
                new.write(self._first(written), name, self.tasks.index(task))
        elif aux.tasks is not None:
            written, task_aux = aux.tasks
            new.write_stacked(self._first(written), members)
        user_aux = Aux(encode_aux, task_aux) if self.form.has_aux else None
        return new.tree(), user_aux

    def _check_labels(self, written: Written, state: PyTree) -> None:
        """Raises if no label says who owns the state that a joint function wrote."""
        if written.leaves and self.form.labels is None:
            raise ValueError(
                "`state_labels` must say which task owns the state "
                f"`{_paths(state)[min(written.leaves)]}` if tasks may be absent and "
                "one function returns all losses, got None. If the paths of the state "
                "contain the names of the tasks, pass these names. If no head has "
                "state, pass 'shared'."
            )

    def _first(self, written: Written) -> Written:
        """Returns the state of the first sample: all samples write the same values."""
        if not self.form.of_samples:
            return written
        return Written({i: leaf[0] for i, leaf in written.leaves.items()})


class _NextState:
    """The new state, to which the functions write their leaves in turn."""

    def __init__(
        self, state: PyTree, owners: list[str], tasks: tuple[str, ...], present: Any
    ) -> None:
        self._leaves, self._treedef = jax.tree.flatten(state)
        self._paths, self._owners = _paths(state), owners
        self._tasks, self._present = tasks, present
        self._writers: dict[int, str] = {}

    def tree(self) -> PyTree:
        return self._treedef.unflatten(self._leaves)

    def write(
        self, written: Written, name: str, task: int | None = None, by_owner=False
    ) -> None:
        """Stores the leaves that a function wrote, unless its task is absent.

        Args:
          written: the leaves.
          name: name of the function.
          task: the task of the function; None if it belongs to no task.
          by_owner: whether each leaf belongs to the task that its label names.
        """
        for i, leaf in written.leaves.items():
            if leaf is None:
                continue  # the encoder's leaf if it did not run: see `MarkedProblem`
            self._claim(i, name)
            label, owner = self._owners[i], task
            own = self._tasks.index(label) if label in self._tasks else None
            if by_owner:
                owner = own
            elif own not in (None, task):
                raise ValueError(
                    f"the state `{self._paths[i]}` is labelled {label!r}, but {name} "
                    f"writes it. Label it {SHARED!r}."
                )
            if owner is not None and self._present is not None:
                leaf = jnp.where(self._present[owner], leaf, self._leaves[i])
            self._leaves[i] = leaf

    def write_stacked(self, written: Written, members: Any) -> None:
        """Stores the leaves `[members, ...]` that a stacked head wrote."""
        for i, leaf in written.leaves.items():
            self._claim(i, "the stacked head")
            old = jnp.asarray(self._leaves[i])
            if members is not None:
                leaf = old.at[jnp.asarray(members, jnp.int32)].set(leaf)
            if self._present is not None:
                there = jnp.asarray(self._present)
                leaf = jnp.where(there.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, old)
            self._leaves[i] = leaf

    def _claim(self, leaf: int, name: str) -> None:
        if leaf in self._writers:
            raise ValueError(
                f"the state `{self._paths[leaf]}` is written by "
                f"{self._writers[leaf]} and by {name}. Both start from the same state, "
                "so one of the two results would be lost. Give each function its own "
                "layer or, for dropout, its own stream of random numbers."
            )
        self._writers[leaf] = name


def _from_arguments(
    new_state: Callable[[list[Any]], PyTree], args: list[Any]
) -> list[bool]:
    """Returns, per leaf of the state, whether it depends on the arguments."""
    arrays, join = split_arrays(args)
    return dependent_outputs(lambda arrays: new_state(join(arrays)), arrays)[0]


def _paths(state: PyTree) -> list[str]:
    return [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def _written(old: PyTree, new: PyTree, name: str) -> dict[int, Any]:
    """Returns the leaves of `new` that differ from the leaves of `old`, by position."""
    before, treedef = jax.tree.flatten(old)
    after = jax.tree.leaves(new)
    if jax.tree.structure(new) != treedef:
        raise ValueError(
            f"{name} must return the whole state that it got, changed or not, but what "
            f"it returns {tree_mismatch(old, new)}."
        )
    written = {}
    for i, (was, now) in enumerate(zip(before, after, strict=True)):
        if now is was:
            continue
        kinds = [(jnp.result_type(leaf), jnp.shape(leaf)) for leaf in (was, now)]
        if kinds[0] != kinds[1]:
            (dtype, shape), (new_dtype, new_shape) = kinds
            raise ValueError(
                f"{name} changes the state `{_paths(old)[i]}` from {dtype}"
                f"{list(shape)} to {new_dtype}{list(new_shape)}. State must keep its "
                "shape and dtype from step to step."
            )
        written[i] = now
    return written
