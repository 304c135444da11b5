"""Rows whose inner products are summed layer by layer, without a gradient per task.

See `factors` for which leaves, and `layer_products` for the formulas. A leaf costs, in
units of one product `x^T d`, with T tasks, R positions, m inputs and n outputs: rows T;
layerwise T R/m for `K d_t`, R/n for `K`, and one for the combination.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import convolves
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linalg.normalise import ScaledGramian, keeps_squares, scale_of
from mtlopt.linalg.products import diagonal, present_products
from mtlopt.rows import arithmetic, layer_products, products
from mtlopt.rows.protocol import OwnSpace
from mtlopt.rows.pushforward import pushforward
from mtlopt.rows.sweep import Sweep
from mtlopt.rows.task_loops import Leaf, Leaves, OneByOne, Tasks, Together

# As many positions of tasks together as a product on one core needs to be fast.
_POSITIONS = 256


# Up to this many tasks their factors are kept: one more pullback costs up to 1.3.
_FEW_TASKS = 8


def may_pay(choice: Any) -> bool:
    """Returns whether rows are to be layerwise where that is less work.

    Args:
      choice: a bool, or `"auto"` for a single CPU device: elsewhere it is not measured,
        and of a batch in parts on several devices all positions would be gathered.
    """
    if choice == "auto":
        return jax.default_backend() == "cpu" and jax.device_count() == 1
    return choice


def layerwise_rows(
    latent: Leaves,
    pull: Callable[[Leaves], Leaves],
    members: Any,
    batching: Any,
    make_rows: Callable[[], Leaves],
    total: Callable[[jax.Array], Leaves],
) -> "LayerwiseRows | None":
    """Returns rows with products undone, or None if none of them pays.

    Args:
      latent: latent rows of the tasks that are pulled back.
      pull: the pullback of one.
      members: which tasks these are; None for all.
      batching: how tasks are run, see `map_tasks`.
      make_rows: returns the rows themselves.
      total: from weights of all tasks to the combination of their rows.
    """
    num_tasks = len(latent[0])
    if num_tasks < 2:
        return None
    one = [leaf[0] for leaf in latent]
    sweep = Sweep(pull, one, functools.partial(pays, num_tasks))
    if not sweep.is_worth_it:
        return None
    common = latent, sweep, pull, members, make_rows
    if batching == "auto":
        on_cpu = jax.default_backend() == "cpu"
        few = num_tasks <= _FEW_TASKS or (on_cpu and convolves(pull, one))
        batching = ("unroll" if on_cpu else "vmap") if few else "map"
    if batching in ("unroll", "vmap"):
        together = Together(num_tasks, num_tasks)
        tasks = OneByOne(num_tasks) if batching == "unroll" else together
        return KeptProducts(*common, tasks)
    return SummedProducts(*common, total, None if batching == "map" else batching)


def pays(num_tasks: int, positions: int, inputs: int, outputs: int) -> bool:
    """Returns whether rows of a leaf cost more operations than its products."""
    if not inputs or not outputs:
        return False
    return num_tasks * (1 - positions / inputs) >= 1 + positions / outputs


@dataclasses.dataclass(frozen=True)
class LayerwiseRows(OwnSpace, abc.ABC):
    """Rows over the shared leaves that are known by the factors of their products.

    Attributes:
      latent: latent rows of the tasks that are pulled back, `[tasks, ...]`.
      sweep: the pullback.
      pull_one: the pullback of one latent cotangent.
      members: which tasks these are, see `Linearization`; None for all.
      make_rows: returns the rows themselves.
    """

    latent: Leaves
    sweep: Sweep
    pull_one: Callable[[Leaves], Leaves]
    members: Any
    make_rows: Callable[[], Leaves]

    @abc.abstractmethod
    def _gramian(self, basis: jax.Array | None) -> jax.Array:
        """Returns the Gramian of the rows that are pulled back."""

    @abc.abstractmethod
    def _squares(self, factors: jax.Array | None) -> jax.Array:
        """Returns the squared norms of the rows, times factors."""

    @abc.abstractmethod
    def _largest(self) -> jax.Array:
        """Returns numbers that no entry of a row exceeds, `[tasks]`."""

    @abc.abstractmethod
    def mix(self, weights: jax.Array) -> Leaves: ...

    @abc.abstractmethod
    def keep(self) -> Any:
        """Returns what is worth keeping if the rows are read more than once."""

    @abc.abstractmethod
    def with_kept(
        self, kept: Any, scales: jax.Array, present: jax.Array | None = None
    ) -> Any:
        """Returns the rows times `scales`, from what was kept of unscaled ones.

        Args:
          kept: what `keep` returned.
          scales: `[tasks]`, of the tasks that are pulled back.
          present: bool of the same; None for all.
        """

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        if self.members is None:
            return self._gramian(basis)
        spread = self.members.spread
        if basis is None:
            return spread(spread(self._gramian(None)).T)
        some = self.members.take(basis)
        if basis.ndim == 2:
            return self._gramian(some)
        return spread(spread(self._gramian(some)).T)

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        return products.scale_if_needed(
            self.gramian, lambda: self._of_all(self._largest()), self.latent, present
        )

    def norms(self) -> jax.Array:
        squares = self._squares(None)
        # A row that is zero in the latent is zero: no square of it was lost.
        moved = [jnp.any(leaf != 0, range(1, leaf.ndim)) for leaf in self.latent]
        moved = functools.reduce(jnp.logical_or, moved)
        size = sum(leaf[0].size for leaf in self.latent)

        def again() -> jax.Array:
            scales = scale_of(self._largest())
            return jnp.sqrt(self._squares(scales)) / scales

        is_right = keeps_squares(squares, size, moved)
        return self._of_all(jax.lax.cond(is_right, lambda: jnp.sqrt(squares), again))

    def rotated(self) -> Callable[[jax.Array], jax.Array]:
        return self.gramian

    def along(self, direction: Leaves) -> jax.Array:
        push = pushforward(self.pull_one, self.latent)
        return self._of_all(arithmetic.inner_products(self.latent, push(direction)))

    def leaves(self) -> Leaves:
        return self.make_rows()

    def held(self) -> Leaves:
        return self.make_rows()

    def pull(self, direction: Leaves, /) -> Leaves:
        return direction

    def _pull_sum(self, weights: jax.Array) -> Leaves:
        """Returns a combination by one pullback."""
        return self.pull_one(arithmetic.combine(weights, self.latent))

    def _of_all(self, values: jax.Array) -> jax.Array:
        return values if self.members is None else self.members.spread(values)


@dataclasses.dataclass(frozen=True)
class KeptProducts(LayerwiseRows):
    """The factors of all layers are kept: few tasks.

    Attributes:
      tasks: how the tasks are run.
      found: by leaf, the factors `(x, d)` or the rows; None if not made yet.
    """

    tasks: Tasks
    found: dict[int, Any] | None = None

    @functools.cached_property
    def _found(self) -> dict[int, Any]:
        if self.found is not None:
            return self.found
        return self.sweep.keep(self.latent, self.tasks)

    def _sum(self, add: Any, basis: jax.Array | None) -> jax.Array:
        total = jnp.zeros([], solver_dtype(self.sweep.shapes))
        for i, found in self._found.items():
            x, d = (None, found) if self.sweep.products[i] is None else found
            if basis is not None:
                d = layer_products.rotate(d, basis.astype(total.dtype))
            total = add.row(total, d) if x is None else add.product(total, x, d)
        return total

    def _gramian(self, basis: jax.Array | None) -> jax.Array:
        return self._sum(_Gramians(basis is not None), basis)

    def _squares(self, factors: jax.Array | None) -> jax.Array:
        return self._sum(_Squares(factors is not None), factors)

    def _largest(self) -> jax.Array:
        largest = [
            products.largest_entries([found])
            if self.sweep.products[i] is None
            else layer_products.bounds(*found)
            for i, found in self._found.items()
        ]
        return functools.reduce(jnp.maximum, largest)

    def mix(self, weights: jax.Array) -> Leaves:
        if self.members is not None:
            weights = self.members.take(weights)
        if self.found is None and "_found" not in vars(self):
            return self._pull_sum(weights)
        return [
            self._combine_leaf(weights, i, leaf)
            for i, leaf in enumerate(self.sweep.shapes)
        ]

    def _combine_leaf(self, weights: jax.Array, i: int, leaf: Any) -> jax.Array:
        found, product = self._found.get(i), self.sweep.products[i]
        if found is None:
            return jnp.zeros(leaf.shape, leaf.dtype)
        if product is None:
            return layer_products.combine_rows(weights, found)
        x, d = found
        matrix = layer_products.combine(weights, x, d, product.precision)
        return product.finish(matrix).astype(leaf.dtype)

    def keep(self) -> Any:
        return self._found

    def with_kept(
        self, kept: Any, scales: jax.Array, present: jax.Array | None = None
    ) -> "KeptProducts":
        def scale(found: Any) -> Any:
            return layer_products.scale(found, scales, present)

        found = {
            i: scale(values)
            if self.sweep.products[i] is None
            else (values[0], scale(values[1]))
            for i, values in kept.items()
        }
        return dataclasses.replace(self, found=found)


@dataclasses.dataclass(frozen=True)
class SummedProducts(LayerwiseRows):
    """Each layer's factors are summed up at once: many tasks.

    Attributes:
      total: from weights to their combination.
      size: of a chunk of tasks at most; None for one that makes products fast.
      known: the Gramian of the rows that are pulled back, if it is known.
    """

    total: Callable[[jax.Array], Leaves]
    size: int | None
    known: jax.Array | None = None

    def _sum(self, latent: Leaves, add: Any) -> jax.Array:
        num_tasks = len(latent[0])
        tasks = _together(num_tasks, self.sweep.positions, self.size)
        zeros = jnp.zeros(add.shape(num_tasks), solver_dtype(latent))
        return self.sweep.sum(latent, tasks, add, zeros)

    def _gramian(self, basis: jax.Array | None) -> jax.Array:
        if basis is None and self.known is not None:
            return self.known
        latent, is_rotated = self.latent, basis is not None
        if basis is not None and basis.ndim == 1:
            latent = [layer_products.scale(leaf, basis) for leaf in latent]
        elif basis is not None:
            latent = [_rotate(leaf, basis) for leaf in latent]
        return self._sum(latent, _Gramians(is_rotated))

    def _squares(self, factors: jax.Array | None) -> jax.Array:
        if factors is None and self.known is not None:
            return jnp.maximum(diagonal(self.known), 0)
        latent = self.latent
        if factors is not None:
            latent = [layer_products.scale(leaf, factors) for leaf in latent]
        return self._sum(latent, _Squares(factors is not None))

    def _largest(self) -> jax.Array:
        def largest(cotangent: Leaves) -> jax.Array:
            pulled = self.pull_one(cotangent)
            return products.largest_entries([leaf[None] for leaf in pulled])[0]

        return jax.lax.map(largest, self.latent)

    def mix(self, weights: jax.Array) -> Leaves:
        return self.total(weights)

    def keep(self) -> Any:
        return self._gramian(None)

    def with_kept(
        self, kept: Any, scales: jax.Array, present: jax.Array | None = None
    ) -> "SummedProducts":
        scales = scales.astype(kept.dtype)
        known = kept * scales[:, None] * scales[None]
        return dataclasses.replace(self, known=present_products(known, present))


class _Gramians(NamedTuple):
    """Sums Gramians; of rotated rows with `x` in its own unit."""

    is_rotated: bool

    def shape(self, num_tasks: int) -> tuple[int, ...]:
        return num_tasks, num_tasks

    def product(self, total: jax.Array, x: jax.Array, d: Leaf) -> jax.Array:
        return total + layer_products.gramian(x, d, self.is_rotated)

    def row(self, total: jax.Array, row: Leaf) -> jax.Array:
        return total + products.gramian(layer_products.parts_of(row))


class _Squares(NamedTuple):
    """Sums squared norms; of scaled rows with `x` in its own unit."""

    is_scaled: bool

    def shape(self, num_tasks: int) -> tuple[int, ...]:
        return (num_tasks,)

    def product(self, total: jax.Array, x: jax.Array, d: Leaf) -> jax.Array:
        return total + layer_products.squares(x, d, self.is_scaled)

    def row(self, total: jax.Array, row: Leaf) -> jax.Array:
        return total + layer_products.squares_of_rows(row)


def _together(num_tasks: int, positions: int, size: int | None) -> Tasks:
    """Returns a loop over chunks of tasks, a divisor of their number each."""
    most = size or max(1, _POSITIONS // positions)
    if size is None and jax.default_backend() != "cpu":
        most = num_tasks
    divisors = [i for i in range(1, num_tasks + 1) if num_tasks % i == 0]
    return Together(num_tasks, max(i for i in divisors if i <= most))


def _rotate(leaf: jax.Array, basis: jax.Array) -> jax.Array:
    """Returns the rows `basis^T leaf`, in their type."""
    dtype = solver_dtype([leaf])
    wide = leaf.astype(dtype)
    turned = jnp.tensordot(
        basis.T.astype(dtype), wide, 1, precision=jax.lax.Precision.HIGHEST
    )
    return turned.astype(leaf.dtype)
