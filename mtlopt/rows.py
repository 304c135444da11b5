"""Task rows: what an aggregator may ask of the gradients it combines.

An aggregator needs inner products of the rows (`gramian`), one combination of them
(`combine`), or, for the few that work element by element, the rows themselves
(`leaves`) and the way back (`pull`). Where the rows live (shared parameters or latent)
and whether they exist at all is decided here, so that no method has to know.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mtlopt._jaxprs import convolves
from mtlopt.labels import STACKED, Partition
from mtlopt.linalg import gramian as linalg
from mtlopt.linalg.normalise import ScaledGramian
from mtlopt.linalg.products import diagonal, dot

Leaves = list[jax.Array]
STATIC = {"static": True}  # metadata of dataclass fields that are not pytree children
Batching = Literal["auto", "unroll", "vmap", "map"] | int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Members:
    """Some of the tasks, known at trace time: the others are not evaluated.

    Attributes:
      indices: which.
      num_tasks: number of all tasks.
    """

    indices: tuple[int, ...]
    num_tasks: int

    @classmethod
    def of(cls, mask: np.ndarray) -> "Members":
        """Returns the tasks at which a mask `[tasks]` is true."""
        return cls(tuple(np.flatnonzero(mask).tolist()), len(mask))

    @property
    def mask(self) -> np.ndarray:
        """Bool `[tasks]`."""
        return np.isin(np.arange(self.num_tasks), self.indices)

    def take(self, values: jax.Array) -> jax.Array:
        """Returns the entries `[members, ...]` of `values`, `[tasks, ...]`."""
        some = [values[i] for i in self.indices]
        return jnp.stack(some) if some else values[:0]

    def spread(self, values: jax.Array) -> jax.Array:
        """Inverse of `take`, with zeros for the other tasks."""
        places = {task: place for place, task in enumerate(self.indices)}
        if self.indices:
            zero = jnp.zeros_like(values[0])  # with its sharding
        else:
            zero = jnp.zeros_like(values, shape=values.shape[1:])
        return jnp.stack(
            [values[places[i]] if i in places else zero for i in range(self.num_tasks)]
        )


class Rows(Protocol):
    """Rows `[tasks, ...]` of the Jacobian, in some space.

    Attributes:
      products_only: whether their inner products are all that is known of them.
    """

    products_only: ClassVar[bool]

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        """Returns the inner products of the rows, `[tasks, tasks]`.

        Args:
          basis: `B` `[tasks, tasks]`, or the diagonal of one `[tasks]`, to take those
            of the rotated rows `B^T J`. They have digits that rounding of the plain
            ones loses, if the rows nearly depend on each other and `products_only` is
            False.
        """
        ...

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        """Returns the inner products of rows of any norms, see `ScaledGramian`.

        Args:
          present: Tasks to look at, bool `[tasks]`; None for all.
        """
        ...

    def norms(self) -> jax.Array:
        """Returns the norms of the rows, `[tasks]`: less work than their Gramian."""
        ...

    def combine(self, weights: jax.Array) -> Leaves:
        """Returns `sum_i weights[i] g_i` over the shared leaves."""
        ...

    def leaves(self) -> Leaves:
        """Returns the rows themselves, leaves `[tasks, ...]`."""
        ...

    def pull(self, direction: Leaves, /) -> Leaves:
        """Maps a direction in the rows' space to the shared leaves."""
        ...


@dataclasses.dataclass(frozen=True)
class MaterialRows:
    """Rows that exist as arrays.

    Attributes:
      num_tasks: number of rows.
      values: leaves `[tasks, ...]`; none where nothing is shared.
      pull: linear map from the rows' space to the shared leaves.
    """

    num_tasks: int
    values: Leaves
    pull: Callable[[Leaves], Leaves] = list
    products_only: ClassVar[bool] = False

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        if not self.values:
            return jnp.zeros((self.num_tasks, self.num_tasks))
        return linalg.gramian(self._parts, basis)

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        if not self.values:
            return ScaledGramian(self.gramian(), jnp.ones(self.num_tasks))
        return linalg.scaled_gramian(self._parts, present)

    @functools.cached_property
    def _parts(self) -> list[linalg.Leaf]:
        return linalg.parts_of(self.values)

    def norms(self) -> jax.Array:
        if not self.values:
            return jnp.zeros(self.num_tasks)
        return linalg.row_norms(self.values)

    def combine(self, weights: jax.Array) -> Leaves:
        return self.pull(linalg.combine(weights, self.values))

    def leaves(self) -> Leaves:
        return self.values


