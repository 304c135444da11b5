"""Cuts the program of all losses into an encoder and one head per task.

`mtlopt.latent` marks the arrays at which the program is cut. The program is traced
once, forward only. The encoder is the part that the marked arrays depend on. A head is
the part that one loss still needs once the marked arrays are known. The cut only
chooses equations and changes none. Further results of the function are computed from
values that encoder and heads pass on, so that nothing runs twice.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from mtlopt._jaxprs import (
    evaluate,
    is_call,
    opened,
    stacked_entries,
    variables,
    without_calls,
)
from mtlopt.labels import tree_mismatch
from mtlopt.mark import holds_mark, is_mark, marked_tree

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Traced:
    """A program that returns losses and a pytree of other results (state and aux).

    Attributes:
      program: takes leaves of the parameters; returns losses and arrays.
      num_losses: number of its outputs that are losses; 1 for a vector of several
        losses.
      rebuild: takes all outputs of the program; returns the losses and the pytree.
    """

    program: core.ClosedJaxpr
    num_losses: int
    rebuild: Callable[[Sequence[Any]], tuple[Any, Any]]

    def is_marked(self) -> bool:
        """Returns whether the program, or a program inside it, has a mark."""
        eqns = self.program.eqns
        return any(is_mark(eqn) or holds_mark(eqn) for eqn in eqns)

    def run(self, params: PyTree) -> tuple[Any, Any]:
        """Returns the losses and the other results."""
        jaxpr = opened(self.program)
        values = _inputs(self.program, params)
        return self.rebuild(evaluate(jaxpr, jaxpr.eqns, values, jaxpr.outvars))


def trace(function: Callable[[PyTree], tuple[Any, Any]], params: PyTree) -> Traced:
    """Traces a function of the parameters.

    Args:
      function: returns losses, as a list of scalars or a vector, and a pytree, whose
        leaves need not be arrays.
      params: its argument.
    """
    kept: list[Any] = []

    def arrays(params: PyTree) -> tuple[Any, list[Any]]:
        losses, beside = function(params)
        leaves, treedef = jax.tree.flatten(beside)
        kept[:] = treedef, [None if hasattr(x, "dtype") else x for x in leaves]
        return losses, [leaf for leaf in leaves if hasattr(leaf, "dtype")]

    program, (losses, _) = jax.make_jaxpr(arrays, return_shape=True)(params)
    of_beside, still = kept
    of_losses = jax.tree.structure(losses)

    def rebuild(outputs: Sequence[Any]) -> tuple[Any, Any]:
        rest = iter(outputs[of_losses.num_leaves :])
        leaves = [next(rest) if leaf is None else leaf for leaf in still]
        losses = of_losses.unflatten(outputs[: of_losses.num_leaves])
        return losses, of_beside.unflatten(leaves)

    return Traced(program, of_losses.num_leaves, rebuild)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Says which part of the cut program computes each result other than the losses.

    Attributes:
      encoder: variables that the encoder passes on.
      heads: variables that each head passes on, by index of the task; heads without an
        entry pass nothing on.
      rest: equations that compute the other results from these variables.
      returned: variables of the other results; None for a result that is left out.
    """

    encoder: list[Any]
    heads: dict[int, list[Any]]
    rest: list[Any]
    returned: list[Any]


# The plan of calls that use only the losses.
NOTHING = Plan([], {}, [], [])


