"""A pullback for all tasks at once, layer by layer, with products left undone.

The program of the pullback is cut where a layer's cotangent is known. There every task
has the factor `D` of that layer's weight gradient, to be kept or to be summed up.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend import core

from mtlopt._jaxprs import evaluate, variables
from mtlopt.rows.factors import (
    Accept,
    Found,
    Program,
    as_looped,
    as_product,
    find_products,
    pullback_program,
)
from mtlopt.rows.task_loops import Leaf, Leaves, Tasks

Values = dict[Any, Any]


class Sum(Protocol):
    """A sum over the layers."""

    def product(self, total: jax.Array, x: jax.Array, d: Leaf) -> jax.Array:
        """Adds what the gradients `x^T d` give."""
        ...

    def row(self, total: jax.Array, row: Leaf) -> jax.Array:
        """Adds what gradients that are no products give."""
        ...


class Step(NamedTuple):
    """A piece of the program.

    Attributes:
      eqns: its equations; for a loop, the one.
      loop: the plan of the loop's body.
      reads: moving variables that it reads.
      makes: moving variables that are read later.
      products: keys of the products whose factor `d` is known after it.
      rows: keys of the gradients that are made by it and are no products.
    """

    eqns: list[Any]
    loop: "Plan | None"
    reads: list[Any]
    makes: list[Any]
    products: list[int]
    rows: list[int]


class Plan:
    """A program cut in steps, with some of its results left undone."""

    def __init__(
        self,
        program: Program,
        products: dict[int, Found],
        rows: dict[int, Any],
        outputs: Sequence[Any] = (),
    ) -> None:
        """Cuts a program.

        Args:
          program: the program.
          products: by a key, the products to be left undone.
          rows: by a key, variables that are gradients but no such products.
          outputs: other variables to be made.
        """
        self.program = program
        self.products = _some(as_product, products)
        self.looped = _some(as_looped, products)
        self.rows = rows
        self.outputs = [v for v in variables(outputs) if program.is_moving(v)]
        ends = [p.d for p in self.products.values()]
        ends += [*self.rows.values(), *self.outputs]
        moving, fixed_wanted = self._needed(ends)
        for product in self.products.values():
            numbers = [var for var, _ in product.scales]
            fixed_wanted |= set(variables([product.x, *numbers]))
        fixed_wanted |= {v for v in variables(outputs) if not program.is_moving(v)}
        self.fixed = _needed_of(
            [e for e in program.jaxpr.eqns if not program.moving & set(e.outvars)],
            fixed_wanted,
        )
        self.steps = self._cut(moving, ends)

    def _needed(self, ends: Sequence[Any]) -> tuple[list[Any], set[Any]]:
        """Returns the moving equations to be run, and the fixed variables they read."""
        loops = {id(p.eqn) for p in self.looped.values()}
        program, wanted, kept = self.program, set(ends), []
        for eqn in reversed(program.jaxpr.eqns):
            moves = not program.moving.isdisjoint(eqn.outvars)
            needed = id(eqn) in loops or not wanted.isdisjoint(eqn.outvars)
            if moves and needed:
                kept.append(eqn)
                wanted.update(variables(eqn.invars))
        return kept[::-1], {v for v in wanted if not program.is_moving(v)}

    def _cut(self, eqns: Sequence[Any], ends: Sequence[Any]) -> list[Step]:
        loops = {id(p.eqn) for p in self.looped.values()}
        factors = {p.d for p in self.products.values()}
        pieces, piece = [], []
        for eqn in eqns:
            if id(eqn) in loops:
                pieces += [piece, [eqn]]
                piece = []
                continue
            piece.append(eqn)
            if not factors.isdisjoint(eqn.outvars):
                pieces.append(piece)
                piece = []
        pieces.append(piece)
        known = set(self.program.jaxpr.invars)
        pieces.insert(0, [])  # for what is an input itself
        steps, made = [], [known] + [{v for e in p for v in e.outvars} for p in pieces]
        made[1] |= made[0]
        for i, piece in enumerate(pieces):
            later = {v for p in pieces[i + 1 :] for e in p for v in variables(e.invars)}
            later.update(ends)
            reads = dict.fromkeys(v for e in piece for v in variables(e.invars))
            makes = dict.fromkeys(v for e in piece for v in e.outvars if v in later)
            loop = None
            if piece and id(piece[0]) in loops:
                loop = self._plan_loop(piece[0], later)
            outside = {v for e in piece for v in e.outvars}
            here = made[i + 1]
            step = Step(
                piece,
                loop,
                [v for v in reads if self.program.is_moving(v) and v not in outside],
                list(makes),
                [k for k, p in self.products.items() if p.d in here],
                [k for k, v in self.rows.items() if v in here],
            )
            if step.eqns or step.products or step.rows:
                steps.append(step)
        return steps

    def _plan_loop(self, eqn: Any, later: set[Any]) -> "Plan":
        body, count = self.program.bodies[id(eqn)], eqn.params["num_carry"]
        inside = body.jaxpr.outvars
        stacks = [
            inner
            for var, inner in zip(eqn.outvars[count:], inside[count:], strict=True)
            if var in later
        ]
        products = {k: p.inner for k, p in self.looped.items() if p.eqn is eqn}
        return Plan(body, products, {}, [*inside[:count], *stacks])

    def run(
        self,
        fixed: Values,
        live: Values,
        tasks: Tasks,
        add: Sum | None = None,
        total: Any = None,
    ) -> tuple[Values, Values, dict[int, Any], Any]:
        """Runs the program for all tasks.

        Args:
          fixed: values of the inputs that do not move, and of the constants.
          live: values of the inputs that move, of all tasks.
          tasks: how the tasks are run.
          add: what to sum up; None to keep the factors and rows.
          total: the sum so far.

        Returns:
          The values of fixed and moving variables, by key the factors `(x, d)` and the
          rows that are kept, and the sum.
        """
        jaxpr, kept = self.program.jaxpr, {}
        made = [var for eqn in self.fixed for var in eqn.outvars]
        values = evaluate(jaxpr, self.fixed, fixed, made)
        fixed = fixed | dict(zip(made, values, strict=True))
        for i, step in enumerate(self.steps):
            if step.loop is not None:
                more, found, total = self._run_loop(
                    step, fixed, live, tasks, add, total
                )
                live, kept = live | more, kept | found
            elif step.makes:
                function = functools.partial(self._run_piece, step, fixed)
                out = tasks.map(function, [live[v] for v in step.reads], total)
                live = live | dict(zip(step.makes, out, strict=True))
            for key in step.products:
                product = self.products[key]
                numbers = [_value(fixed, var) for var, _ in product.scales]
                x = product.x_matrix(_value(fixed, product.x), numbers)
                d = _each(product.d_matrix, live[product.d])
                if add is None:
                    kept[key] = (x, d)
                else:
                    total = add.product(total, x, d)
            for key in step.rows:
                row = live[self.rows[key]]
                if add is None:
                    kept[key] = row
                else:
                    total = add.row(total, row)
            live = {v: value for v, value in live.items() if v in self._later[i]}
        return fixed, live, kept, total

    @functools.cached_property
    def _later(self) -> list[set[Any]]:
        """By step, the moving variables that are read after it."""
        later, wanted = [], set(self.outputs)
        for step in reversed(self.steps):
            later.append(set(wanted))
            wanted |= {*step.reads, *(self.products[k].d for k in step.products)}
            wanted |= {self.rows[k] for k in step.rows}
        return later[::-1]

    def _run_piece(self, step: Step, fixed: Values, values: list[Any]) -> list[Any]:
        known = fixed | dict(zip(step.reads, values, strict=True))
        return evaluate(self.program.jaxpr, step.eqns, known, step.makes)

    def _run_loop(
        self,
        step: Step,
        fixed: Values,
        live: Values,
        tasks: Tasks,
        add: Sum | None,
        total: Any,
    ) -> tuple[Values, dict[int, Any], Any]:
        """Runs a `lax.scan` over layers, all tasks in each of its steps."""
        (eqn,), plan = step.eqns, step.loop
        assert plan is not None
        params, inside = eqn.params, plan.program.jaxpr
        consts, count = params["num_consts"], params["num_carry"]
        moves = plan.program.moves

        def operand(var: Any, moving: bool) -> Any:
            if not moving or self.program.is_moving(var):
                return live[var] if moving else _value(fixed, var)
            return tasks.repeat(jnp.asarray(_value(fixed, var)))

        operands = [operand(v, m) for v, m in zip(eqn.invars, moves, strict=True)]
        stacks = [
            tasks.layers_first(value) if moving else value
            for value, moving in zip(operands, moves, strict=True)
        ][consts + count :]
        whole = dict(zip(inside.invars[consts + count :], stacks, strict=True))
        outputs = inside.outvars
        kept_stacks = [
            (var, inner)
            for var, inner in zip(eqn.outvars[count:], outputs[count:], strict=True)
            if var in step.makes
        ]

        def value_of(var: Any, moving: bool, fixed: Values, live: Values) -> Any:
            if plan.program.is_moving(var):
                return live[var]
            value = jnp.asarray(_value(fixed, var))
            return tasks.repeat(value) if moving else value

        def body(carry: Any, slices: Any) -> Any:
            state, total = carry
            values = [*operands[:consts], *state, *slices]
            now = list(zip(inside.invars, values, moves, strict=True))
            still = dict(zip(inside.constvars, plan.program.consts, strict=True))
            still |= {var: value for var, value, moving in now if not moving}
            moved = {var: value for var, value, moving in now if moving}
            still, moved, kept, total = plan.run(still, moved, tasks, add, total)
            state = [
                value_of(var, moving, still, moved)
                for var, moving in zip(
                    outputs[:count], moves[consts : consts + count], strict=True
                )
            ]
            made = [value_of(inner, True, still, moved) for _, inner in kept_stacks]
            for key, product in plan.products.items():
                if key in kept and product.x in whole and not product.scales:
                    kept[key] = (None, kept[key][1])  # it exists as a stack
            return (state, total), (made, kept)

        (state, total), (made, kept) = jax.lax.scan(
            body,
            (operands[consts : consts + count], total),
            stacks,
            params["length"],
            params["reverse"],
            params["unroll"],
        )
        results = {}
        carried = zip(eqn.outvars, state, moves[consts : consts + count], strict=False)
        for var, value, moving in carried:
            results[var] = value if moving else tasks.repeat(value)
        for (var, _), value in zip(kept_stacks, made, strict=True):
            results[var] = tasks.layers_second(value)
        results = {var: results[var] for var in step.makes}
        found = {}
        for key, (x, d) in kept.items():
            if x is None:
                product = plan.products[key]
                x = jax.vmap(lambda x, p=product: p.x_matrix(x, ()))(whole[product.x])
            found[key] = (_flat_layers(x), _each(_flat_layers, tasks.layers_second(d)))
        return results, found, total


class Sweep:
    """The pullback of all tasks, with the products of some leaves undone.

    Attributes:
      products: per leaf, how its gradient is made if it is left undone; else None.
      moves: per leaf, whether its gradient depends on the cotangent at all.
    """

    def __init__(
        self, pull: Callable[[Leaves], Leaves], cotangent: list[Any], accept: Accept
    ) -> None:
        """Reads the program of a pullback.

        Args:
          pull: from a cotangent to the leaves.
          cotangent: for its shapes.
          accept: see `Accept`.
        """
        self._program = pullback_program(pull, cotangent)
        outputs = self._program.jaxpr.outvars
        self.products = find_products(self._program, accept)
        self.moves = [self._program.is_moving(var) for var in outputs]
        self._outputs = outputs

    @property
    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and types of the leaves."""
        avals = [var.aval for var in self._outputs]
        return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]

    @property
    def is_worth_it(self) -> bool:
        """Whether any product is left undone."""
        return any(p is not None for p in self.products)

    @property
    def positions(self) -> int:
        """The largest number of positions of a product."""
        return max(p.sizes[0] for p in self.products if p is not None)

    @functools.cached_property
    def _plan(self) -> Plan:
        products = {i: p for i, p in enumerate(self.products) if p is not None}
        rows = {
            i: var
            for i, (var, moves) in enumerate(
                zip(self._outputs, self.moves, strict=True)
            )
            if moves and i not in products
        }
        return Plan(self._program, products, rows)

    def _run(
        self, rows: Leaves, tasks: Tasks, add: Sum | None = None, total: Any = None
    ) -> tuple[Any, Any]:
        jaxpr = self._program.jaxpr
        fixed = dict(zip(jaxpr.constvars, self._program.consts, strict=True))
        live = dict(zip(jaxpr.invars, tasks.first(rows), strict=True))
        _, _, kept, total = self._plan.run(fixed, live, tasks, add, total)
        return kept, total

    def keep(self, rows: Leaves, tasks: Tasks) -> dict[int, Any]:
        """Returns by leaf the factors `(x, d)` of all tasks, or their rows.

        A leaf that no task moves is left out.
        """
        return self._run(rows, tasks)[0]

    def sum(self, rows: Leaves, tasks: Tasks, add: Sum, total: jax.Array) -> jax.Array:
        """Returns a sum over all leaves, of which none is kept."""
        return self._run(rows, tasks, add, total)[1]


def _some(kind: Callable[[Found], Any], products: dict[int, Found]) -> dict[int, Any]:
    """Returns the products of one kind."""
    found = {key: kind(product) for key, product in products.items()}
    return {key: product for key, product in found.items() if product is not None}


def _needed_of(eqns: Sequence[Any], wanted: set[Any]) -> list[Any]:
    kept, wanted = [], set(wanted)
    for eqn in reversed(eqns):
        if not wanted.isdisjoint(eqn.outvars):
            kept.append(eqn)
            wanted.update(variables(eqn.invars))
    return kept[::-1]


def _value(values: Values, var: Any) -> Any:
    return var.val if isinstance(var, core.Literal) else values[var]


def _each(function: Callable[[jax.Array], jax.Array], leaf: Leaf) -> Leaf:
    if isinstance(leaf, tuple):
        return tuple(map(function, leaf))
    return jax.vmap(function)(leaf)


def _flat_layers(value: jax.Array) -> jax.Array:
    """Returns `[layers, positions, numbers]`."""
    return value.reshape(-1, *value.shape[-2:])
