"""Finds out what a traced function reads and does, and runs parts of its program.

The answers come from the program, not from numbers: dead-code elimination shows which
inputs an output depends on. So a gradient that happens to be zero does not hide a
dependency.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

PyTree = Any


def opened(program: core.ClosedJaxpr) -> core.Jaxpr:
    """Returns a program without the values of its constants.

    From JAX 0.12 on, `ClosedJaxpr` and `Jaxpr` are the same class, which keeps the
    attribute `jaxpr` for older code only.
    """
    found: Any = getattr(program, "jaxpr", program)
    return found


def used_leaves(
    function: Callable[..., Any], params: PyTree, *others: PyTree
) -> list[bool]:
    """Returns, per leaf of `params`, whether `function(params, *others)` needs it."""
    program = opened(jax.make_jaxpr(function)(params, *others))
    used = _used_inputs(program, [True] * len(program.outvars))
    return used[: len(jax.tree.leaves(params))]


def used_leaves_of_entries(
    function: Callable[..., Any], params: PyTree, num_entries: int
) -> list[list[bool]] | None:
    """Returns, per entry of the function's result, which leaves of `params` it needs.

    Args:
      function: returns a list of `num_entries` scalars, or a vector of that length.
      params: its argument.
      num_entries: number of entries.

    Returns:
      For each entry, which leaves of `params` it needs. None if the function returns a
      vector that is not stacked from scalars, because its entries cannot be told apart.
    """
    program = jax.make_jaxpr(function)(params)
    scalars = num_entries == 1 or not program.out_avals[0].shape
    if len(program.out_avals) == num_entries and scalars:
        return [
            _used_inputs(opened(program), [i == j for j in range(num_entries)])
            for i in range(num_entries)
        ]
    found = stacked_entries(program, num_entries)
    if found is None:
        return None
    program, entries = found
    return [_used_by(opened(program), list(variables([entry]))) for entry in entries]


def split_arrays(tree: PyTree) -> tuple[list[Any], Callable[[list[Any]], PyTree]]:
    """Returns the arrays of a tree, and the tree as a function of them.

    A leaf that is not an array stays in the tree, because it cannot be an argument of a
    traced function.
    """
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]

    def join(arrays: list[Any]) -> PyTree:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return treedef.unflatten(filled)

    return [leaves[i] for i in places], join


def dependent_outputs(
    function: Callable[..., Any], *args: PyTree
) -> tuple[list[bool], list[Any]]:
    """Returns, per leaf of `function(*args)`, whether its numbers depend on `args`.

    The second value holds the shapes of these leaves.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    program, outputs = opened(closed), range(len(closed.outvars))
    depends = [any(_used_inputs(program, [i == j for j in outputs])) for i in outputs]
    return depends, jax.tree.leaves(shapes)


def forwarded_inputs(function: Callable[..., Any], tree: PyTree) -> list[int | None]:
    """Returns, per leaf of `function(tree)`, the index of the same leaf of `tree`.

    The index is None if the leaf is not a leaf of `tree`.
    """
    return _forwarded(opened(jax.make_jaxpr(function)(tree)))


def _forwarded(program: core.Jaxpr) -> list[int | None]:
    places = {variable: i for i, variable in enumerate(program.invars)}

    def place(operand: Any) -> int | None:
        return None if isinstance(operand, core.Literal) else places.get(operand)

    for eqn in program.eqns:
        if eqn.primitive.name in _SAME_NUMBERS:
            found = place(eqn.invars[0])
            if found is not None:
                places[eqn.outvars[0]] = found
        if not is_call(eqn):
            continue
        sources = _forwarded(opened(called(eqn)))
        for variable, source in zip(eqn.outvars, sources, strict=True):
            found = None if source is None else place(eqn.invars[source])
            if found is not None:
                places[variable] = found
    return [place(variable) for variable in program.outvars]


_SAME_NUMBERS = ("copy", "copy_p", "sharding_constraint", "stop_gradient")


