"""Latent gradients of heads that begin with a product.

A head that reads the latent as `z @ W` has the latent gradient `D W^T`, with `D` the
cotangent of the product. Both are small where the latent is wide, and hold all that
Gramians and combinations need: `T` arrays of the latent's size need not exist.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import evaluate
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import ScaledGramian, scale_of
from mtlopt.linalg.products import diagonal
from mtlopt.rows import arithmetic, products
from mtlopt.rows.factors import (
    Product,
    as_product,
    find_products,
    pullback_program,
)
from mtlopt.rows.members import Members
from mtlopt.rows.protocol import STATIC, Leaves, OwnSpace


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a product `x^T d` becomes a leaf of the latent.

    Attributes:
      x_first: whether the axes of `x` come first.
      x_shape: its axes that are not contracted.
      d_shape: those of `d`.
      steps: what follows, operations that move numbers only, with their parameters.
    """

    x_first: bool
    x_shape: tuple[int, ...]
    d_shape: tuple[int, ...]
    steps: tuple[tuple[Any, tuple[tuple[str, Any], ...]], ...]

    @classmethod
    def of(cls, product: Product) -> "Layout":
        """Returns that of a product in a program."""
        shapes = [
            tuple(size for i, size in enumerate(var.aval.shape) if i not in axes)
            for var, axes in ((product.x, product.x_axes), (product.d, product.d_axes))
        ]
        steps = [
            (eqn.primitive, tuple(sorted(eqn.params.items())))
            for eqn in product.steps
            if eqn.primitive.name != "convert_element_type"
        ]
        return cls(product.x_first, shapes[0], shapes[1], tuple(steps))

    def finish(self, matrix: jax.Array) -> jax.Array:
        """Returns the leaf from `x^T d`."""
        value = matrix.reshape(self.x_shape + self.d_shape)
        if not self.x_first:
            value = matrix.T.reshape(self.d_shape + self.x_shape)
        for primitive, params in self.steps:
            value = primitive.bind(value, **dict(params))
        return value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadProducts:
    """The gradients `x_t^T d_t` of one leaf of the latent, of all tasks.

    Attributes:
      x: `[members, outputs of the product, features]`, zero where a task has fewer.
      d: `[members, outputs of the product, positions]`.
      layout: how the leaf is made.
      members: the tasks whose gradients are not zero; None for all.
    """

    x: jax.Array
    d: jax.Array
    layout: Layout = dataclasses.field(metadata=STATIC)
    members: Members | None = dataclasses.field(default=None, metadata=STATIC)

    @property
    def _dtype(self) -> jnp.dtype:
        return solver_dtype([self.x, self.d])

    def pays(self) -> bool:
        """Whether a Gramian takes fewer operations than that of arrays."""
        num_tasks, outputs, features = self.x.shape
        positions = self.d.shape[2]
        rows = positions * features * (num_tasks + outputs)
        return num_tasks * outputs**2 * (positions + features) <= rows

    def spread(self, members: Members) -> "HeadProducts":
        """Returns those of all tasks from those of some, where others are zero."""
        return dataclasses.replace(self, members=members)

    def scale(
        self, factors: jax.Array, present: jax.Array | None = None
    ) -> "HeadProducts":
        """Returns the gradients times factors `[tasks]`, zero for absent tasks."""
        dtype = self._dtype
        factors = self._of_members(factors)
        present = present if present is None else self._of_members(present)
        (d,) = arithmetic.scale_rows([self.d.astype(dtype)], factors, present)
        (x,) = arithmetic.scale_rows([self.x], jnp.ones_like(factors), present)
        return dataclasses.replace(self, x=x, d=d)

    def _of_members(self, values: jax.Array) -> jax.Array:
        return values if self.members is None else self.members.take(values)

    def _of_all(self, values: jax.Array) -> jax.Array:
        return values if self.members is None else self.members.spread(values)

    def gramian(self) -> jax.Array:
        """Returns `<d_s d_t^T, x_s x_t^T>`, `[tasks, tasks]`."""
        num_tasks, outputs, _ = self.x.shape
        # With the largest entry of `x` about one, no product of two flushes to zero.
        unit = scale_of(products.largest_entries([self.x]))
        (x,) = arithmetic.scale_rows([self.x.astype(unit.dtype)], unit)
        (d,) = arithmetic.scale_rows([self.d.astype(unit.dtype)], 1 / unit)
        both = _outer(x) * _outer(d)
        blocks = both.reshape(num_tasks, outputs, num_tasks, outputs)
        total = self._of_all(self._of_all(jnp.sum(blocks, axis=(1, 3))).T)
        return (total + total.T) / 2

    def combine(self, weights: jax.Array) -> jax.Array:
        """Returns `sum_t weights[t] x_t^T d_t` as a leaf of the latent."""
        dtype = self._dtype
        weights = self._of_members(weights).astype(dtype)
        d = self.d.astype(dtype) * weights[:, None, None]
        matrix = jnp.tensordot(
            self.x.astype(dtype), d, ((0, 1), (0, 1)), precision="highest"
        )
        return self.layout.finish(matrix)

    def rows(self) -> jax.Array:
        """Returns the gradients as matrices, `[tasks, features, positions]`."""
        x, d = (factor.astype(self._dtype) for factor in (self.x, self.d))
        rows = jnp.einsum("tnf,tnp->tfp", x, d, precision="highest")
        return self._of_all(rows)

    def bounds(self) -> jax.Array:
        """Returns a number that no entry of a gradient exceeds, `[tasks]`."""
        x, d = (products.largest_entries([factor]) for factor in (self.x, self.d))
        return self._of_all(self.x.shape[1] * x * d)


