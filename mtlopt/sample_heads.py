"""Losses of single samples, each computed by the head of the sample's task."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mtlopt.heads import HeadCall, HeadFns, Inputs, SeparateHeadFns, StackedHeadFns
from mtlopt.latent_leaves import Rest
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.rows.protocol import STATIC, Leaves
from mtlopt.samples import Samples, fold_keys, replace_samples

PyTree = Any


class Found(NamedTuple):
    """Losses of the samples and their gradients.

    Attributes:
      losses: `[samples]`.
      aux: leaves `[samples, ...]`.
      head_grads: for each task, gradients of the sum of its samples' losses, in which
        each loss is multiplied by the sample's share.
      latent_grads: gradients of the same sums, leaves `[samples, ...]`.
    """

    losses: jax.Array
    aux: Any
    head_grads: Leaves
    latent_grads: Leaves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SampleCall:
    """The heads on one batch.

    Attributes:
      inputs: parameters, and the arguments other than the batch.
      has_aux: whether losses return a second value.
    """

    inputs: Inputs
    has_aux: bool = dataclasses.field(metadata=STATIC)

    def one(self, part: tuple[PyTree, jax.Array], rest: Rest | None) -> HeadCall:
        """Returns the heads' inputs for one sample and its index."""
        sample, index = part
        args = (sample, *fold_keys(self.inputs.args, index))
        inputs = dataclasses.replace(self.inputs, args=args)
        return HeadCall(inputs, None if rest is None else rest.join, self.has_aux)


class SampleHeads(Protocol):
    """Heads that run each sample through the head of its task."""

    def losses(
        self,
        call: SampleCall,
        samples: Samples,
        latent: Leaves,
        rest: Rest,
        members: Any,
    ) -> jax.Array:
        """Returns the losses `[samples]` on latents with leaves `[samples, ...]`."""
        ...

    def gradients(
        self,
        call: SampleCall,
        samples: Samples,
        latent: Leaves,
        rest: Rest,
        members: Any,
    ) -> Found:
        """Returns losses, and gradients in which `samples.shares` are the weights."""
        ...


@dataclasses.dataclass(frozen=True)
class StackedSampleHeads:
    """One head function; it gets for every sample the leaves of the sample's task."""

    head_fns: StackedHeadFns

    def losses(
        self,
        call: SampleCall,
        samples: Samples,
        latent: Leaves,
        rest: Rest,
        members: Any,
    ) -> jax.Array:
        del members  # samples of other tasks have a share of zero
        head_params = call.inputs.head_params
        return self._run(call, samples, rest, head_params, latent)[0]

    def gradients(
        self,
        call: SampleCall,
        samples: Samples,
        latent: Leaves,
        rest: Rest,
        members: Any,
    ) -> Found:
        del members  # samples of other tasks have a share of zero
        losses, pull, aux = jax.vjp(
            lambda *args: self._run(call, samples, rest, *args),
            call.inputs.head_params,
            latent,
            has_aux=True,
        )
        shares = jnp.where(samples.counts, samples.shares, 0).astype(losses.dtype)
        return Found(losses, aux, *pull(shares))

    def _run(
        self,
        call: SampleCall,
        samples: Samples,
        rest: Rest,
        head_params: Leaves,
        latent: Leaves,
    ) -> tuple[jax.Array, Any]:
        def one(
            part: Any, task: Any, rest: Rest, leaves: Leaves, latent: Leaves
        ) -> Any:
            return self.head_fns.loss_of(task, call.one(part, rest), leaves, latent)

        own = samples.of_tasks(head_params)
        return vmap(one)(samples.parts, samples.tasks, rest, own, latent)