def remembered_leaves(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    inputs: PyTree,
    state: PyTree,
) -> list[bool]:
    """Returns, per leaf of `state`, whether it passes `inputs` on to the next result.

    Args:
      function: takes inputs and state; returns a result and the next state.
      inputs: its first argument, or shapes.
      state: its second argument.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(inputs, state)
    program = opened(closed)
    num_inputs, num_results = (
        len(jax.tree.leaves(inputs)),
        len(jax.tree.leaves(shapes[0])),
    )
    num_outputs = len(program.outvars)

    def needed(first: int, last: int) -> list[bool]:
        outputs = [first <= i < last for i in range(num_outputs)]
        return _used_inputs(program, outputs)

    read = needed(0, num_results)[num_inputs:]
    written = [
        any(needed(i, i + 1)[:num_inputs]) for i in range(num_results, num_outputs)
    ]
    return [a and b for a, b in zip(read, written, strict=True)]


def _used_inputs(program: core.Jaxpr, outputs: list[bool]) -> list[bool]:
    # No output depends on an effect without a result, such as `jax.debug.print`.
    eqns = [eqn for eqn in program.eqns if eqn.outvars]
    return partial_eval.dce_jaxpr(program.replace(eqns=eqns), outputs)[1]


def _used_by(program: core.Jaxpr, variables: list[core.Var]) -> list[bool]:
    """Returns which inputs of `program` the given inner variables depend on."""
    debug_info = program.debug_info.with_unknown_names()
    program = program.replace(outvars=variables, debug_info=debug_info)
    return _used_inputs(program, [True] * len(variables))


# Element-wise primitives of one array, which keep every entry in its place.
_TRANSPARENT = ("convert_element_type", "copy", "neg", "reduce_precision")
_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint")


def stacked_entries(
    program: core.ClosedJaxpr, num_entries: int
) -> tuple[core.ClosedJaxpr, list[Any]] | None:
    """Returns the variables that are stacked into the program's first output.

    The result is a pair: the program, in which the call that stacks the variables is
    inlined, and the variables. Returns None if the output is not a stack of variables.
    """
    vector = program.outvars[0]
    if num_entries == 1:
        return program, [vector]
    makers = {var: eqn for eqn in program.eqns for var in eqn.outvars}
    maker = makers.get(vector)
    while maker is not None and maker.primitive.name in _TRANSPARENT:
        maker = makers.get(maker.invars[0])
    if maker is None:
        return None
    if is_call(maker):
        return stacked_entries(
            without_calls(program, lambda eqn: eqn is maker), num_entries
        )
    stacks = maker.primitive.name in ("stack", "concatenate")
    if not stacks or len(maker.invars) != num_entries:
        return None
    return program, list(maker.invars)


def convolves(function: Callable[..., Any], *args: PyTree) -> bool:
    """Returns whether `function` runs a `lax` convolution on the default platform."""
    program = opened(jax.make_jaxpr(function)(*args))
    return _convolves(program, jax.default_backend())


def _convolves(program: core.Jaxpr, platform: str) -> bool:
    for eqn in program.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            return True
        inner = list(core.jaxprs_in_params(eqn.params))
        platforms = eqn.params.get("branches_platforms")
        if platforms is not None:  # lax.platform_dependent: one branch is compiled
            chosen = (p is None or platform in p for p in platforms)
            inner = [inner[list(chosen).index(True)]]
        if any(_convolves(jaxpr, platform) for jaxpr in inner):
            return True
    return False


def evaluate(
    jaxpr: core.Jaxpr, eqns: Sequence[Any], values: dict[Any, Any], wanted: list[Any]
) -> list[Any]:
    """Returns variables of a program by running some of its equations.

    Args:
      jaxpr: the program.
      eqns: the equations.
      values: the values that the equations read, by variable.
      wanted: variables that are in `values` or that the equations compute.
    """
    made = {var for eqn in eqns for var in eqn.outvars}
    reads = dict.fromkeys(
        var for eqn in eqns for var in variables(eqn.invars) if var not in made
    )
    outputs = [var for var in variables(wanted) if var in made]
    piece = jaxpr.replace(
        constvars=[],
        invars=list(reads),
        outvars=outputs,
        eqns=list(eqns),
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    run = core.jaxpr_as_fun(core.ClosedJaxpr(piece, []))
    results = zip(outputs, run(*[values[var] for var in reads]), strict=True)
    values = values | dict(results)
    return [read_variable(values, var) for var in wanted]


def variables(operands: Iterable[Any]) -> Iterator[Any]:
    """Returns the operands that are not literals."""
    return (var for var in operands if not isinstance(var, core.Literal))


def is_call(eqn: Any) -> bool:
    """Returns whether an equation runs another program once, as `jax.jit` does."""
    return eqn.primitive.name in _CALLS


def called(eqn: Any) -> core.ClosedJaxpr:
    """Returns the program that a call runs."""
    program = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(program, core.ClosedJaxpr):
        return program
    return core.ClosedJaxpr(program, [])


def without_calls(
    program: core.ClosedJaxpr, expand: Callable[[Any], bool] = is_call
) -> core.ClosedJaxpr:
    """Returns the program with inlined copies of the programs that it calls.

    Args:
      program: the program.
      expand: decides whether a call is inlined, also for calls inside calls.
    """

    def run(program: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        jaxpr = opened(program)
        values = dict(zip(jaxpr.constvars, program.consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            if expand(eqn):
                args = [read_variable(values, var) for var in eqn.invars]
                results = run(called(eqn), args)
            else:
                results = evaluate(jaxpr, [eqn], values, eqn.outvars)
            values.update(zip(eqn.outvars, results, strict=True))
        return [read_variable(values, var) for var in jaxpr.outvars]

    if not any(expand(eqn) for eqn in program.eqns):
        return program
    return jax.make_jaxpr(lambda *args: run(program, args))(*program.in_avals)


def read_variable(values: dict[Any, Any], var: Any) -> Any:
    if isinstance(var, core.Literal):
        aval: Any = var.aval
        return jnp.asarray(var.val, aval.dtype)
    return values[var]