def _outer(value: jax.Array) -> jax.Array:
    """Returns the inner products of all tasks' outputs, of `[tasks, outputs, ...]`."""
    flat = value.reshape(-1, value.shape[2])
    return jax.lax.dot_general(
        flat,
        flat,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=solver_dtype([value]),
        out_sharding=products.replicated(value),
    )


Factors = tuple[jax.Array, jax.Array]


def pull_with_products(
    pull: Callable[[jax.Array], Any], cotangent: jax.Array
) -> tuple[Any, list[Layout | None], list[Factors | None]]:
    """Runs a pullback, and returns its result and the factors of products in it.

    Args:
      pull: from a scalar to a pytree.
      cotangent: the scalar.

    Returns:
      The result and, for each of its leaves, the layout and the factors `x` and `d` if
      it is a product.
    """
    program = pullback_program(pull, cotangent)
    jaxpr = program.jaxpr
    found = [as_product(p) for p in find_products(program, lambda *_: True)]
    found = [p and (None if p.x_batch or p.scales else p) for p in found]
    factors = [var for p in found if p is not None for var in (p.x, p.d)]
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values[jaxpr.invars[0]] = cotangent
    results = evaluate(jaxpr, jaxpr.eqns, values, [*jaxpr.outvars, *factors])
    leaves, rest = results[: len(found)], iter(results[len(found) :])
    matrices = [
        None if p is None else (p.x_matrix(next(rest), ()), p.d_matrix(next(rest)))
        for p in found
    ]
    layouts = [None if p is None else Layout.of(p) for p in found]
    structure = jax.tree.structure(jax.eval_shape(pull, cotangent))
    return structure.unflatten(leaves), layouts, matrices


def stack_products(
    layouts: Sequence[Layout | None], factors: Sequence[Factors | None]
) -> HeadProducts | None:
    """Returns the products of one leaf of all tasks, if they are alike and pay.

    Args:
      layouts: of each task.
      factors: of each task.
    """
    pairs = [pair for pair in factors if pair is not None]
    layout = layouts[0] if layouts else None
    if layout is None or len(pairs) < len(layouts) or len(set(layouts)) > 1:
        return None
    most = max(len(x) for x, _ in pairs)

    def stack(values: Sequence[jax.Array]) -> jax.Array:
        return jnp.stack(
            [jnp.pad(value, ((0, most - len(value)), (0, 0))) for value in values]
        )

    x, d = (stack(values) for values in zip(*pairs, strict=True))
    return if_it_pays(layout, x, d)


def if_it_pays(layout: Layout, x: jax.Array, d: jax.Array) -> HeadProducts | None:
    """Returns stacked products; None if arrays of the latent's size are less work."""
    found = HeadProducts(x, d, layout)
    return found if found.pays() else None


@dataclasses.dataclass(frozen=True)
class HeadProductRows(OwnSpace):
    """Latent rows, some leaves of which are products of small factors.

    Attributes:
      latent_grads: all leaves `[tasks, ...]`, which XLA makes only if they are read.
      factors: by leaf its products; None where the array is read.
      pull: pullback of the encoder.
    """

    latent_grads: Leaves
    factors: list[HeadProducts | None]
    pull: Callable[[Leaves], Leaves]

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        total = jnp.zeros([], solver_dtype(self.latent_grads))
        for leaf, found in zip(self.latent_grads, self.factors, strict=True):
            if found is None:
                total += products.gramian([leaf], basis)
            elif basis is None:
                total += found.gramian()
            elif basis.ndim == 1:
                total += found.scale(basis).gramian()
            else:  # the rows themselves: products of factors lose the digits
                total += products.gramian([found.rows()], basis)
        return total

    def rotated(self) -> Callable[[jax.Array], jax.Array]:
        return self.gramian

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        def largest() -> jax.Array:
            pairs = zip(self.latent_grads, self.factors, strict=True)
            return jnp.max(
                jnp.stack(
                    [
                        products.largest_entries([leaf])
                        if found is None
                        else found.bounds()
                        for leaf, found in pairs
                    ]
                ),
                axis=0,
            )

        return products.scale_if_needed(
            self.gramian, largest, self.latent_grads, present
        )

    def norms(self) -> jax.Array:
        found = self.scaled_gramian(None)
        return jnp.sqrt(diagonal(found.matrix)) / found.scales

    def mix(self, weights: jax.Array) -> Leaves:
        return [
            arithmetic.combine(weights, [leaf])[0]
            if found is None
            else found.combine(weights).astype(leaf.dtype)
            for leaf, found in zip(self.latent_grads, self.factors, strict=True)
        ]

    def along(self, direction: Leaves) -> jax.Array:
        return arithmetic.inner_products(self.latent_grads, direction)

    def leaves(self) -> Leaves:
        return self.latent_grads

    def held(self) -> Leaves:
        return self.latent_grads