@dataclasses.dataclass(frozen=True)
class StreamedRows:
    """Rows that are made one at a time and never kept: memory O(params).

    Column `j` of the Gramian is `<latent_i, J (J^T latent_j)>`: one pullback and one
    pushforward a task. The pushforward is the pullback's transpose, so it needs no
    second forward pass and works through `jax.custom_vjp`.

    Attributes:
      latent: leaves `[tasks, ...]`.
      pull: pullback of the encoder, from one latent cotangent to the shared leaves.
    """

    latent: Leaves
    pull: Callable[[Leaves], Leaves]
    products_only: ClassVar[bool] = False

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        return self._products(self._flat, basis)

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        rows = self._flat

        def largest(task: jax.Array) -> jax.Array:
            pulled = self.pull(self._cotangent([row[task] for row in rows]))
            return linalg.largest_entries([leaf[None] for leaf in pulled])[0]

        return linalg.scale_if_needed(
            functools.partial(self._products, rows),
            lambda: jax.lax.map(largest, jnp.arange(len(rows[0]))),
            rows,
            present,
        )

    @functools.cached_property
    def _flat(self) -> Leaves:
        """One copy of the rows, for all loops and the products in them to read."""
        return [linalg.flat_rows(leaf) for leaf in self.latent]

    def _cotangent(self, row: Leaves) -> Leaves:
        return [
            flat.reshape(leaf.shape[1:])
            for flat, leaf in zip(row, self.latent, strict=True)
        ]

    def _products(self, rows: Leaves, basis: jax.Array | None = None) -> jax.Array:
        push = pushforward(self.pull, self.latent)

        def column(task: jax.Array) -> jax.Array:
            flat = [row[task] for row in rows]
            if basis is not None and basis.ndim == 1:
                flat = [row * basis[task].astype(row.dtype) for row in flat]
            elif basis is not None:
                flat = linalg.combine(basis[:, task], rows)
            image = push(self.pull(self._cotangent(flat)))
            image = [
                leaf.reshape(row.shape[1:])
                for row, leaf in zip(rows, image, strict=True)
            ]
            products = inner_products(rows, image)
            if basis is None:
                return products
            return products * basis if basis.ndim == 1 else dot(products, basis)

        total = jax.lax.map(column, jnp.arange(len(rows[0])))
        return (total + total.T) / 2

    def norms(self) -> jax.Array:
        def norm(cotangent: Leaves) -> jax.Array:
            return linalg.row_norms([leaf[None] for leaf in self.pull(cotangent)])[0]

        return jax.lax.map(norm, self.latent)

    def combine(self, weights: jax.Array) -> Leaves:
        return self.pull(linalg.combine(weights, self.latent))

    def leaves(self) -> Leaves:
        raise ValueError(
            "`streaming` must be False for a method that needs more of the rows than "
            "their Gramian, got True: streamed rows are never kept."
        )


