"""Weight gradients that are products, read off the program of a pullback.

A dense layer's kernel has the gradient `X^T D`, with `X` what the layer read and `D`
the cotangent of what it returned. In the program of the pullback that is one
contraction of an array that does not depend on the cotangent with one that does: `X`
and `D` are found there, whatever library wrote the layer. Nothing of the forward pass
is run or interpreted again, so the user's own derivative rules stay as they are.

A `lax.scan` over layers has such a contraction in its body, and `jax.checkpoint` is a
part of the program like any other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from mtlopt._jaxprs import without_calls
from mtlopt.linalg.dtypes import solver_dtype

# From positions, inputs and outputs of a product to whether it is left undone.
Accept = Callable[[int, int, int], bool]

# These may follow the contraction: the same numbers in another order or type.
_REARRANGE = ("transpose", "reshape", "copy", "squeeze", "convert_element_type")


class Product(NamedTuple):
    """A gradient as a contraction: variables of one program, and their axes.

    Attributes:
      x: the factor that does not depend on the cotangent.
      d: the factor that does.
      x_batch: axes of `x` that are no part of the contraction, but of both factors.
      d_batch: the same of `d`.
      x_axes: contracted axes of `x`, the positions.
      d_axes: the same of `d`, in the same order.
      x_first: whether the result has the axes of `x` before those of `d`.
      eqn: the contraction.
      steps: equations from its result to the gradient.
      scales: numbers that multiply the result, or divide it: pairs of a variable that
        does not depend on the cotangent and the primitive.
    """

    x: Any
    d: Any
    x_batch: tuple[int, ...]
    d_batch: tuple[int, ...]
    x_axes: tuple[int, ...]
    d_axes: tuple[int, ...]
    x_first: bool
    eqn: Any
    steps: tuple[Any, ...]
    scales: tuple[tuple[Any, Any], ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Positions, inputs and outputs."""
        positions = math.prod(self.x.aval.shape[i] for i in self.x_axes)
        layers = math.prod(self.x.aval.shape[i] for i in self.x_batch)
        both = max(positions * layers, 1)
        return positions, self.x.aval.size // both, self.d.aval.size // both

    @property
    def precision(self) -> Any:
        """Of the contraction."""
        return self.eqn.params["precision"]

    def x_matrix(self, value: jax.Array, scales: Sequence[Any]) -> jax.Array:
        """Returns `x` as `[positions, inputs]`, with one axis of layers before.

        Args:
          value: of `x`.
          scales: values of the variables of `scales`.
        """
        value = _as_matrix(value, self.x_batch, self.x_axes)
        for (_, primitive), number in zip(self.scales, scales, strict=True):
            wide = value.astype(solver_dtype([value]))
            value = primitive.bind(wide, jnp.full_like(wide, number))
        return value

    def d_matrix(self, value: jax.Array) -> jax.Array:
        """Returns `d` as `[positions, outputs]`, with one axis of layers before."""
        return _as_matrix(value, self.d_batch, self.d_axes)

    def finish(self, matrix: jax.Array) -> jax.Array:
        """Returns the gradient from `x^T d`, `[inputs, outputs]`."""
        x, d = self.x.aval.shape, self.d.aval.shape
        batch = [x[i] for i in self.x_batch]
        x_free = _others(x, self.x_batch + self.x_axes)
        d_free = _others(d, self.d_batch + self.d_axes)
        if not self.x_first:
            matrix = jnp.swapaxes(matrix, -1, -2)
            x_free, d_free = d_free, x_free
        return _rearrange(matrix.reshape(batch + x_free + d_free), self.steps)


