"""A pullback for all tasks at once, layer by layer, without the weight gradients.

A layer's weight gradient is a product `X^T D`, where `D` is the cotangent of the
layer's output. The program of the pullback is cut at each place where such a `D` is
known for every task. There `D` can be kept or used in a sum.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from mtlopt._jaxprs import evaluate, variables
from mtlopt.rows import layer_products, products
from mtlopt.rows.factors import Accept, Product, Pullback
from mtlopt.rows.map_tasks import Batching, map_after, map_tasks
from mtlopt.rows.protocol import Leaves


class Piece(NamedTuple):
    """A piece of the program.

    Attributes:
      eqns: its equations.
      reads: variables that it reads and that depend on the cotangent.
      makes: variables that it computes, and that are read later or are ends (see
        `_Cut`).
      later: variables that are read after the piece.
    """

    eqns: list[Any]
    reads: list[Any]
    makes: list[Any]
    later: set[Any]


class Sweep:
    """The pullback of all tasks, in which the products of some leaves are not computed.

    Attributes:
      shapes: shapes and types of the leaves.
      products: by leaf, how its gradient is computed from the factors, if it is a
        product.
    """

    def __init__(
        self, pull: Callable[[Leaves], Leaves], cotangent: list[Any], accept: Accept
    ) -> None:
        """Reads the program of a pullback.

        Args:
          pull: function from a cotangent to the leaves.
          cotangent: a cotangent, for its shapes.
          accept: see `Accept`.
        """
        self._pullback = Pullback(pull, cotangent)
        self.shapes = self._pullback.shapes
        self.products: dict[int, Product] = {
            i: product
            for i, product in enumerate(self._pullback.products)
            if product is not None and accept(*product.sizes)
        }

    @property
    def positions(self) -> int:
        """The largest number of positions in any product."""
        return max(product.sizes[0] for product in self.products.values())

    @functools.cached_property
    def _program(self) -> "_Cut":
        rows = [
            i
            for i, moves in enumerate(self._pullback.moves)
            if moves and i not in self.products
        ]
        program = self._pullback.program(rows, list(self.products))
        return _Cut(*program, rows, list(self.products))

    def _known(self) -> tuple[dict[Any, Any], dict[int, jax.Array]]:
        """Returns the fixed values by variable, and the factors `x` by leaf."""
        program = self._program
        made = [var for eqn in program.fixed for var in eqn.outvars]
        values = evaluate(program.jaxpr, program.fixed, program.consts, made)
        known = program.consts | dict(zip(made, values, strict=True))
        xs = evaluate(program.jaxpr, [], known, program.xs)
        return known, {
            i: product.x_matrix(x)
            for (i, product), x in zip(self.products.items(), xs, strict=True)
        }

    def keep(self, rows: Leaves, batching: Batching) -> dict[int, Any]:
        """Returns for each leaf the factors `(x, d)` of all tasks, or the rows.

        Leaves whose gradient is zero for every task are left out.

        Args:
          rows: latent rows `[tasks, ...]`.
          batching: see `map_tasks`.
        """
        program, (known, xs) = self._program, self._known()

        def of_task(row: Leaves) -> Leaves:
            values = known | dict(zip(program.jaxpr.invars, row, strict=True))
            return evaluate(
                program.jaxpr, program.moving, values, list(program.ends.values())
            )

        made = map_tasks(of_task, rows, batching)
        return {
            i: (xs[i], self._d_matrices(i, values)) if i in xs else values
            for i, values in zip(program.ends, made, strict=True)
        }

    def gramian(self, rows: Leaves, size: int, in_own_unit: bool) -> jax.Array:
        """Returns the inner products of the rows, without keeping any factor.

        Args:
          rows: latent rows `[tasks, ...]`.
          size: number of tasks to run at a time, a divisor of the number of tasks.
          in_own_unit: see `layer_products.gramian`.
        """
        program, (known, xs) = self._program, self._known()
        live = dict(zip(program.jaxpr.invars, rows, strict=True))
        new, total = live, None
        for piece in program.pieces:
            if piece.eqns:

                def of_task(values: Leaves, piece: Piece = piece) -> Leaves:
                    moved = dict(zip(piece.reads, values, strict=True))
                    return evaluate(
                        program.jaxpr, piece.eqns, known | moved, piece.makes
                    )

                values = [live[var] for var in piece.reads]
                values = map_after(of_task, values, size, total)
                new = dict(zip(piece.makes, values, strict=True))
            for i, var in program.ends.items():
                if var not in new:
                    continue
                if i in xs:
                    d = self._d_matrices(i, new[var])
                    found = layer_products.gramian(xs[i], d, in_own_unit)
                else:
                    found = products.gramian(products.parts_of([new[var]]))
                total = found if total is None else total + found
            live, new = live | new, {}
            live = {var: value for var, value in live.items() if var in piece.later}
        assert total is not None
        return total

    def _d_matrices(self, leaf: int, values: jax.Array) -> jax.Array:
        return jax.vmap(self.products[leaf].d_matrix)(values)


class _Cut:
    """A program, cut where the factor `d` of a product is known.

    Attributes:
      jaxpr: the program.
      consts: its constants, by variable.
      fixed: its equations that do not depend on the cotangent.
      moving: all other equations.
      xs: variables of the factors `x`.
      ends: by leaf, the variable of its rows or of its factor `d`.
      pieces: the moving equations in pieces. The first piece has no equations; it is
        for the ends that are inputs of the program.
    """

    def __init__(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        rows: Sequence[int],
        factored: Sequence[int],
    ) -> None:
        """Cuts the result of `Pullback.program` for some rows and factors."""
        self.jaxpr = jaxpr
        self.consts = dict(zip(jaxpr.constvars, consts, strict=True))
        self.fixed, self.moving, moving = [], [], set(jaxpr.invars)
        for eqn in jaxpr.eqns:
            if eqn.effects or not moving.isdisjoint(variables(eqn.invars)):
                moving.update(eqn.outvars)
                self.moving.append(eqn)
            else:
                self.fixed.append(eqn)
        middle = len(rows) + len(factored)
        self.xs = jaxpr.outvars[len(rows) : middle]
        outputs = jaxpr.outvars[: len(rows)] + jaxpr.outvars[middle:]
        self.ends = dict(zip([*rows, *factored], outputs, strict=True))
        self.pieces = self._cut(moving, set(jaxpr.outvars[middle:]))

    def _cut(self, moving: set[Any], factors: set[Any]) -> list[Piece]:
        pieces: list[list[Any]] = [[], []]
        for eqn in self.moving:
            pieces[-1].append(eqn)
            if not factors.isdisjoint(eqn.outvars):
                pieces.append([])
        cut, later, ends = [], set(), set(self.ends.values())
        for eqns in reversed(pieces):
            made = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
            read = dict.fromkeys(v for eqn in eqns for v in variables(eqn.invars))
            reads = [var for var in read if var in moving and var not in made]
            makes = [var for var in made if var in later or var in ends]
            cut.append(Piece(eqns, reads, makes, set(later)))
            later.update(reads)
        return cut[::-1]