@dataclasses.dataclass(frozen=True)
class SummedRows:
    """Latent rows of several microbatches: only their inner products were kept.

    Attributes:
      products: Gramian, summed over the microbatches.
      recombine: runs the encoder again and pulls the weighted latent rows back.
    """

    products: jax.Array
    recombine: Callable[[jax.Array], Leaves]
    products_only: ClassVar[bool] = True

    def gramian(self, basis: jax.Array | None = None) -> jax.Array:
        if basis is None:
            return self.products
        if basis.ndim == 1:
            return basis[:, None] * self.products * basis[None]
        return dot(basis.T, dot(self.products, basis))

    def scaled_gramian(self, present: jax.Array | None) -> ScaledGramian:
        del present
        # The rows cannot be looked at again. Entries' squares that were flushed would
        # let cosines contradict each other, so what is so short counts as zero.
        squares, info = diagonal(self.products), jnp.finfo(self.products.dtype)
        is_lost = squares < float(info.tiny / info.eps)
        kept = jnp.where(is_lost[:, None] | is_lost[None], 0, self.products)
        return ScaledGramian(kept, jnp.ones_like(squares))

    def norms(self) -> jax.Array:
        return jnp.sqrt(jnp.maximum(diagonal(self.products), 0))

    def combine(self, weights: jax.Array) -> Leaves:
        return self.recombine(weights)

    def leaves(self) -> Leaves:
        raise ValueError(
            "`microbatches` must be 1 for a method that needs more of the latent rows "
            "than their Gramian: nothing else is kept of them."
        )

    def pull(self, direction: Leaves, /) -> Leaves:
        del direction
        raise ValueError("latent rows of several microbatches cannot be pulled back.")


def rotated_gramian(rows: Rows) -> Callable[[jax.Array], jax.Array] | None:
    """Returns `rows.gramian` as a function of the basis, if it has more digits."""
    if isinstance(rows, MaterialRows) and rows.values:
        return jax.tree_util.Partial(linalg.gramian, rows._parts)
    if isinstance(rows, StreamedRows):
        _ = rows._flat  # made here, not in the branch that may read it first
    return None if rows.products_only else rows.gramian


def pushforward(
    pull: Callable[[Leaves], Leaves], rows: Leaves
) -> Callable[[Leaves], Leaves]:
    """Returns the transpose of a pullback: from a shared direction to the latent's.

    Args:
      pull: from one latent cotangent to the shared leaves.
      rows: latent rows `[tasks, ...]`, for their shapes.
    """
    push = jax.linear_transpose(pull, [leaf[0] for leaf in rows])
    return lambda direction: push(direction)[0]


def inner_products(rows: Leaves, direction: Leaves) -> jax.Array:
    """Returns the inner product of every row with one direction, `[tasks]`."""
    dtype = linalg.solver_dtype(rows)
    products = [
        jnp.tensordot(
            leaf,
            one,
            one.ndim,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=dtype,
            out_sharding=linalg.replicated(leaf),
        )
        for leaf, one in zip(rows, direction, strict=True)
    ]
    return jnp.sum(jnp.stack(products), axis=0)


def scale_rows(
    rows: Leaves, scales: jax.Array, present: jax.Array | None = None
) -> Leaves:
    """Multiplies row i by `scales[i]`; absent rows become zero, even from NaN."""

    def scale(leaf: jax.Array) -> jax.Array:
        column = (slice(None),) + (None,) * (leaf.ndim - 1)
        scaled = leaf * scales[column].astype(leaf.dtype)
        return scaled if present is None else jnp.where(present[column], scaled, 0)

    return [scale(leaf) for leaf in rows]


def scale_heads(
    partition: Partition,
    heads: Leaves,
    scales: jax.Array,
    present: jax.Array | None = None,
) -> Leaves:
    """The same for the heads' leaves, each by the factor of its own task."""
    scaled = []
    for label, leaf in zip(partition.head_labels, heads, strict=True):
        if label == STACKED:
            scaled += scale_rows([leaf], scales, present)
            continue
        task = partition.tasks.index(label)
        there = None if present is None else present[task : task + 1]
        (row,) = scale_rows([leaf[None]], scales[task : task + 1], there)
        scaled.append(row[0])
    return scaled


# Up to this many tasks an unrolled program compiles about as fast as a loop.
_UNROLL_LIMIT = 8


