"""Which input leaves an output of a traced function depends on.

The answer comes from the program (dead-code elimination on the jaxpr), not from
numbers, so a gradient that happens to be zero does not hide a dependency.
"""

from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def used_inputs(jaxpr: core.Jaxpr, outputs: list[bool]) -> list[bool]:
    """Returns, per input of `jaxpr`, whether the marked outputs depend on it."""
    return partial_eval.dce_jaxpr(jaxpr, outputs)[1]


def inputs_of_entries(jaxpr: core.Jaxpr, num_entries: int) -> list[list[bool]] | None:
    """Splits one vector-valued output into its entries and finds each one's inputs.

    Args:
      jaxpr: a program whose only output is a vector of `num_entries`.
      num_entries: length of the vector.

    Returns:
      Per entry, which inputs it depends on; or None if the program does not build the
      vector by stacking scalars, so that its entries cannot be told apart.
    """
    entries = _entries(jaxpr, jaxpr.outvars[0], num_entries)
    if entries is None:
        return None
    rows = []
    for entry in entries:
        program = jaxpr.replace(
            outvars=entry,
            debug_info=jaxpr.debug_info.with_unknown_names(),
        )
        rows.append(used_inputs(program, [True] * len(entry)))
    return rows


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
        rows = []
        for entry in found:
            program = inner.replace(
                outvars=entry, debug_info=inner.debug_info.with_unknown_names()
            )
            used = used_inputs(program, [True] * len(entry))
            operands = zip(producer.invars, used, strict=True)
            rows.append(_variables([operand for operand, keep in operands if keep]))
        return rows
    return None


def _variables(operands: list[Any]) -> list[core.Var]:
    return [operand for operand in operands if not isinstance(operand, core.Literal)]