class Looped(NamedTuple):
    """The same in the body of a `lax.scan`, whose results are stacked.

    Attributes:
      eqn: the loop.
      inner: the product in its body.
      steps: equations from the stack to the gradient.
    """

    eqn: Any
    inner: "Product | Looped"
    steps: tuple[Any, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Positions, inputs and outputs of one layer."""
        return self.inner.sizes

    @property
    def precision(self) -> Any:
        """Of the contraction."""
        return self.inner.precision

    @property
    def length(self) -> int:
        """Number of layers."""
        return self.eqn.params["length"]

    def finish(self, matrix: jax.Array) -> jax.Array:
        """Returns the gradient from `x^T d` of all layers."""
        each = matrix.reshape(self.length, -1, *matrix.shape[-2:])
        if isinstance(self.inner, Product) and not self.inner.x_batch:
            each = each[:, 0]
        return _rearrange(jax.vmap(self.inner.finish)(each), self.steps)


Found = Product | Looped


def as_product(found: Found | None) -> Product | None:
    """Returns a product that is in no loop; None for others."""
    return found if isinstance(found, Product) else None


def as_looped(found: Found | None) -> Looped | None:
    """Returns a product in a loop; None for others."""
    return found if isinstance(found, Looped) else None


class Program:
    """A program without calls of other programs, and what of it moves.

    Attributes:
      jaxpr: the program.
      consts: values of its constants.
      moving: variables that depend on the inputs of which `moves` is true.
      moves: per input.
      bodies: by the `id` of an equation, the bodies of loops that move.
    """

    def __init__(self, program: core.ClosedJaxpr, moves: Sequence[bool]) -> None:
        self.jaxpr, self.consts = program.jaxpr, program.consts
        self.moves = list(moves)
        self.moving = {
            var for var, moves in zip(self.jaxpr.invars, moves, strict=True) if moves
        }
        self.bodies: dict[int, Program] = {}
        for eqn in self.jaxpr.eqns:
            inputs = [self.is_moving(var) for var in eqn.invars]
            if eqn.effects or any(inputs):
                self.moving.update(eqn.outvars)
                if eqn.primitive.name == "scan":
                    self.bodies[id(eqn)] = _loop_body(eqn, inputs)
        self._makers = {var: eqn for eqn in self.jaxpr.eqns for var in eqn.outvars}

    def is_moving(self, var: Any) -> bool:
        """Returns whether a variable moves."""
        return not isinstance(var, core.Literal) and var in self.moving

    def find(self, var: Any) -> Found | None:
        """Returns how a variable is made if it is a product."""
        steps, scales, eqn = [], [], self._maker(var)
        while eqn is not None:
            number = self._scale(eqn)
            if eqn.primitive.name in _REARRANGE:
                steps.append(eqn)
                var = eqn.invars[0]
            elif number is not None:
                scales.append((number, eqn.primitive))
                var = next(v for v in eqn.invars if v is not number)
            else:
                break
            eqn = self._maker(var)
        if eqn is None:
            return None
        rest = tuple(reversed(steps))
        if eqn.primitive.name == "dot_general":
            return self._product(eqn, rest, tuple(scales))
        body, place = self.bodies.get(id(eqn)), eqn.outvars.index(var)
        if body is None or place < eqn.params["num_carry"] or scales:
            return None
        inner = body.find(body.jaxpr.outvars[place])
        return None if inner is None else Looped(eqn, inner, rest)

    def _scale(self, eqn: Any) -> Any:
        """Returns the number by which an equation multiplies, or divides, or None."""
        places = {"mul": (0, 1), "div": (1,)}.get(eqn.primitive.name, ())
        for place in places:
            var = eqn.invars[place]
            if var.aval.shape == () and not self.is_moving(var):
                return var
        return None

    def _maker(self, var: Any) -> Any:
        return None if isinstance(var, core.Literal) else self._makers.get(var)

    def _product(
        self, eqn: Any, steps: tuple[Any, ...], scales: tuple[Any, ...]
    ) -> Product | None:
        (left_axes, right_axes), (left_batch, right_batch) = eqn.params[
            "dimension_numbers"
        ]
        left, right = eqn.invars
        if eqn.params.get("out_sharding") is not None:
            return None
        if self.is_moving(left) == self.is_moving(right):
            return None
        factors = [
            (left, tuple(left_batch), tuple(left_axes)),
            (right, tuple(right_batch), tuple(right_axes)),
        ]
        x_first = self.is_moving(right)
        x, d = factors if x_first else factors[::-1]
        return Product(x[0], d[0], x[1], d[1], x[2], d[2], x_first, eqn, steps, scales)


def pullback_program(pull: Callable[..., Any], cotangent: Any) -> Program:
    """Returns the program of a pullback, all of whose inputs move."""
    program = without_calls(jax.make_jaxpr(pull)(cotangent))
    return Program(program, [True] * len(program.jaxpr.invars))


def find_products(program: Program, accept: Accept) -> list[Found | None]:
    """Returns, per output of a program, the product that it is, if it is accepted."""
    found = [program.find(var) for var in program.jaxpr.outvars]
    return [p if p is None or accept(*p.sizes) else None for p in found]


def _loop_body(eqn: Any, inputs: list[bool]) -> Program:
    """Returns the body of a `lax.scan`; a state moves if it ever does."""
    params = eqn.params
    first, count = params["num_consts"], params["num_carry"]
    closed, moves = without_calls(params["jaxpr"]), list(inputs)
    while True:
        body = Program(closed, moves)
        after = [body.is_moving(var) for var in closed.jaxpr.outvars[:count]]
        state = moves[first : first + count]
        joined = [a or b for a, b in zip(state, after, strict=True)]
        if joined == state:
            return body
        moves[first : first + count] = joined


def _others(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [size for i, size in enumerate(shape) if i not in axes]


def _as_matrix(
    value: jax.Array, batch: tuple[int, ...], axes: tuple[int, ...]
) -> jax.Array:
    """Returns `[contracted, others]`, or `[batch, contracted, others]`."""
    others = tuple(i for i in range(value.ndim) if i not in batch + axes)
    sizes = [
        math.prod(value.shape[i] for i in group) for group in (batch, axes, others)
    ]
    value = value.transpose(*batch, *axes, *others)
    return value.reshape(sizes if batch else sizes[1:])


def _rearrange(value: jax.Array, steps: Sequence[Any]) -> jax.Array:
    """Runs the equations after a product, in the type of `value`."""
    for eqn in steps:
        if eqn.primitive.name != "convert_element_type":
            value = eqn.primitive.bind(value, **eqn.params)
    return value
