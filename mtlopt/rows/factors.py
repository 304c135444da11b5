"""Finds the weight gradients that are matrix products, in the jaxpr of a pullback.

The kernel of a dense layer has the gradient `X^T D`. `X` is the input of the layer, and
`D` is the cotangent of its output. In the program of the pullback (its jaxpr), this
gradient is a contraction of two arrays: `D` depends on the cotangent that the pullback
takes, `X` does not. This dependence identifies `X` and `D`, whichever library wrote the
layer. No part of the forward pass runs or is interpreted again, so the user's own
derivative rules still apply.

If a `lax.scan` over layers has such a contraction in its body, the scan is changed to
return the factors of all layers as well. `jax.checkpoint` is treated like any other
part of the program.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from mtlopt._jaxprs import (
    called,
    evaluate,
    is_call,
    opened,
    read_variable,
    variables,
)
from mtlopt.linalg.dtypes import solver_dtype

# Takes the sizes of a product (positions, inputs, outputs). If it returns True, the
# product is not computed.
Accept = Callable[[int, int, int], bool]

# These operations may follow the contraction: they only change the order or type of the
# numbers.
_REARRANGE = ("transpose", "reshape", "copy", "squeeze", "convert_element_type")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a matrix product `x^T d` becomes a leaf.

    Attributes:
      layers: axes of both factors that are not contracted, such as layers of a loop.
      x_shape: other axes of `x` that are not contracted.
      d_shape: other axes of `d` that are not contracted.
      x_first: whether the axes of `x` come first.
      steps: later operations that only rearrange numbers: for each, its primitive, its
        parameters, and the number of loops that map it over their layers.
    """

    layers: tuple[int, ...]
    x_shape: tuple[int, ...]
    d_shape: tuple[int, ...]
    x_first: bool
    steps: tuple[tuple[Any, tuple[tuple[str, Any], ...], int], ...] = ()

    def finish(self, matrix: jax.Array) -> jax.Array:
        """Returns the leaf from `x^T d`, in the type of the product."""
        shape = self.x_shape + self.d_shape
        if not self.x_first:
            matrix, shape = jnp.swapaxes(matrix, -1, -2), self.d_shape + self.x_shape
        value = matrix.reshape(self.layers + shape)
        for primitive, params, loops in self.steps:
            step = functools.partial(primitive.bind, **dict(params))
            for _ in range(loops):
                step = jax.vmap(step)
            value = step(value)
        return value

    def then(self, eqn: Any) -> "Layout":
        """Returns the layout after one more equation."""
        step = (eqn.primitive, tuple(sorted(eqn.params.items())), 0)
        return dataclasses.replace(self, steps=(*self.steps, step))

    def in_loop(self, length: int) -> "Layout":
        """Returns the layout of the leaf that a loop stacks over its iterations."""
        steps = tuple((name, params, loops + 1) for name, params, loops in self.steps)
        return dataclasses.replace(self, layers=(length, *self.layers), steps=steps)