class Cut:
    """A program, cut at its marks."""

    def __init__(
        self, traced: Traced, num_tasks: int, params: PyTree, still: Sequence[bool]
    ) -> None:
        """Cuts a program that is marked.

        Args:
          traced: the program.
          num_tasks: number of losses.
          params: parameters.
          still: per leaf of `params`, whether it stays the same in all later calls.
            Values that depend only on leaves that stay the same are computed here,
            once.

        Raises:
          ValueError: if a mark is in a place where the program cannot be cut, or the
            losses are a vector whose entries cannot be told apart.
        """
        program = without_calls(traced.program, _is_cut)
        self._rebuild, self._num_losses = traced.rebuild, traced.num_losses
        is_vector = bool(program.out_avals[0].shape)
        if is_vector:
            found = stacked_entries(program, num_tasks)
            if found is None:
                raise ValueError(
                    "`losses` must return a mapping or sequence of scalars, or a "
                    "vector made by jnp.stack of scalars, if a latent is marked. "
                    "Otherwise mtlopt cannot separate the head of one task."
                )
            program, self._losses = found
        else:
            self._losses = program.outvars[:num_tasks]
        self._jaxpr = jaxpr = opened(program)
        self._vector = jaxpr.outvars[0] if is_vector else None
        marks = [eqn for eqn in jaxpr.eqns if is_mark(eqn)]
        _check_once(marks)
        self._trees = [marked_tree(eqn) for eqn in marks]
        self._marked = [var for eqn in marks for var in eqn.outvars]
        self._early = _early(jaxpr.eqns, self._marked)
        eqns = _needed(jaxpr.eqns, [*jaxpr.outvars, *self._marked], effects=True)
        self._values = _inputs(program, params)
        self._eqns = self._run_known([eqn for eqn in eqns if not is_mark(eqn)], still)
        self._operands, self._through = self._without_marks(marks)

    def encode(self, params: PyTree, also: Sequence[Any] = ()) -> tuple[PyTree, Any]:
        """Returns the latent and the variables `also`."""
        wanted = [*self._operands, *also]
        found = self._run(self._through, self._at(params), wanted)
        count = len(self._marked)
        return self._latent(found[:count]), found[count:]

    def head(
        self, task: int, params: PyTree, z: PyTree, also: Sequence[Any] = ()
    ) -> tuple[jax.Array, Any]:
        """Returns the loss of the task with a given index, and the variables `also`."""
        wanted = [self._losses[task], *also]
        loss, *others = self._run(self._eqns, self._at(params, z), wanted)
        if self._vector is not None:
            # The program after the stack treats all entries alike.
            values = self._values | dict.fromkeys(variables(self._losses), loss)
            loss = self._run(self._eqns, values, [self._vector])[0][task]
        return loss, others

    def plan(
        self, tasks: Iterable[int], given_latent: Sequence[bool] | None = None
    ) -> Plan:
        """Plans which part computes each of the function's other results.

        Args:
          tasks: indices of the tasks whose heads run.
          given_latent: one bool per leaf of the parameters: True for leaves of the
            encoder. Pass it if the latent is given, so that the encoder does not run.
            Results that depend on these leaves other than through the latent are then
            left out, and so are results that are computed before the last mark and
            depend on no mark.
        """
        given = [*self._values, *self._marked]
        pieces: dict[Any, list[Any]] = {}
        eqns, left_out = self._eqns, set()
        if given_latent is None:
            pieces[None] = _needed(self._through, self._operands, given)
        else:
            leaves = itertools.compress(self._jaxpr.invars, given_latent)
            eqns, left_out = _apart(eqns, leaves)
            left_out |= self._early
        for i in tasks:
            pieces[i] = _needed(self._eqns, [self._losses[i]], given)
        maker: dict[Any, Any] = {}
        for piece, made in pieces.items():
            for var in (var for eqn in made for var in eqn.outvars):
                maker.setdefault(var, piece)
        returned = [
            None if not isinstance(var, core.Literal) and var in left_out else var
            for var in self._jaxpr.outvars[self._num_losses :]
        ]
        wanted = [var for var in returned if var is not None]
        rest = _needed(eqns, wanted, [*given, *maker], effects=True)
        handed: dict[Any, list[Any]] = {piece: [] for piece in pieces}
        for var in dict.fromkeys(variables([*_reads(rest), *wanted])):
            if var in maker:
                handed[maker[var]].append(var)
        return Plan(handed.pop(None, []), handed, rest, returned)

    def beside(
        self, plan: Plan, params: PyTree, z: PyTree, encoder: Any, heads: Any
    ) -> PyTree:
        """Returns the function's other results.

        Args:
          plan: the plan.
          params: parameters.
          z: the latent.
          encoder: variables that the encoder passed on.
          heads: variables that the heads passed on, in the order of the plan.
        """
        values = self._at(params, z)
        names = itertools.chain(plan.encoder, *plan.heads.values())
        values.update(zip(names, itertools.chain(encoder, *heads), strict=True))
        wanted = [var for var in plan.returned if var is not None]
        found = iter(evaluate(self._jaxpr, plan.rest, values, wanted))
        beside = [None if var is None else next(found) for var in plan.returned]
        return self._rebuild([*[None] * self._num_losses, *beside])[1]

    def _run_known(self, eqns: list[Any], still: Sequence[bool]) -> list[Any]:
        """Runs the equations that depend on no moving leaf, and returns the others."""
        leaves = itertools.compress(self._jaxpr.invars, (not x for x in still))
        known, moving = _apart(eqns, [*leaves, *self._marked])
        others = [
            eqn for eqn in eqns if not eqn.outvars or not moving.isdisjoint(eqn.outvars)
        ]
        known = [eqn for eqn in known if eqn.outvars]
        wanted = [var for eqn in known for var in eqn.outvars]
        found = evaluate(self._jaxpr, known, self._values, wanted)
        self._values.update(zip(wanted, found, strict=True))
        return others

    def _without_marks(self, marks: list[Any]) -> tuple[list[Any], list[Any]]:
        """Returns the marked variables, and the equations with marks left out."""
        behind: dict[Any, Any] = {}

        def operands(eqn: Any) -> list[Any]:
            return [
                var if isinstance(var, core.Literal) else behind.get(var, var)
                for var in eqn.invars
            ]

        for eqn in marks:
            behind.update(zip(eqn.outvars, operands(eqn), strict=True))
        through = [eqn.replace(invars=operands(eqn)) for eqn in self._eqns]
        return [behind[var] for var in self._marked], through

    def _at(self, params: PyTree, z: PyTree = None) -> dict[Any, Any]:
        """Returns the values of parameters, constants and, if given, the latent."""
        leaves = map(jnp.asarray, jax.tree.leaves(params))
        values = self._values | dict(zip(self._jaxpr.invars, leaves, strict=True))
        if z is None:
            return values
        shapes = self._latent([var.aval for var in self._marked])
        if jax.tree.structure(z) != jax.tree.structure(shapes):
            raise ValueError(
                "the latent must have the structure that mtlopt.latent marks, but it "
                f"{tree_mismatch(shapes, z)}."
            )
        for var, leaf in zip(self._marked, jax.tree.leaves(z), strict=True):
            values[var] = leaf = jnp.asarray(leaf)
            aval: Any = var.aval
            if (leaf.shape, leaf.dtype) != (aval.shape, aval.dtype):
                raise ValueError(
                    "a leaf of the latent must have the shape and dtype that "
                    "mtlopt.latent marks for these arguments, "
                    f"{aval.str_short()}, got {jax.typeof(leaf)}."
                )
        return values

    def _latent(self, leaves: Sequence[Any]) -> PyTree:
        """Returns the latent: the marked pytree, or a tuple for several marks."""
        rest = iter(leaves)
        z = tuple(
            tree.unflatten(itertools.islice(rest, tree.num_leaves))
            for tree in self._trees
        )
        return z[0] if len(z) == 1 else z

    def _run(
        self, eqns: list[Any], values: dict[Any, Any], wanted: list[Any]
    ) -> list[Any]:
        """Returns variables by running only the equations that they need."""
        eqns = _needed(eqns, wanted, values)
        outputs = [var for var in variables(wanted) if var not in values]
        piece = self._jaxpr.replace(
            constvars=[],
            invars=list(dict.fromkeys(var for var in _reads(eqns) if var in values)),
            outvars=outputs,
            eqns=eqns,
            debug_info=self._jaxpr.debug_info.with_unknown_names(),
        )
        piece = partial_eval.dce_jaxpr(piece, [True] * len(outputs))[0]
        return evaluate(self._jaxpr, piece.eqns, values, wanted)