def map_tasks(
    function: Callable[[Leaves], Leaves], rows: Leaves, batching: Batching
) -> Leaves:
    """Applies `function` to every task's row and stacks the results.

    Args:
      function: from leaves without to leaves without the task axis.
      rows: leaves `[tasks, ...]`.
      batching: `"unroll"` a copy of the program per task, `"vmap"` one batched program,
        `"map"` one task after the other in a loop, an int: loops over chunks of so many
        tasks. `"auto"`, by measurement: `"vmap"`, but on CPU, where XLA runs batched
        pullbacks up to four times slower, `"unroll"` for up to 8 tasks and `"map"` for
        more, which compiles sooner; unless the pullback has a `lax` convolution, which
        XLA runs many times slower inside a loop on CPU.

    Returns:
      Leaves `[tasks, ...]`.
    """
    if batching == "auto":
        batching = _choose_batching(function, rows)
    if not len(rows[0]):
        batching = "vmap"  # the others need a row to learn the result's shape from
    if batching == "unroll":
        results = [function([leaf[i] for leaf in rows]) for i in range(len(rows[0]))]
        return [jnp.stack(leaves) for leaves in zip(*results, strict=True)]
    if batching == "vmap":
        return jax.vmap(function)(rows)
    if batching == "map":
        return jax.lax.map(function, rows)
    assert isinstance(batching, int)
    return jax.lax.map(function, rows, batch_size=batching)


