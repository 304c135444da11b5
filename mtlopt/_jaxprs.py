"""What a traced function reads and does, read off its program.

The answers come from the program (which inputs an output depends on by dead-code
elimination), not from numbers, so a gradient that happens to be zero does not hide a
dependency.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

PyTree = Any


def used_leaves(
    function: Callable[..., Any], params: PyTree, *others: PyTree
) -> list[bool]:
    """Returns, per leaf of `params`, whether `function(params, *others)` needs it."""
    program = jax.make_jaxpr(function)(params, *others).jaxpr
    used = _used_inputs(program, [True] * len(program.outvars))
    return used[: len(jax.tree.leaves(params))]


def used_leaves_of_entries(
    function: Callable[..., Any], params: PyTree, num_entries: int
) -> list[list[bool]] | None:
    """The same for every entry of what `function` returns.

    Args:
      function: returns a list of `num_entries` scalars, or a vector of as many.
      params: its argument.
      num_entries: number of entries.

    Returns:
      Per entry, which leaves of `params` it needs; None if the function returns a
      vector that it does not build by stacking scalars, so that its entries cannot be
      told apart.
    """
    program = jax.make_jaxpr(function)(params).jaxpr
    scalars = num_entries == 1 or not program.outvars[0].aval.shape
    if len(program.outvars) == num_entries and scalars:
        return [
            _used_inputs(program, [i == j for j in range(num_entries)])
            for i in range(num_entries)
        ]
    entries = _entries(program, program.outvars[0], num_entries)
    if entries is None:
        return None
    return [_used_by(program, entry) for entry in entries]


def dependent_outputs(
    function: Callable[..., Any], *args: PyTree
) -> tuple[list[bool], list[Any]]:
    """Returns, per leaf of `function(*args)`, whether its numbers depend on `args`.

    The second value are the shapes of these leaves.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    outputs = range(len(closed.jaxpr.outvars))
    depends = [
        any(_used_inputs(closed.jaxpr, [i == j for j in outputs])) for i in outputs
    ]
    return depends, jax.tree.leaves(shapes)


def forwarded_inputs(function: Callable[..., Any], tree: PyTree) -> list[int | None]:
    """Returns, per leaf of `function(tree)`, which leaf of `tree` it is, or None."""
    return _forwarded(jax.make_jaxpr(function)(tree).jaxpr)


def _forwarded(program: core.Jaxpr) -> list[int | None]:
    places = {variable: i for i, variable in enumerate(program.invars)}

    def place(operand: Any) -> int | None:
        return None if isinstance(operand, core.Literal) else places.get(operand)

    for eqn in program.eqns:
        if eqn.primitive.name not in (*_CALLS, "checkpoint", "closed_call"):
            continue
        (inner,) = core.jaxprs_in_params(eqn.params)
        sources = _forwarded(inner)
        for variable, source in zip(eqn.outvars, sources, strict=True):
            found = None if source is None else place(eqn.invars[source])
            if found is not None:
                places[variable] = found
    return [place(variable) for variable in program.outvars]


def remembered_leaves(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    inputs: PyTree,
    state: PyTree,
) -> list[bool]:
    """Returns, per leaf of `state`, whether it carries `inputs` to the next result.

    Args:
      function: from inputs and state to a result and the next state.
      inputs: its first argument, or shapes.
      state: its second argument.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(inputs, state)
    num_inputs, num_results = (
        len(jax.tree.leaves(inputs)),
        len(jax.tree.leaves(shapes[0])),
    )
    num_outputs = len(program.jaxpr.outvars)

    def needed(first: int, last: int) -> list[bool]:
        outputs = [first <= i < last for i in range(num_outputs)]
        return _used_inputs(program.jaxpr, outputs)

    read = needed(0, num_results)[num_inputs:]
    written = [
        any(needed(i, i + 1)[:num_inputs]) for i in range(num_results, num_outputs)
    ]
    return [a and b for a, b in zip(read, written, strict=True)]


def _used_inputs(program: core.Jaxpr, outputs: list[bool]) -> list[bool]:
    # Nothing depends on an effect without a result, such as `jax.debug.print`.
    eqns = [eqn for eqn in program.eqns if eqn.outvars]
    return partial_eval.dce_jaxpr(program.replace(eqns=eqns), outputs)[1]


def _used_by(program: core.Jaxpr, variables: list[core.Var]) -> list[bool]:
    """Returns which inputs of `program` some of its inner variables depend on."""
    debug_info = program.debug_info.with_unknown_names()
    program = program.replace(outvars=variables, debug_info=debug_info)
    return _used_inputs(program, [True] * len(variables))


# Element-wise primitives of one array, through which entries keep their place.
_TRANSPARENT = ("convert_element_type", "copy", "neg", "reduce_precision")
_CALLS = ("jit", "pjit")


def _entries(
    jaxpr: core.Jaxpr, vector: Any, num_entries: int
) -> list[list[core.Var]] | None:
    """Returns, per entry of `vector`, the variables of `jaxpr` it is made of."""
    producer = next((eqn for eqn in jaxpr.eqns if vector in eqn.outvars), None)
    if producer is None:
        return None
    name = producer.primitive.name
    if name in _TRANSPARENT:
        return _entries(jaxpr, producer.invars[0], num_entries)
    if name in ("stack", "concatenate") and len(producer.invars) == num_entries:
        return [_variables([operand]) for operand in producer.invars]
    if name in _CALLS:
        inner = producer.params["jaxpr"].jaxpr
        output = inner.outvars[producer.outvars.index(vector)]
        found = _entries(inner, output, num_entries)
        if found is None:
            return None
        return [
            _variables(
                [
                    operand
                    for operand, used in zip(
                        producer.invars, _used_by(inner, entry), strict=True
                    )
                    if used
                ]
            )
            for entry in found
        ]
    return None


def _variables(operands: list[Any]) -> list[core.Var]:
    return [operand for operand in operands if not isinstance(operand, core.Literal)]


def convolves(function: Callable[..., Any], *args: PyTree) -> bool:
    """Returns whether `function` runs a `lax` convolution on the default platform."""
    program = jax.make_jaxpr(function)(*args).jaxpr
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
