"""The losses, linearised in the shared leaves.

A method may need the rows (one gradient per task), or only one backward pass of a
weighted sum. This module and the package `rows` choose between the two, so a method's
author need not choose.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from mtlopt._jaxprs import convolves
from mtlopt._shards import check_whole
from mtlopt.explanation import LeafPlan, row_plans
from mtlopt.rows.arithmetic import scale_rows
from mtlopt.rows.factors import Pullback
from mtlopt.rows.head_products import HeadProductRows, HeadProducts
from mtlopt.rows.layerwise import LayerwiseRows, layerwise_rows, may_pay, pays
from mtlopt.rows.map_tasks import Batching, map_tasks
from mtlopt.rows.material import MaterialRows, PulledRows
from mtlopt.rows.members import Members
from mtlopt.rows.products import gramian_of_tasks
from mtlopt.rows.protocol import STATIC, Leaves, Rows
from mtlopt.rows.pushforward import pushforward
from mtlopt.rows.streamed import StreamedRows
from mtlopt.rows.summed import SummedRows


class Linearization(Protocol):
    """The part of a `TaskGrads` that belongs to the shared leaves.

    Arguments of the methods: `loss_scales` `[tasks]` multiply the losses and their
    gradients. `present` (bool `[tasks]`) marks the tasks that have labels; None means
    all.

    Attributes:
      has_latent: whether all tasks share one latent, in which methods may work.
    """

    @property
    def has_latent(self) -> bool: ...

    def rows(self, loss_scales: jax.Array, present: jax.Array | None) -> Rows:
        """Returns the rows over the shared leaves."""
        ...

    def latent_rows(self, loss_scales: jax.Array, present: jax.Array | None) -> Rows:
        """Returns the rows in latent space."""
        ...

    def combine(
        self, weights: jax.Array, loss_scales: jax.Array, present: jax.Array | None
    ) -> Leaves:
        """Returns a weighted sum of the shared rows, without making the rows."""
        ...

    def total(
        self, loss_scales: jax.Array, present: jax.Array | None
    ) -> tuple[Leaves, Leaves] | None:
        """Returns the gradient of the weighted sum of losses, by one backward pass.

        The first value is over the shared leaves, the second over the heads' leaves.
        Returns None if `combine` is less work.
        """
        ...

    def keep_rows(self, present: jax.Array | None, entries: bool = False) -> Self:
        """Makes the rows over the shared leaves once, for all later calls.

        For layerwise rows it computes only their Gramian (matrix of inner products),
        unless `entries` says that entries of the rows will be read.
        """
        ...

    def keep_latent(self) -> Self:
        """Switches to sums of the latent rows, which saves another backward pass."""
        ...

    def seen(self, direction: Leaves) -> tuple[Leaves, Leaves]:
        """Returns rows and a direction in a space that keeps their inner products."""
        ...

    def convolves(self) -> bool:
        """Returns whether a backward pass has a `lax` convolution."""
        ...

    def plan(self, paths: Sequence[str]) -> tuple[LeafPlan, ...]:
        """Returns how inner products of each shared leaf's gradients are computed.

        Args:
          paths: paths of the shared leaves.
        """
        ...

    def spread(self, members: Members) -> Self:
        """Extends this linearization of `members` to all tasks; other rows are 0."""
        ...

    def without(self, hidden: np.ndarray) -> Self:
        """Returns the linearization without work for hidden tasks, which are absent.

        Args:
          hidden: `[tasks]` bool.
        """
        ...

    def with_latent_as_parameters(self) -> "PullbackLinearization":
        """Returns the linearization with the latent in place of the shared leaves."""
        ...


class PartLinearization(Linearization, Protocol):
    """The linearization of one part of the batch, see `Microbatches`."""

    def latent_pieces(
        self, batch_free: list[bool], losses: jax.Array
    ) -> tuple[jax.Array, Leaves]:
        """Returns the Gramian over some leaves of the latent, and the others' rows.

        Args:
          batch_free: for each leaf of the latent, whether it is the same for all parts.
            The method returns the rows of these leaves, and the Gramian over all other
            leaves. Empty if there is no latent.
          losses: `[tasks]`.
        """
        ...

    def masked(self, seen: jax.Array) -> Self:
        """Returns the same linearization, with zero rows for tasks not in `seen`."""
        ...


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RowOptions:
    """How rows over the shared leaves are made, see `task_grad`.

    Attributes:
      batching: how the pullbacks of the tasks are run, see `map_tasks`.
      streaming: whether rows are recomputed instead of kept.
      layerwise: whether inner products of rows are summed layer by layer, without
        making the rows, if that is less work.
    """

    batching: Batching = "auto"
    streaming: bool = False
    layerwise: bool | Literal["auto"] = "auto"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PullbackLinearization:
    """Gradients of the losses with respect to the latent, and the encoder's pullback.

    Attributes:
      latent_grads: leaves `[tasks, ...]`.
      pullback: function from a latent cotangent to a 1-tuple of shared leaves. None if
        the latent gradients already are the gradients of the shared leaves.
      options: how rows are made.
      has_latent: see `Linearization`.
      backward: function from weights of the losses `[tasks]` to the gradients of the
        weighted sum with respect to the heads' leaves and the latent. None if weighted
        sums should combine the latent rows instead.
      kept: rows over the shared leaves, if they are already made, see `keep_rows`.
      kept_products: the Gramian of layerwise rows, kept instead of the rows.
      moves: per leaf that `encode` returned, whether it is a leaf of the latent here:
        see `latent_leaves`. Empty in problems without `encode`.
      members: the tasks whose rows are pulled back; None for all tasks. Rows of all
        other tasks are zero or masked by `present`.
      latent_products: for each leaf, the factors of its latent gradient if this
        gradient is a product, or None; empty if no leaf has factors.
    """

    latent_grads: Leaves
    pullback: Callable[[Leaves], tuple[Leaves]] | None = None
    options: RowOptions = dataclasses.field(default=RowOptions(), metadata=STATIC)
    has_latent: bool = dataclasses.field(default=False, metadata=STATIC)
    backward: Callable[[jax.Array], tuple[Leaves, Leaves]] | None = None
    kept: Leaves | None = None
    moves: tuple[bool, ...] = dataclasses.field(default=(), metadata=STATIC)
    members: Members | None = dataclasses.field(default=None, metadata=STATIC)
    latent_products: list[HeadProducts | None] = dataclasses.field(default_factory=list)
    kept_products: jax.Array | None = None

    def convolves(self) -> bool:
        return convolves(self.pull, [leaf[0] for leaf in self.latent_grads])

    def plan(self, paths: Sequence[str]) -> tuple[LeafPlan, ...]:
        if self.pullback is None:
            return row_plans(
                paths, self.latent_grads, "tasks have no pullback in common"
            )
        shapes = [jax.typeof(leaf[0]) for leaf in self.latent_grads]
        found = Pullback(self.pull, shapes)
        plans = []
        for path, leaf, product in zip(
            paths, found.shapes, found.products, strict=True
        ):
            sizes = None if product is None else product.sizes
            reason = self._why_rows(sizes)
            plans.append(LeafPlan(path, leaf.shape, not reason, sizes, reason))
        return tuple(plans)

    def _why_rows(self, sizes: tuple[int, int, int] | None) -> str:
        """Returns why a leaf has rows; an empty string if it has no rows."""
        count = len(self.latent_grads[0])
        if self.members is not None:
            count = len(self.members.indices)
        if sizes is None:
            return "its gradient is not one product of two matrices"
        if self.options.streaming:
            return "streaming: rows are made one at a time"
        if self.options.layerwise is False:
            return "layerwise=False"
        if not may_pay(self.options.layerwise):
            return "not on one CPU device: pass layerwise=True"
        return "" if pays(count, *sizes) else "rows need fewer operations"

    def spread(self, members: Members) -> "PullbackLinearization":
        return dataclasses.replace(
            self,
            latent_grads=[members.spread(leaf) for leaf in self.latent_grads],
            latent_products=[
                found and found.spread(members) for found in self.latent_products
            ],
            backward=None,
            members=members,
        )

    def without(self, hidden: np.ndarray) -> "PullbackLinearization":
        if self.kept_products is not None:
            return self  # the rows are already made, and `present` masks them
        seen = ~hidden if self.members is None else self.members.mask & ~hidden
        return dataclasses.replace(self, members=Members.of(seen))

    def latent_pieces(
        self, batch_free: list[bool], losses: jax.Array
    ) -> tuple[jax.Array, Leaves]:
        whole, pieces = [], []
        kinds = itertools.compress(batch_free, self.moves)
        for leaf, is_whole in zip(self.latent_grads, kinds, strict=False):
            (whole if is_whole else pieces).append(leaf)
        check_whole(lambda: pieces, losses)
        return gramian_of_tasks(pieces, losses), whole

    def masked(self, seen: jax.Array) -> "PullbackLinearization":
        latent_grads = scale_rows(self.latent_grads, jnp.ones(len(seen)), seen)
        return dataclasses.replace(
            self, latent_grads=latent_grads, backward=None, latent_products=[]
        )

    def keep_rows(
        self, present: jax.Array | None, entries: bool = False
    ) -> "PullbackLinearization":
        if self.pullback is None:
            return self.keep_latent()
        if self.options.streaming or self.kept is not None:
            return self
        ones = jnp.ones(len(self.latent_grads[0]))
        latent = self.latent_rows(ones, present)
        rows = None if entries else self._layerwise_rows(latent)
        if rows is None:
            kept = self._pull_rows(latent.leaves())
            return dataclasses.replace(self, kept=kept)
        if self.kept_products is not None:
            return self
        return dataclasses.replace(self, kept_products=rows.pulled_gramian(None))

    def keep_latent(self) -> "PullbackLinearization":
        return dataclasses.replace(self, backward=None)

    def total(
        self, loss_scales: jax.Array, present: jax.Array | None
    ) -> tuple[Leaves, Leaves] | None:
        # Rows of absent tasks may not be finite; kept rows need no backward pass.
        if present is not None or self.kept is not None or self.backward is None:
            return None
        heads, latent = self.backward(loss_scales)
        return self.pull(latent), heads

    def pull(self, cotangent: Leaves) -> Leaves:
        """Maps a cotangent of the latent to the shared leaves."""
        return cotangent if self.pullback is None else self.pullback(cotangent)[0]

    def seen(self, direction: Leaves) -> tuple[Leaves, Leaves]:
        """Returns rows and direction in the latent.

        Since `<J^T g_i, d> = <g_i, J d>` for the encoder's Jacobian `J`, latent rows
        `g_i` and a direction `d`, one pushforward replaces a pullback per task.
        """
        if self.pullback is None:
            return self.latent_grads, direction
        push = pushforward(self.pull, self.latent_grads)
        return self.latent_grads, push(direction)

    def latent_rows(self, loss_scales: jax.Array, present: jax.Array | None) -> Rows:
        latent_grads = scale_rows(self.latent_grads, loss_scales, present)
        if any(self.latent_products):
            return HeadProductRows.of(
                latent_grads, self.latent_products, self.pull, loss_scales, present
            )
        return MaterialRows(len(loss_scales), latent_grads, self.pull)

    def rows(self, loss_scales: jax.Array, present: jax.Array | None) -> Rows:
        count = len(loss_scales)
        if self.kept is not None:
            return MaterialRows(count, scale_rows(self.kept, loss_scales, present))
        latent = self.latent_rows(loss_scales, present)
        if self.pullback is None:
            return latent
        latent_grads = latent.leaves()
        if self.options.streaming:
            return StreamedRows(latent_grads, self.pull)
        rows = self._layerwise_rows(latent)
        if rows is None:
            return PulledRows(
                latent_grads, self.pull, lambda: self._pull_rows(latent_grads)
            )
        if self.kept_products is None:
            return rows
        return rows.with_known(self.kept_products, loss_scales, present)

    def _layerwise_rows(self, latent: Rows) -> LayerwiseRows | None:
        """Returns layerwise rows (never made as arrays) if allowed and less work."""
        if not may_pay(self.options.layerwise):
            return None
        latent_grads = some = latent.leaves()
        if self.members is not None:
            some = [self.members.take(leaf) for leaf in latent_grads]
        return layerwise_rows(
            some,
            self.pull,
            self.members,
            self.options.batching,
            lambda: self._pull_rows(latent_grads),
            latent.combine,
        )

    def combine(
        self, weights: jax.Array, loss_scales: jax.Array, present: jax.Array | None
    ) -> Leaves:
        return self.rows(loss_scales, present).combine(weights)

    def _pull_rows(self, latent_grads: Leaves) -> Leaves:
        """Maps the latent rows to the shared leaves; zero rows need no pullback."""
        batching = self.options.batching
        if self.members is None:
            return map_tasks(self.pull, latent_grads, batching)
        some = [self.members.take(leaf) for leaf in latent_grads]
        pulled = map_tasks(self.pull, some, batching)
        return [self.members.spread(leaf) for leaf in pulled]

    def with_latent_as_parameters(self) -> "PullbackLinearization":
        return PullbackLinearization(
            self.latent_grads, has_latent=True, moves=self.moves
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SummedLinearization:
    """The losses, linearised in the shared leaves, summed over several microbatches.

    Attributes:
      values: rows over the shared leaves `[tasks, ...]`, summed.
      products: Gramian of the latent rows, summed.
      recombine: see `SummedRows`.
      has_latent: see `Linearization`.
    """

    values: Leaves
    products: jax.Array
    recombine: Callable[[jax.Array], Leaves]
    has_latent: bool = dataclasses.field(metadata=STATIC)

    def convolves(self) -> bool:
        return False  # the rows are made

    def plan(self, paths: Sequence[str]) -> tuple[LeafPlan, ...]:
        return row_plans(paths, self.values, "microbatches: rows are added up")

    def spread(self, members: Members) -> "SummedLinearization":
        return dataclasses.replace(
            self,
            values=[members.spread(leaf) for leaf in self.values],
            products=members.spread(members.spread(self.products).T),
            recombine=jax.tree_util.Partial(_recombine_some, self.recombine, members),
        )

    def without(self, hidden: np.ndarray) -> "SummedLinearization":
        del hidden  # each row is a sum over parts, made for all tasks at once
        return self

    def keep_rows(
        self, present: jax.Array | None, entries: bool = False
    ) -> "SummedLinearization":
        del present, entries  # the rows are already kept
        return self

    def keep_latent(self) -> "SummedLinearization":
        return self

    def total(self, loss_scales: jax.Array, present: jax.Array | None) -> None:
        del loss_scales, present

    def seen(self, direction: Leaves) -> tuple[Leaves, Leaves]:
        """Returns rows and direction over the shared leaves."""
        return self.values, direction

    def latent_rows(self, loss_scales: jax.Array, present: jax.Array | None) -> Rows:
        factor = loss_scales if present is None else jnp.where(present, loss_scales, 0)

        def recombine(weights: jax.Array) -> Leaves:
            return self.recombine(weights * factor)

        products = jnp.where(
            jnp.outer(factor, factor) == 0, 0, jnp.outer(factor, factor) * self.products
        )
        return SummedRows(products, recombine)

    def rows(self, loss_scales: jax.Array, present: jax.Array | None) -> Rows:
        values = scale_rows(self.values, loss_scales, present)
        return MaterialRows(len(loss_scales), values)

    def combine(
        self, weights: jax.Array, loss_scales: jax.Array, present: jax.Array | None
    ) -> Leaves:
        return self.latent_rows(loss_scales, present).combine(weights)

    def with_latent_as_parameters(self) -> PullbackLinearization:
        raise ValueError(
            "`microbatches` must be 1 for a method that moves the latent: with several "
            "microbatches, no latent is kept."
        )


def _recombine_some(
    recombine: Callable[[jax.Array], Leaves], members: Members, weights: jax.Array
) -> Leaves:
    """Combines the rows of `members`; `weights` has an entry for every task."""
    return recombine(members.take(weights))