def _is_cut(eqn: Any) -> bool:
    """Returns whether to inline a call, which is the case if it contains a mark."""
    if not holds_mark(eqn):
        return False
    if is_call(eqn):
        return True
    name = eqn.primitive.name
    if name.startswith("custom_"):
        raise ValueError(
            "`mtlopt.latent` must not be inside a function that has its own derivative "
            f"rule, got a mark in `{name}`: the rule would be lost. Mark the inputs of "
            "the function, or its results."
        )
    raise ValueError(
        "`mtlopt.latent` must not be inside a loop, a branch or another program that "
        f"cannot be cut, got a mark in `{name}`. Mark its results outside of it."
    )


def _inputs(program: core.ClosedJaxpr, params: PyTree) -> dict[Any, Any]:
    """Returns the values of a program's constants and inputs."""
    values = [*program.consts, *jax.tree.leaves(params)]
    names = [*program.constvars, *program.invars]
    return dict(zip(names, map(jnp.asarray, values), strict=True))


def _needed(
    eqns: Sequence[Any],
    wanted: Iterable[Any],
    given: Iterable[Any] = (),
    effects: bool = False,
) -> list[Any]:
    """Returns the equations that compute some variables from others.

    Args:
      eqns: equations of a program.
      wanted: the variables to compute.
      given: variables that are known.
      effects: whether equations that return nothing, such as `jax.debug.print`, are
        included.
    """
    given = set(given)
    missing = set(variables(wanted)) - given
    chosen = []
    for eqn in reversed(eqns):
        returns_nothing = effects and not eqn.outvars
        if returns_nothing or not missing.isdisjoint(eqn.outvars):
            chosen.append(eqn)
            missing |= set(variables(eqn.invars)) - given
    return chosen[::-1]


def _early(eqns: Sequence[Any], marked: Sequence[Any]) -> set[Any]:
    """Returns variables made before the last mark that depend on no marked variable."""
    last = max(i for i, eqn in enumerate(eqns) if is_mark(eqn))
    _, depends = _apart(eqns[:last], marked)
    return {var for eqn in eqns[:last] for var in eqn.outvars} - depends


def _apart(eqns: Sequence[Any], sources: Iterable[Any]) -> tuple[list[Any], set[Any]]:
    """Returns equations that do not depend on `sources`, and the variables that do."""
    depends, others = set(sources), []
    for eqn in eqns:
        if depends.isdisjoint(variables(eqn.invars)):
            others.append(eqn)
        else:
            depends.update(eqn.outvars)
    return others, depends


def _reads(eqns: Sequence[Any]) -> Iterable[Any]:
    return (var for eqn in eqns for var in variables(eqn.invars))


def _check_once(marks: Sequence[Any]) -> None:
    """Raises if an array is marked twice, as by a function that each loss calls."""
    seen: set[Any] = set()
    for mark in marks:
        marked = set(variables(mark.invars))
        if seen & marked:
            raise ValueError(
                "an array is marked twice by mtlopt.latent. Mark it once, and pass the "
                "marked array to all losses. If each task marked the array for itself, "
                "each task would have its own latent, and no two gradients would "
                "conflict there."
            )
        seen |= marked