class Product(NamedTuple):
    """A gradient that contracts `x` with `d`; only `d` depends on the cotangent.

    Attributes:
      layout: how the gradient is made from the product.
      x_axes: axes of `x`: the axes of layers and the contracted axes (the positions).
      d_axes: the matching axes of `d`, in the same order.
      sizes: positions, inputs and outputs of one layer.
      precision: precision of the contraction.
    """

    layout: Layout
    x_axes: tuple[tuple[int, ...], tuple[int, ...]]
    d_axes: tuple[tuple[int, ...], tuple[int, ...]]
    sizes: tuple[int, int, int]
    precision: Any

    def x_matrix(self, value: jax.Array) -> jax.Array:
        """Returns `x` as `[positions, inputs]`, with one leading axis of layers."""
        return _as_matrix(value, *self.x_axes)

    def d_matrix(self, value: jax.Array) -> jax.Array:
        """Returns `d` as `[positions, outputs]`, with one leading axis of layers."""
        return _as_matrix(value, *self.d_axes)

    def in_loop(self, length: int) -> "Product":
        """Returns the product over all iterations of a loop, as stacked factors."""

        def shift(axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Any:
            layers, positions = (tuple(i + 1 for i in some) for some in axes)
            return (0, *layers), positions

        return self._replace(
            layout=self.layout.in_loop(length),
            x_axes=shift(self.x_axes),
            d_axes=shift(self.d_axes),
        )


class Pullback:
    """The program of a pullback, with the factors of gradients that are products.

    Attributes:
      shapes: shapes and types of the leaves.
      moves: per leaf, whether its gradient depends on the cotangent at all.
      products: per leaf, its gradient as a `Product`, or None if it is not a product.
      factor_of: per leaf, the leaf whose factor `d` is this leaf's gradient, or None.
    """

    def __init__(self, pull: Callable[..., Any], cotangent: Any) -> None:
        """Reads the program.

        Args:
          pull: function from a cotangent to the leaves.
          cotangent: a cotangent, for its shapes.
        """
        program, shapes = jax.make_jaxpr(pull, return_shape=True)(cotangent)
        self.shapes = jax.tree.leaves(shapes)
        self.moves: list[bool] = []
        self.products: list[Product | None] = []
        self.factor_of: list[int | None] = []

        def run(*cotangent: jax.Array) -> Any:
            found = _run(program, [_Value(one, True) for one in cotangent])
            factors = [value.factors for value in found]
            places = {id(pair.d): i for i, pair in enumerate(factors) if pair}
            self.moves = [value.moves for value in found]
            self.products = [pair and pair.product for pair in factors]
            self.factor_of = [places.get(id(value.array)) for value in found]
            pairs = [pair for pair in factors if pair is not None]
            return (
                [value.array for value in found],
                [pair.x for pair in pairs],
                [pair.d for pair in pairs],
            )

        self._program = jax.make_jaxpr(run)(*program.in_avals)

    def program(
        self, rows: Sequence[int], factors: Sequence[int]
    ) -> tuple[core.Jaxpr, list[Any]]:
        """Returns the program of some gradients, and the values of its constants.

        Args:
          rows: leaves whose gradients the program returns.
          factors: leaves for which the program returns all `x`, then all `d`, in the
            order of the leaves.
        """
        are_products = [i for i, p in enumerate(self.products) if p is not None]
        some = [i in factors for i in are_products]
        wanted = [i in rows for i in range(len(self.products))] + some + some
        jaxpr = opened(self._program)
        jaxpr = jaxpr.replace(
            eqns=[eqn for eqn in jaxpr.eqns if eqn.outvars],  # others only print
            debug_info=jaxpr.debug_info.with_unknown_names(),
        )
        return partial_eval.dce_jaxpr(jaxpr, wanted, True)[0], self._program.consts

    def run(
        self, rows: Sequence[int], factors: Sequence[int], cotangent: Any
    ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """Returns gradients, and the matrices `x` and `d` of products.

        Args:
          rows: leaves, in order.
          factors: leaves that are products, in order.
          cotangent: the cotangent to pull back.
        """
        run = core.jaxpr_as_fun(core.ClosedJaxpr(*self.program(rows, factors)))
        out = run(*jax.tree.leaves(cotangent))
        count, half = len(rows), len(rows) + len(factors)
        products = [p for i in factors if (p := self.products[i]) is not None]
        xs, ds = out[count:half], out[half:]
        xs = [p.x_matrix(x) for p, x in zip(products, xs, strict=True)]
        ds = [p.d_matrix(d) for p, d in zip(products, ds, strict=True)]
        return out[:count], xs, ds


class _Factors(NamedTuple):
    """The arrays of a product: `x` does not depend on the cotangent, `d` does."""

    x: jax.Array
    d: jax.Array
    product: Product

    def then(self, eqn: Any) -> "_Factors":
        layout = self.product.layout.then(eqn)
        return self._replace(product=self.product._replace(layout=layout))


class _Value(NamedTuple):
    """A value of the program, and whether it depends on the cotangent."""

    array: Any
    moves: bool = False
    factors: _Factors | None = None


def _run(program: core.ClosedJaxpr, args: Sequence[_Value]) -> list[_Value]:
    """Runs a program, with the programs that it calls written out."""
    jaxpr = opened(program)
    values = {
        v: _Value(c) for v, c in zip(jaxpr.constvars, program.consts, strict=True)
    }
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(var: Any) -> _Value:
        if isinstance(var, core.Literal):
            return _Value(read_variable({}, var))
        return values[var]

    for eqn in jaxpr.eqns:
        operands = [read(var) for var in eqn.invars]
        moves = any(operand.moves for operand in operands)
        if is_call(eqn):
            results = _run(called(eqn), operands)
        elif eqn.primitive.name == "scan" and moves and not eqn.effects:
            results = _run_loop(eqn, operands)
        else:
            known = {v: values[v].array for v in variables(eqn.invars)}
            arrays = evaluate(jaxpr, [eqn], known, eqn.outvars)
            factors = _factors(eqn, operands)
            moves = moves or bool(eqn.effects)
            results = [_Value(array, moves, factors) for array in arrays]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _run_loop(eqn: Any, operands: Sequence[_Value]) -> list[_Value]:
    """Runs a cotangent-dependent `lax.scan`, and marks its whole carry as dependent."""
    params = eqn.params
    first, count = params["num_consts"], params["num_carry"]
    arrays = [operand.array for operand in operands]
    moves = [operand.moves for operand in operands]
    moves[first : first + count] = [True] * count
    factors: list[Any] = []

    def body(state: Any, slices: Any) -> Any:
        values = map(_Value, [*arrays[:first], *state, *slices], moves)
        out = _run(params["jaxpr"], list(values))
        factors[:] = [value.factors for value in out[count:]]
        made, stacks = out[:count], out[count:]
        return [v.array for v in made], (
            [v.array for v in stacks],
            [pair and pair.x for pair in factors],
            [pair and pair.d for pair in factors],
        )

    def run() -> Any:
        return jax.lax.scan(
            body,
            arrays[first : first + count],
            arrays[first + count :],
            params["length"],
            params["reverse"],
            params["unroll"],
        )

    state, (stacks, _, ds) = run()
    _, (_, xs, _) = run()  # alone, because no part of it depends on the cotangent
    found = [
        pair and _Factors(x, d, pair.product.in_loop(params["length"]))
        for pair, x, d in zip(factors, xs, ds, strict=True)
    ]
    return [
        *(_Value(array, True) for array in state),
        *(_Value(array, True, pair) for array, pair in zip(stacks, found, strict=True)),
    ]


def _factors(eqn: Any, operands: Sequence[_Value]) -> _Factors | None:
    """Returns the factors of an equation's result, if it is a product."""
    name, first = eqn.primitive.name, operands[0].factors if operands else None
    if name == "dot_general":
        return _contraction(eqn, *operands)
    if name in _REARRANGE and first is not None:
        return first if name == "convert_element_type" else first.then(eqn)
    # If a product is scaled by a number that does not depend on the cotangent, it is
    # still a product.
    for place in {"mul": (0, 1), "div": (1,)}.get(name, ()):
        number, pair = operands[place], operands[1 - place].factors
        if pair is not None and not number.moves and number.array.shape == ():
            x = pair.x.astype(solver_dtype([pair.x]))
            scaled = eqn.primitive.bind(x, jnp.full_like(x, number.array))
            return pair._replace(x=scaled)
    return None


def _contraction(eqn: Any, left: _Value, right: _Value) -> _Factors | None:
    if left.moves == right.moves or eqn.params.get("out_sharding") is not None:
        return None
    contracted, layers = eqn.params["dimension_numbers"]
    sides = [
        (value.array, (tuple(layer_axes), tuple(axes)))
        for value, layer_axes, axes in zip(
            (left, right), layers, contracted, strict=True
        )
    ]
    (x, x_axes), (d, d_axes) = sides if right.moves else sides[::-1]
    x_shape, d_shape = _others(x.shape, x_axes), _others(d.shape, d_axes)
    layer_sizes, positions = (tuple(x.shape[i] for i in axes) for axes in x_axes)
    layout = Layout(layer_sizes, x_shape, d_shape, x_first=right.moves)
    sizes = math.prod(positions), math.prod(x_shape), math.prod(d_shape)
    product = Product(layout, x_axes, d_axes, sizes, eqn.params["precision"])
    return _Factors(x, d, product)


def _others(shape: tuple[int, ...], axes: Any) -> tuple[int, ...]:
    return tuple(size for i, size in enumerate(shape) if i not in axes[0] + axes[1])


def _as_matrix(
    value: jax.Array, layers: tuple[int, ...], axes: tuple[int, ...]
) -> jax.Array:
    """Returns `[contracted, others]`, or `[layers, contracted, others]`."""
    others = tuple(i for i in range(value.ndim) if i not in layers + axes)
    sizes = [
        math.prod(value.shape[i] for i in group) for group in (layers, axes, others)
    ]
    value = value.transpose(*layers, *axes, *others)
    return value.reshape(sizes if layers else sizes[1:])
