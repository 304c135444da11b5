"""The losses of a batch in which each sample belongs to one task, linearised."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtlopt._jaxprs import convolves
from mtlopt.explanation import LeafPlan
from mtlopt.latent_leaves import linearize
from mtlopt.linearization import PullbackLinearization, RowOptions
from mtlopt.rows.arithmetic import scale_rows
from mtlopt.rows.factors import Pullback
from mtlopt.rows.groups import Groups
from mtlopt.rows.leaf_rows import Made
from mtlopt.rows.map_tasks import map_tasks
from mtlopt.rows.material import MaterialRows
from mtlopt.rows.members import Members
from mtlopt.rows.protocol import STATIC, Leaves, Rows
from mtlopt.rows.sample_leaves import Choice, sample_leaves
from mtlopt.rows.sample_rows import LatentSampleRows, SampleRows
from mtlopt.rows.streamed import StreamedRows

PyTree = Any

# This many backward passes of the whole batch cost less than a second forward pass.
_FEW_TASKS = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SampleLinearization:
    """Gradients of samples with respect to their latents, and the encoder's pullback.

    Attributes:
      groups: the tasks of the samples.
      latent_grads: leaves `[samples, ...]`, gradients of each sample's part of its
        task's loss.
      pullback: function from the cotangents of all samples to a 1-tuple of the shared
        leaves' gradients, summed over samples; None if no leaf is shared.
      latent_of: function from one sample and the shared leaves to its latent and aux.
      shared: the shared leaves.
      samples: leaves `[samples, ...]`.
      options: how rows are made.
      has_latent: see `Linearization`.
      moves: see `PullbackLinearization`.
      kept: gradients of the samples, if they are already computed, see `keep_rows`.
    """

    groups: Groups
    latent_grads: Leaves
    pullback: Callable[[Leaves], tuple[Leaves]] | None
    latent_of: Callable[[Any, Leaves], tuple[PyTree, Any]]
    shared: Leaves
    samples: Any
    options: RowOptions = dataclasses.field(metadata=STATIC)
    has_latent: bool = dataclasses.field(metadata=STATIC)
    moves: tuple[bool, ...] = dataclasses.field(default=(), metadata=STATIC)
    kept: Made | None = None

    def convolves(self) -> bool:
        return convolves(self.pull, self.latent_grads)

    def plan(self, paths: Sequence[str]) -> tuple[LeafPlan, ...]:
        if self.pullback is None:
            return ()
        sample = jax.tree.map(lambda leaf: leaf[0], self.samples)
        pullback = Pullback(self._pull_one(sample), [g[0] for g in self.latent_grads])
        choice = Choice.of(pullback, self.groups, self.options.streaming)
        in_pairs = choice.factors | choice.rows
        plans = []
        for i, (path, leaf) in enumerate(zip(paths, pullback.shapes, strict=True)):
            product, pairs = pullback.products[i], in_pairs.get(i, False)
            sizes = None if product is None else product.sizes
            reason = "samples are compared in pairs" if pairs else "rows are sums"
            plans.append(LeafPlan(path, leaf.shape, pairs, sizes, reason))
        return tuple(plans)

    def spread(self, members: Members) -> "SampleLinearization":
        return dataclasses.replace(self, groups=self.groups.of_all(members))

    def without(self, hidden: np.ndarray) -> "SampleLinearization":
        del hidden  # one pass carries all tasks, also the zeros of absent ones
        return self

    def latent_pieces(
        self, batch_free: list[bool], losses: jax.Array
    ) -> tuple[jax.Array, Leaves]:
        del batch_free  # every sample has a latent of its own
        if not self.has_latent:
            return jnp.zeros((len(losses), len(losses))), []
        return self.latent_rows(jnp.ones(len(losses)), None).gramian(), []

    def masked(self, seen: jax.Array) -> "SampleLinearization":
        return dataclasses.replace(self, latent_grads=self._scaled(None, seen))

    def keep_rows(
        self, present: jax.Array | None, entries: bool = False
    ) -> "SampleLinearization":
        del entries
        if self.pullback is None or self.kept is not None:
            return self
        # This is None if rows are streamed and some would be too large.
        return dataclasses.replace(self, kept=self._make(self._scaled(None, present)))

    def keep_latent(self) -> "SampleLinearization":
        return self

    def total(self, loss_scales: jax.Array, present: jax.Array | None) -> None:
        # The gradients of the heads are already known, and `combine` is one backward
        # pass.
        del loss_scales, present

    def pull(self, cotangents: Leaves) -> Leaves:
        """Maps cotangents of all samples to the shared leaves."""
        return cotangents if self.pullback is None else self.pullback(cotangents)[0]

    def seen(self, direction: Leaves) -> tuple[Leaves, Leaves]:
        """Returns rows and direction in the latent: see `PullbackLinearization`."""
        return self._over_latent(self.pullback).seen(direction)

    def rows(self, loss_scales: jax.Array, present: jax.Array | None) -> Rows:
        if self.pullback is None:
            return MaterialRows(self.groups.num_tasks, [])
        latent_grads = self._scaled(loss_scales, present)
        made, streaming = None, self.options.streaming
        if self.kept is not None:
            factors = loss_scales
            if present is not None:
                factors = jnp.where(present, factors, 0)
            made = self.kept.scaled(self.groups, factors)
        elif streaming:
            made = self._make(latent_grads)
            if made is None:
                rows = [self.groups.spread(leaf) for leaf in latent_grads]
                return StreamedRows(rows, self.pull)

        def make() -> Made:
            found = self._make(latent_grads) if made is None else made
            assert found is not None
            return found

        rows = SampleRows(self.groups, make, latent_grads, self.pull, streaming)
        if self.kept is not None:
            _ = rows.made  # make them now, because they are also combined
        return rows

    def latent_rows(self, loss_scales: jax.Array, present: jax.Array | None) -> Rows:
        latent_grads = self._scaled(loss_scales, present)
        return LatentSampleRows(self.groups, latent_grads, self.pull)

    def combine(
        self, weights: jax.Array, loss_scales: jax.Array, present: jax.Array | None
    ) -> Leaves:
        return self.rows(loss_scales, present).combine(weights)

    def with_latent_as_parameters(self) -> PullbackLinearization:
        return self._over_latent(None)

    def _over_latent(self, pullback: Any) -> PullbackLinearization:
        """Returns the same linearization, with latent rows that exist as arrays."""
        rows = [self.groups.spread(leaf) for leaf in self.latent_grads]
        return PullbackLinearization(rows, pullback, has_latent=True, moves=self.moves)

    def _scaled(self, scales: jax.Array | None, present: jax.Array | None) -> Leaves:
        """Returns the latent gradients times their tasks' scales, zero if absent."""
        if scales is None:
            scales = jnp.ones(self.groups.num_tasks)
        there = self.groups.ids >= 0
        if present is not None:
            there &= self.groups.of_samples(present)
        return scale_rows(self.latent_grads, self.groups.of_samples(scales), there)

    def _pull_one(self, sample: Any) -> Callable[[Leaves], Leaves]:
        """Returns the pullback of one sample."""
        of_shared = functools.partial(self.latent_of, sample)
        pullback = linearize(of_shared, self.shared)[2]
        assert pullback is not None
        return lambda cotangent: pullback(cotangent)[0]

    def _make(self, latent_grads: Leaves) -> Made | None:
        task_rows = functools.partial(self._task_rows, latent_grads)
        return sample_leaves(
            self._pull_one,
            self.samples,
            latent_grads,
            self.groups,
            None if self.options.streaming else task_rows,
        )

    def _task_rows(self, latent_grads: Leaves, places: Sequence[int]) -> Leaves:
        """Returns the rows of some leaves, by passes over the samples of one task.

        Usually a few samples at a time run forward and backward. In three cases each
        task has one backward pass of the whole batch instead: for few tasks, on several
        devices, and for convolutions on a CPU, which are slow in a loop.
        """

        def chosen(leaves: Leaves) -> Leaves:
            return [leaves[place] for place in places]

        def of_task(mask: Leaves) -> Leaves:
            return chosen(self.pull(scale_rows(latent_grads, mask[0])))

        few = self.groups.num_tasks <= _FEW_TASKS or jax.device_count() > 1
        on_cpu = jax.default_backend() == "cpu"
        if few or (on_cpu and convolves(self.pull, latent_grads)):
            masks = self.groups.masks.astype(latent_grads[0].dtype)
            return map_tasks(of_task, [masks], self.options.batching)

        def of_tile(samples: jax.Array, own: jax.Array) -> Leaves:
            some = jax.tree.map(lambda leaf: leaf[samples], self.samples)
            cotangents = [leaf[samples] for leaf in latent_grads]
            pullback = linearize(functools.partial(self._latents, some), self.shared)[2]
            assert pullback is not None
            return chosen(pullback(scale_rows(cotangents, own, own))[0])

        shapes = chosen(self.shared)
        sums = self.groups.sum_tiles(self.groups.tile_size(), of_tile, shapes)
        return [
            rows.astype(leaf.dtype) for rows, leaf in zip(sums, shapes, strict=True)
        ]

    def _latents(self, samples: Any, shared: Leaves) -> tuple[PyTree, Any]:
        """Returns the latents of some samples."""
        return jax.vmap(lambda sample: self.latent_of(sample, shared))(samples)
