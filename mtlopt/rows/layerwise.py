"""Rows whose inner products are summed layer by layer, without a gradient per task.

The module `factors` finds the leaves whose gradients are matrix products `x^T d_t` for
task t, and `layer_products` has the formulas. Take T tasks, R positions, m inputs and n
outputs, and let one product `x^T d_t` cost 1. The rows of a leaf then cost T. The
layerwise products of the leaf cost R/n for `K = x x^T`, T R/m for `K d_t` of all tasks,
and 1 for the combination.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import ScaledGramian
from mtlopt.linalg.products import present_products
from mtlopt.rows import arithmetic, layer_products, products
from mtlopt.rows.map_tasks import Batching, choose_batching
from mtlopt.rows.members import Members
from mtlopt.rows.protocol import Leaves, OwnSpace
from mtlopt.rows.pushforward import along
from mtlopt.rows.sweep import Sweep

# A matrix product on one core is fast if all tasks together have this many positions.
_POSITIONS = 256
# Up to this many tasks, keep the factors: a second pullback takes up to 1.3 times as
# long.
_FEW_TASKS = 8


def may_pay(choice: Any) -> bool:
    """Returns whether the layerwise rule is on; it then applies where it is less work.

    Args:
      choice: a bool, or `"auto"`, which is True on a single CPU device only. Other
        platforms have not been measured, and several devices would have to gather a
        batch's positions.
    """
    return products.alone() if choice == "auto" else choice


def pays(num_tasks: int, positions: int, inputs: int, outputs: int) -> bool:
    """Returns whether rows of a leaf need more operations than layerwise products."""
    if num_tasks < 2 or not inputs or not outputs:
        return False
    return num_tasks * (1 - positions / inputs) >= 1 + positions / outputs


def layerwise_rows(
    latent: Leaves,
    pull: Callable[[Leaves], Leaves],
    members: Members | None,
    batching: Batching,
    make_rows: Callable[[], Leaves],
    total: Callable[[jax.Array], Leaves],
) -> "LayerwiseRows | None":
    """Returns rows as factors of products, or None if this saves no work for any leaf.

    Args:
      latent: latent rows of the tasks that are pulled back.
      pull: the pullback of one latent row.
      members: the tasks that are pulled back; None for all.
      batching: how tasks are run, see `map_tasks`.
      make_rows: returns the rows themselves.
      total: function from weights of all tasks to the combination of their rows.
    """
    num_tasks = len(latent[0])
    if num_tasks < 2:
        return None
    sweep = Sweep(
        pull, [leaf[0] for leaf in latent], functools.partial(pays, num_tasks)
    )
    if not sweep.products:
        return None
    if batching == "auto":
        batching = choose_batching(pull, latent)
        if batching == "vmap" and num_tasks > _FEW_TASKS:
            batching = num_tasks
    common = latent, sweep, pull, members, make_rows, total
    if batching in ("unroll", "vmap"):
        return KeptProducts(*common, batching=batching)
    if batching == "map":  # enough tasks at a time for fast products
        batching = max(1, _POSITIONS // sweep.positions)
    assert isinstance(batching, int)
    return SummedProducts(*common, size=batching)


@dataclasses.dataclass(frozen=True)
class LayerwiseRows(OwnSpace, abc.ABC):
    """Rows over the shared leaves, given by the factors of their products.

    Attributes:
      latent: latent rows of the tasks that are pulled back, `[tasks, ...]`.
      sweep: the pullback.
      pull_one: the pullback of one latent cotangent.
      members: the tasks that are pulled back, see `Linearization`; None for all.
      make_rows: returns the rows themselves.
      total: function from weights to the combination of the rows.
      known: the Gramian of the rows that are pulled back, if it is known.
    """

    latent: Leaves
    sweep: Sweep
    pull_one: Callable[[Leaves], Leaves]
    members: Members | None
    make_rows: Callable[[], Leaves]
    total: Callable[[jax.Array], Leaves]
    known: jax.Array | None = dataclasses.field(default=None, kw_only=True)

    @abc.abstractmethod
    def pulled_gramian(self, basis: jax.Array | None) -> jax.Array:
        """Returns the Gramian of the rows that are pulled back."""

    @abc.abstractmethod
    def _largest(self) -> jax.Array:
        """Returns bounds `[tasks]` on the entries of the rows."""

    def with_known(
        self, matrix: jax.Array, scales: jax.Array, present: jax.Array | None
    ) -> "LayerwiseRows":
        """Returns the rows with a Gramian computed from the Gramian of unscaled rows.

        Args:
          matrix: result of `pulled_gramian`.
          scales: `[tasks]`, of all tasks.
          present: bool `[tasks]`; None for all.
        """
        if self.members is not None:
            scales = self.members.take(scales)
            present = present if present is None else self.members.take(present)
        scales = scales.astype(matrix.dtype)
        known = present_products(matrix * scales[:, None] * scales, present)
        return dataclasses.replace(self, known=known)

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        if basis is None and self.known is not None:
            found = self.known
        elif basis is None or self.members is None:
            found = self.pulled_gramian(basis)
        else:
            found = self.pulled_gramian(self.members.take(basis))
        if self.members is None or (basis is not None and basis.ndim == 2):
            return found
        return self.members.spread(self.members.spread(found).T)

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        def largest() -> jax.Array:
            return self._of_all(self._largest())

        row = [leaf[0] for leaf in self.latent]
        return products.scale_if_needed(self.gramian, largest, row, present)

    def mix(self, weights: jax.Array) -> Leaves:
        return self.total(weights)

    def along(self, direction: Leaves) -> jax.Array:
        return self._of_all(along(self.pull_one, self.latent, direction))

    def leaves(self) -> Leaves:
        return self.make_rows()

    def pull(self, direction: Leaves, /) -> Leaves:
        return direction

    def _of_all(self, values: jax.Array) -> jax.Array:
        return values if self.members is None else self.members.spread(values)


@dataclasses.dataclass(frozen=True)
class KeptProducts(LayerwiseRows):
    """Rows for few tasks, which keep the factors of all layers.

    Attributes:
      batching: how the tasks are run.
    """

    batching: Batching = dataclasses.field(kw_only=True)

    @functools.cached_property
    def made(self) -> dict[int, Any]:
        """The factors `(x, d)` or the rows of each leaf."""
        return self._make()

    def _make(self) -> dict[int, Any]:
        return self.sweep.keep(self.latent, self.batching)

    def _read(self) -> dict[int, Any]:
        """Returns `made`.

        If the Gramian is known, a branch of a `lax.cond` may be the first to read the
        factors. The branch then computes them only for itself.
        """
        return self.made if self.known is None else self._make()

    def pulled_gramian(self, basis: jax.Array | None) -> jax.Array:
        total = jnp.zeros([], solver_dtype(self.sweep.shapes))
        if basis is not None:
            basis = basis.astype(total.dtype)
        for i, found in self._read().items():
            if i not in self.sweep.products:
                total += products.gramian(products.parts_of([found]), basis)
                continue
            x, d = found
            turned = d if basis is None else products.rotate(d, basis)
            total += layer_products.gramian(x, turned, in_own_unit=basis is not None)
        return total

    def _largest(self) -> jax.Array:
        largest = [
            layer_products.bounds(*found)
            if i in self.sweep.products
            else products.largest_entries([found])
            for i, found in self._read().items()
        ]
        return functools.reduce(jnp.maximum, largest)

    def mix(self, weights: jax.Array) -> Leaves:
        if "made" not in vars(self):
            return self.total(weights)
        if self.members is not None:
            weights = self.members.take(weights)
        return [
            self._combine(weights, i, leaf).astype(leaf.dtype)
            for i, leaf in enumerate(self.sweep.shapes)
        ]

    def _combine(self, weights: jax.Array, i: int, leaf: Any) -> jax.Array:
        if i not in self.made:
            return jnp.zeros(leaf.shape, leaf.dtype)
        found, product = self.made[i], self.sweep.products.get(i)
        if product is None:
            return arithmetic.combine(weights, [found])[0]
        x, d = found
        matrix = layer_products.combine(weights, x, d, product.precision)
        return product.layout.finish(matrix)


@dataclasses.dataclass(frozen=True)
class SummedProducts(LayerwiseRows):
    """Rows for many tasks, which use each layer's factors in sums and do not keep them.

    Attributes:
      size: the largest number of tasks to run at a time.
    """

    size: int = dataclasses.field(kw_only=True)

    def pulled_gramian(self, basis: jax.Array | None) -> jax.Array:
        latent = self.latent
        if basis is not None:
            wide = basis.astype(solver_dtype(latent))
            latent = [products.rotate(one, wide).astype(one.dtype) for one in latent]
        count = len(latent[0])  # for rotated rows this counts all tasks
        size = max(i for i in range(1, self.size + 1) if count % i == 0)
        return self.sweep.gramian(latent, size, in_own_unit=basis is not None)

    def _largest(self) -> jax.Array:
        def largest(cotangent: Leaves) -> jax.Array:
            pulled = self.pull_one(cotangent)
            return products.largest_entries([leaf[None] for leaf in pulled])[0]

        return jax.lax.map(largest, self.latent)