@dataclasses.dataclass(frozen=True)
class SeparateSampleHeads:
    """One head function per task; each runs on all samples.

    A sample of another task is replaced by a sample of the head's own task, because a
    loss may be undefined or not differentiable on a sample of another task.
    """

    head_fns: SeparateHeadFns

    def losses(
        self,
        call: SampleCall,
        samples: Samples,
        latent: Leaves,
        rest: Rest,
        members: Any,
    ) -> jax.Array:
        losses = jnp.zeros(len(samples.index), _dtype(latent))
        for i in self._chosen(members):
            own, run = self._task(i, call, samples, rest)
            moved = self._replaced(samples, i, latent)
            losses = _where(own, run(call.inputs.head_params, moved)[0], losses)
        return losses

    def gradients(
        self,
        call: SampleCall,
        samples: Samples,
        latent: Leaves,
        rest: Rest,
        members: Any,
    ) -> Found:
        labels, head_params = call.inputs.partition.head_labels, call.inputs.head_params
        grads = [jnp.zeros_like(leaf) for leaf in head_params]
        latent_grads = [jnp.zeros_like(leaf) for leaf in latent]
        losses, aux = jnp.zeros(len(samples.index), _dtype(latent)), {}
        for i in self._chosen(members):
            task = self.head_fns.tasks[i]
            own, run = self._task(i, call, samples, rest)
            places = [j for j, label in enumerate(labels) if label == task]

            def of_own(
                own_leaves: Leaves, latent: Leaves, run=run, places=places
            ) -> tuple[jax.Array, Any]:
                moved = list(head_params)
                for j, leaf in zip(places, own_leaves, strict=True):
                    moved[j] = leaf
                return run(moved, latent)

            values, pull, aux[task] = jax.vjp(
                of_own,
                [head_params[j] for j in places],
                self._replaced(samples, i, latent),
                has_aux=True,
            )
            shares = jnp.where(own, samples.shares, 0).astype(values.dtype)
            own_grads, rows = pull(shares)
            for j, grad in zip(places, own_grads, strict=True):
                grads[j] = grad
            losses = _where(own, values, losses)
            latent_grads = [
                _where(own, row, other)
                for row, other in zip(rows, latent_grads, strict=True)
            ]
        return Found(losses, aux, grads, latent_grads)

    def _chosen(self, members: Any) -> Any:
        return range(len(self.head_fns.tasks)) if members is None else members

    def _replaced(self, samples: Samples, task: int, tree: PyTree) -> PyTree:
        return replace_samples(tree, *samples.only(task))

    def _task(
        self, task: int, call: SampleCall, samples: Samples, rest: Rest
    ) -> tuple[jax.Array, Callable[[Leaves, Leaves], tuple[jax.Array, Any]]]:
        """Returns which samples belong to a task, and a function of their losses."""
        batch = self._replaced(samples, task, samples.batch)
        rest = self._replaced(samples, task, rest)

        def run(head_params: Leaves, latent: Leaves) -> tuple[jax.Array, Any]:
            def one(sample: Any, index: Any, rest: Rest, latent: Leaves) -> Any:
                at = call.one((sample, index), rest)
                return self.head_fns.loss_of(task, at, head_params, latent)

            return vmap(one)(batch, samples.index, rest, latent)

        return samples.only(task)[0], run


def make_sample_heads(head_fns: HeadFns) -> SampleHeads:
    """Returns heads of single samples, made from heads of tasks."""
    if head_fns.stacked is True:
        return StackedSampleHeads(head_fns)
    return SeparateSampleHeads(head_fns)


def vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `jax.vmap` over samples, with an error that names the functions."""

    def run(*args: Any) -> Any:
        try:
            return jax.vmap(function)(*args)
        except NotImplementedError as error:
            raise ValueError(
                "`encode` and the losses of samplewise must be functions of one sample "
                f"that jax.vmap can run on many samples, got the error: {error}"
            ) from error

    return run


def _dtype(latent: Leaves) -> jnp.dtype:
    """Returns the dtype of the losses if no task computes a loss."""
    return solver_dtype([*latent, jnp.float32])


def _where(own: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns `left` at the samples `own`, `right` elsewhere."""
    return jnp.where(own.reshape(-1, *(1,) * (left.ndim - 1)), left, right)
