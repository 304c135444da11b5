"""Gradients of single samples, leaf by leaf, in the form that is the least work.

The pullback of one sample is vmapped over samples, and where the gradient of a leaf is
a product `x^T d` it is left undone (see `factors`): `x` and `d` of all samples are what
one ordinary backward pass makes anyway.

The cost of a leaf in units of one product over the batch, with B samples of R positions
in all, T tasks, m inputs and n outputs:

* pairs of samples, `(X X^T) o (D D^T)`: `R/m + R/n`, and 1 for the combination;
* rows of tasks, `X_t^T D_t`: about 1, `T^2/R` for their Gramian, `T/R` to combine them;
* rows of samples, then of tasks: the same and `T/positions`, for leaves so small that
  the rows of all samples are no burden.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, Protocol, Self

import jax
import jax.numpy as jnp
from jax.extend import core

from mtlopt._jaxprs import evaluate, variables
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.rows.arithmetic import scale_rows
from mtlopt.rows.factors import (
    Product,
    as_product,
    find_products,
    pullback_program,
)
from mtlopt.rows.groups import Groups, sum_positions
from mtlopt.rows.products import alone, flat_rows
from mtlopt.rows.protocol import STATIC, Leaves

# Numbers in the rows of all samples of one leaf: 16 MiB of float32.
_SMALL = 2**22
# Numbers in the rows of all tasks of a part of a leaf, made for one look: 4 MiB.
_PART = 2**20

Form = Literal["pairs", "tasks", "samples"]


class SampleLeaf(Protocol):
    """The gradients of one leaf, of which each sample has its own."""

    @property
    def in_pairs(self) -> bool:
        """Whether inner products are best taken between samples."""
        ...

    def pair_products(self) -> jax.Array:
        """Returns the inner products of the samples' gradients, `[samples, samples]`.

        Only if they are `in_pairs`.
        """
        ...

    def by_task(self, groups: Groups) -> jax.Array:
        """Returns the rows of the tasks, `[tasks, ...]`."""
        ...

    def fold(
        self,
        groups: Groups,
        function: Callable[[jax.Array], jax.Array],
        join: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> jax.Array:
        """Returns what `function` makes of the rows of the tasks, part by part.

        Args:
          groups: the tasks of the samples.
          function: from rows `[tasks, ...]` of a part of the leaf.
          join: from the results of two parts to that of both.
        """
        ...

    def combine(self, weights: jax.Array) -> jax.Array:
        """Returns the sum of the gradients times `weights`, `[samples]`.

        Not of rows of tasks.
        """
        ...

    def scaled(self, groups: Groups, factors: jax.Array) -> Self:
        """Returns the same times `factors`, `[tasks]`."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProductLeaf:
    """Gradients `x^T d`.

    Attributes:
      x: `[samples, positions, inputs]`.
      d: `[samples, positions, outputs]`.
      product: how the leaf is made of it.
      dtype: of the leaf.
      in_pairs: see `SampleLeaf`.
    """

    x: jax.Array
    d: jax.Array
    product: Product = dataclasses.field(metadata=STATIC)
    dtype: Any = dataclasses.field(metadata=STATIC)
    in_pairs: bool = dataclasses.field(metadata=STATIC)

    def pair_products(self) -> jax.Array:
        samples, positions, _ = self.x.shape
        x, d = (one.reshape(-1, one.shape[-1]) for one in (self.x, self.d))
        products = _outer(x) * _outer(d)
        if positions == 1:
            return products
        blocks = products.reshape(samples, positions, samples, positions)
        return jnp.sum(blocks, axis=(1, 3))

    def by_task(self, groups: Groups) -> jax.Array:
        sums = groups.sum_products(self.x, self.d, self.product.precision)
        return jax.vmap(self._finish)(sums)

    def fold(
        self,
        groups: Groups,
        function: Callable[[jax.Array], jax.Array],
        join: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> jax.Array:
        _, _, inputs = self.x.shape
        outputs = self.d.shape[2]
        width = max(1, _PART // max(groups.num_tasks * inputs, 1))
        count = next(n for n in range(1, outputs + 1) if -(-outputs // n) <= width)
        width = -(-outputs // count)
        # Some outputs too many: rows of zeros change no sum and no largest entry.
        padding = ((0, 0), (0, 0), (0, width * count - outputs))
        d, precision = jnp.pad(self.d, padding), self.product.precision

        def part(index: jax.Array | int) -> jax.Array:
            some = jax.lax.dynamic_slice_in_dim(d, index * width, width, axis=2)
            return function(groups.sum_products(self.x, some, precision))

        def add(index: jax.Array, total: jax.Array) -> jax.Array:
            return join(total, part(index))

        return jax.lax.fori_loop(1, count, add, part(0)) if count > 1 else part(0)

    def combine(self, weights: jax.Array) -> jax.Array:
        weighted = self.d.astype(weights.dtype) * weights[:, None, None]
        weighted = weighted.astype(self.d.dtype)
        return self._finish(sum_positions(self.x, weighted, self.product.precision))

    def scaled(self, groups: Groups, factors: jax.Array) -> "ProductLeaf":
        own = groups.of_samples(factors)
        return dataclasses.replace(self, d=scale_rows([self.d], own)[0])

    def _finish(self, matrix: jax.Array) -> jax.Array:
        return self.product.finish(matrix).astype(self.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowLeaf:
    """Gradients of single samples.

    Attributes:
      rows: `[samples, ...]`.
      in_pairs: see `SampleLeaf`.
    """

    rows: jax.Array
    in_pairs: bool = dataclasses.field(metadata=STATIC)

    def pair_products(self) -> jax.Array:
        return _outer(self.rows)

    def by_task(self, groups: Groups) -> jax.Array:
        return groups.sum_rows(self.rows).astype(self.rows.dtype)

    def fold(
        self,
        groups: Groups,
        function: Callable[[jax.Array], jax.Array],
        join: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> jax.Array:
        del join
        return function(groups.sum_rows(self.rows))

    def combine(self, weights: jax.Array) -> jax.Array:
        dtype = solver_dtype([self.rows])
        total = jnp.tensordot(
            weights.astype(dtype),
            self.rows.astype(dtype),
            axes=1,
            precision=jax.lax.Precision.HIGHEST,
        )
        return total.astype(self.rows.dtype)

    def scaled(self, groups: Groups, factors: jax.Array) -> "RowLeaf":
        own = groups.of_samples(factors)
        return dataclasses.replace(self, rows=scale_rows([self.rows], own)[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskLeaf:
    """Rows of tasks, where those of samples would be too large.

    Attributes:
      rows: `[tasks, ...]`.
    """

    rows: jax.Array
    in_pairs = False

    def pair_products(self) -> NoReturn:
        raise AssertionError("rows of tasks are not compared in pairs of samples")

    def by_task(self, groups: Groups) -> jax.Array:
        del groups
        return self.rows

    def fold(
        self,
        groups: Groups,
        function: Callable[[jax.Array], jax.Array],
        join: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> jax.Array:
        del groups, join
        return function(self.rows)

    def combine(self, weights: jax.Array) -> NoReturn:
        raise AssertionError(f"{len(weights)} samples cannot combine rows of tasks")

    def scaled(self, groups: Groups, factors: jax.Array) -> "TaskLeaf":
        del groups
        return TaskLeaf(scale_rows([self.rows], factors)[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StillLeaf:
    """A leaf that no cotangent reaches.

    Attributes:
      zeros: of the leaf's shape.
    """

    zeros: jax.Array
    in_pairs = False

    def pair_products(self) -> NoReturn:
        raise AssertionError("zeros are not compared in pairs of samples")

    def by_task(self, groups: Groups) -> jax.Array:
        return jnp.broadcast_to(self.zeros, (groups.num_tasks, *self.zeros.shape))

    def fold(
        self,
        groups: Groups,
        function: Callable[[jax.Array], jax.Array],
        join: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> jax.Array:
        del join
        return function(jnp.zeros((groups.num_tasks, 1), self.zeros.dtype))

    def combine(self, weights: jax.Array) -> jax.Array:
        del weights
        return self.zeros

    def scaled(self, groups: Groups, factors: jax.Array) -> "StillLeaf":
        del groups, factors
        return self


def sample_leaves(
    make_pull: Callable[[Any], Callable[[Leaves], Leaves]],
    samples: Any,
    cotangents: Leaves,
    groups: Groups,
    task_rows: Callable[[Sequence[int]], Leaves] | None,
) -> list[SampleLeaf] | None:
    """Returns the gradients of all leaves, by one backward pass of every sample.

    Args:
      make_pull: from one sample to the pullback of its latent.
      samples: the samples, leaves `[samples, ...]`.
      cotangents: of their latents, leaves `[samples, ...]`.
      groups: their tasks.
      task_rows: from places of leaves to their rows of tasks, for leaves that are
        too large for one row a sample; None if there may be none.

    Returns:
      Per leaf its gradients; None if rows of tasks are needed and there may be none.
    """

    def accept(*sizes: int) -> bool:
        return _form(groups, *sizes) != "samples"

    forms: list[tuple[Product | None, Any, bool]] = []
    large: list[int] = []
    still: dict[int, jax.Array] = {}

    def one(sample: Any, cotangent: Leaves) -> list[Any]:
        program = pullback_program(make_pull(sample), cotangent)
        jaxpr = program.jaxpr
        found = find_products(
            program, lambda *sizes: _form(groups, *sizes) != "samples"
        )
        wanted = []
        plain = [as_product(p) for p in found]
        factors = [p.d for p in plain if p is not None]
        for i, (var, product) in enumerate(zip(jaxpr.outvars, plain, strict=True)):
            size, dtype = var.aval.size, var.aval.dtype
            # A bias: the products of its rows are those of the factors `d`.
            free = any(var is factor for factor in factors)
            few = groups.num_samples <= groups.num_tasks and task_rows is not None
            if product is not None and not product.x_batch:
                form = _form(groups, *product.sizes)
                forms.append((product, dtype, form == "pairs"))
                scales = (var for var, _ in product.scales)
                wanted.append((product.x, product.d, *scales))
            elif not program.is_moving(var):
                still[i] = jnp.zeros(var.aval.shape, dtype)
                forms.append((None, dtype, False))
                wanted.append(())
            elif few or size <= _row_limit(groups):
                forms.append((None, dtype, _single() and (free or few)))
                wanted.append((var,))
            else:
                large.append(i)
                forms.append((None, dtype, False))
                wanted.append(())
        known = dict(zip(jaxpr.constvars, program.consts, strict=True))
        known |= dict(zip(jaxpr.invars, jax.tree.leaves(cotangent), strict=True))
        flat = list(dict.fromkeys(v for group in wanted for v in variables(group)))
        eqns = _needed(jaxpr.eqns, flat)
        values = dict(zip(flat, evaluate(jaxpr, eqns, known, flat), strict=True))
        out = []
        for group, (product, _, _) in zip(wanted, forms, strict=True):
            read = [v.val if isinstance(v, core.Literal) else values[v] for v in group]
            if product is not None:
                x, d, *scales = read
                read = [product.x_matrix(x, scales), product.d_matrix(d)]
            out.append(read)
        return out

    found = jax.vmap(one)(samples, cotangents)
    if large and task_rows is None:
        return None
    rows = dict(zip(large, task_rows(large) if task_rows else [], strict=True))
    leaves: list[SampleLeaf] = []
    for i, (read, (product, dtype, in_pairs)) in enumerate(
        zip(found, forms, strict=True)
    ):
        if i in rows:
            leaves.append(TaskLeaf(rows[i]))
        elif i in still:
            leaves.append(StillLeaf(still[i]))
        elif product is None:
            leaves.append(RowLeaf(read[0], in_pairs))
        else:
            x, d = read
            leaves.append(ProductLeaf(x, d, product, dtype, in_pairs))
    return leaves


def _form(groups: Groups, positions: int, inputs: int, outputs: int) -> Form:
    """Returns the least work for a product, see the top of this file."""
    samples, tasks = groups.num_samples, groups.num_tasks
    all_positions, size = samples * positions, inputs * outputs
    if not all_positions or not size:
        return "samples"
    if groups.one_each:
        by_task = 1.0
    elif alone():
        tile = groups.tile_size(positions)
        by_task = groups.num_tiles(tile) * tile / samples
    else:
        by_task = tasks
    rows = tasks * (tasks + 1) / all_positions
    costs: dict[Form, float] = {"tasks": by_task + rows}
    if _single():
        costs["pairs"] = 1 + all_positions / inputs + all_positions / outputs
    if size <= _row_limit(groups):
        costs["samples"] = 1 + tasks / positions + rows
    return min(costs, key=lambda form: costs[form])


def _row_limit(groups: Groups) -> float:
    """Returns the size of a leaf up to which every sample may have a row of it."""
    return _SMALL / max(groups.num_samples, 1)


def _single() -> bool:
    """Whether no batch can be in parts on several devices, which would be gathered."""
    return jax.device_count() == 1


def _outer(rows: jax.Array) -> jax.Array:
    """Returns the inner products of rows with each other."""
    rows = flat_rows(rows)
    axes = tuple(range(1, rows.ndim))
    return jax.lax.dot_general(
        rows,
        rows,
        ((axes, axes), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=solver_dtype([rows]),
    )


def _needed(eqns: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
    """Returns the equations that some variables need."""
    kept, needed = [], set(wanted)
    for eqn in reversed(eqns):
        if not needed.isdisjoint(eqn.outvars):
            kept.append(eqn)
            needed.update(variables(eqn.invars))
    return kept[::-1]