def _choose_batching(function: Callable[[Leaves], Leaves], rows: Leaves) -> Batching:
    if jax.default_backend() != "cpu":
        return "vmap"
    few = rows[0].shape[0] <= _UNROLL_LIMIT
    return "unroll" if few or convolves(function, [r[0] for r in rows]) else "map"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linearization:
    """The losses, linearised: latent rows and the encoder's pullback.

    Attributes:
      latent: gradients of the losses with respect to the latent, `[tasks, ...]`.
      pullback: from a latent cotangent to a 1-tuple of shared leaves; None where the
        rows already are gradients of the shared leaves.
      batching: how the pullbacks of the tasks are run, see `map_tasks`.
      streaming: whether rows are recomputed instead of kept.
      has_latent: whether the tasks meet in one latent that methods may work in.
      backward: from factors of the losses `[tasks]` to the gradients of the weighted
        sum with respect to the heads' leaves and the latent; None where the latent rows
        are to be combined instead.
      kept: rows over the shared leaves, if they were made already, see `keep_rows`.
      moves: per leaf of what `encode` returned, whether it is one of the latent's
        leaves here: see `latent_leaves`. Empty in problems without `encode`.
      members: the tasks whose rows are pulled back: those of the others are zero, or
        masked by `present`. None for all.
    """

    latent: Leaves
    pullback: Callable[[Leaves], tuple[Leaves]] | None
    batching: Batching = dataclasses.field(metadata=STATIC)
    streaming: bool = dataclasses.field(metadata=STATIC)
    has_latent: bool = dataclasses.field(metadata=STATIC)
    backward: Callable[[jax.Array], tuple[Leaves, Leaves]] | None = None
    kept: Leaves | None = None
    moves: tuple[bool, ...] = dataclasses.field(default=(), metadata=STATIC)
    members: Members | None = dataclasses.field(default=None, metadata=STATIC)

    def spread(self, members: Members) -> "Linearization":
        """Returns the linearization of all tasks from that of some: zero rows."""
        latent = [members.spread(leaf) for leaf in self.latent]
        return dataclasses.replace(self, latent=latent, backward=None, members=members)

    def without(self, hidden: np.ndarray) -> "Linearization":
        """Returns the same, without a pullback for tasks that `present` leaves out.

        Args:
          hidden: `[tasks]` bool.
        """
        seen = ~hidden if self.members is None else self.members.mask & ~hidden
        return dataclasses.replace(self, members=Members.of(seen))

    def keep_rows(self, present: jax.Array | None) -> "Linearization":
        """Makes the rows over the shared leaves, for all that asks for them from here.

        A combination of rows that exist costs less than one more pullback.
        """
        if self.pullback is None:
            return self.keep_latent()
        if self.streaming or self.kept is not None:
            return self
        latent = scale_rows(self.latent, jnp.ones(len(self.latent[0])), present)
        return dataclasses.replace(self, kept=self._pull_rows(latent))

    def keep_latent(self) -> "Linearization":
        """Lets sums combine the latent rows, instead of one more backward pass."""
        return dataclasses.replace(self, backward=None)

    def total(self, factors: jax.Array) -> tuple[Leaves, Leaves]:
        """Returns the gradient of `sum_i factors[i] L_i`: shared leaves and heads."""
        assert self.backward is not None
        heads, latent = self.backward(factors)
        return self.pull(latent), heads

    def pull(self, cotangent: Leaves) -> Leaves:
        """Maps a cotangent of the latent to the shared leaves."""
        return cotangent if self.pullback is None else self.pullback(cotangent)[0]

    def _pull_rows(self, latent: Leaves) -> Leaves:
        """Maps the latent rows to the shared leaves; zero rows need no pullback."""
        if self.members is None:
            return map_tasks(self.pull, latent, self.batching)
        some = [self.members.take(leaf) for leaf in latent]
        pulled = map_tasks(self.pull, some, self.batching)
        return [self.members.spread(leaf) for leaf in pulled]

    def seen(self, direction: Leaves) -> tuple[Leaves, Leaves]:
        """Returns rows and direction in the latent, where their inner products are.

        `<J^T z_i, d> = <z_i, J d>`: one pushforward instead of a pullback per task.
        """
        if self.pullback is None:
            return self.latent, direction
        return self.latent, pushforward(self.pull, self.latent)(direction)

    def latent_rows(self, scales: jax.Array, present: jax.Array | None) -> Rows:
        """Returns the rows in latent space: no pullback before they are combined."""
        return MaterialRows(
            len(scales), scale_rows(self.latent, scales, present), self.pull
        )

    def rows(self, scales: jax.Array, present: jax.Array | None) -> Rows:
        """Returns the rows over the shared leaves: one pullback per task."""
        if self.kept is not None:
            return MaterialRows(len(scales), scale_rows(self.kept, scales, present))
        latent = scale_rows(self.latent, scales, present)
        if self.pullback is None:
            return MaterialRows(len(scales), latent)
        if self.streaming:
            return StreamedRows(latent, self.pull)
        return MaterialRows(len(scales), self._pull_rows(latent))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SummedLinearization:
    """The same over several microbatches.

    Attributes:
      values: rows over the shared leaves `[tasks, ...]`, summed.
      products: Gramian of the latent rows, summed.
      recombine: see `SummedRows`.
      has_latent: as in `Linearization`.
    """

    values: Leaves
    products: jax.Array
    recombine: Callable[[jax.Array], Leaves]
    has_latent: bool = dataclasses.field(metadata=STATIC)

    def spread(self, members: Members) -> "SummedLinearization":
        """Returns the linearization of all tasks from that of some: zero rows."""
        return dataclasses.replace(
            self,
            values=[members.spread(leaf) for leaf in self.values],
            products=members.spread(members.spread(self.products).T),
            recombine=jax.tree_util.Partial(_recombine_some, self.recombine, members),
        )

    def seen(self, direction: Leaves) -> tuple[Leaves, Leaves]:
        """Returns rows and direction over the shared leaves."""
        return self.values, direction

    def latent_rows(self, scales: jax.Array, present: jax.Array | None) -> Rows:
        """Returns the rows in latent space."""
        factor = scales if present is None else jnp.where(present, scales, 0)

        def recombine(weights: jax.Array) -> Leaves:
            return self.recombine(weights * factor)

        products = jnp.where(
            jnp.outer(factor, factor) == 0, 0, jnp.outer(factor, factor) * self.products
        )
        return SummedRows(products, recombine)

    def rows(self, scales: jax.Array, present: jax.Array | None) -> Rows:
        """Returns the rows over the shared leaves."""
        return MaterialRows(len(scales), scale_rows(self.values, scales, present))


def _recombine_some(
    recombine: Callable[[jax.Array], Leaves], members: Members, weights: jax.Array
) -> Leaves:
    """Combines the rows of some tasks by the weights of all."""
    return recombine(members.take(weights))
