"""The fourth shape of a problem: each sample belongs to one task, see `samplewise`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt.heads import HeadFns, Inputs, split_aux
from mtlopt.latent_leaves import Rest, linearize, split_latent
from mtlopt.linearization import RowOptions
from mtlopt.problems import (
    NO_LATENT,
    Aux,
    Evaluation,
    HeadEvaluation,
    HeadProblem,
    OfHeads,
    Reads,
    check_moves,
)
from mtlopt.rows.arithmetic import scale_head_grads
from mtlopt.rows.protocol import Leaves
from mtlopt.sample_heads import Found, SampleCall, SampleHeads, make_sample_heads, vmap
from mtlopt.sample_linearization import SampleLinearization
from mtlopt.samples import (
    Samples,
    Samplewise,
    first_of,
    fold_keys,
    make_samples,
    one_sample,
)

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class SampleProblem(OfHeads):
    """Losses of single samples, each of which belongs to one task.

    Without `encode` the latent of a sample is its loss.
    """

    encode: Callable[..., Any] | None
    head_fns: HeadFns
    form: Samplewise
    has_aux: bool
    options: RowOptions

    def present(self, args: tuple[Any, ...]) -> jax.Array:
        return self._weights(args) != 0

    def label_counts(self, *args: Any) -> jax.Array:
        if self.form.reduce == "sum":
            raise ValueError(
                "`reduce` of samplewise must be 'mean' with several microbatches, "
                "whose means are averaged, got 'sum'."
            )
        return self._weights(args)

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        samples, call = self._samples(inputs, members)
        if self.encode is None:
            found, _ = self._whole(call, samples, inputs.shared, inputs.head_params)
            return samples.total(found)
        if z is None:
            z, _ = self._encode_all(call.inputs, samples, inputs.shared)
        latent, rest = _all_still(z)
        found = self._heads.losses(call, samples, latent, rest, members)
        return samples.total(found)

    def evaluate(
        self, inputs: Inputs, factors: Any, members: Any
    ) -> Evaluation[SampleLinearization]:
        samples, call = self._samples(inputs, members)
        if factors is not None:
            own = jnp.asarray(factors)[samples.tasks]
            samples = dataclasses.replace(samples, shares=samples.shares * own)
        if self.encode is None:
            return self._evaluate_whole(samples, call)
        latent, rest, pullback, encode_aux = linearize(
            lambda shared: self._encode_all(call.inputs, samples, shared),
            inputs.shared,
        )
        check_moves(latent, inputs)
        found = self._heads.gradients(call, samples, latent, rest, members)
        linear = SampleLinearization(
            samples.groups,
            found.latent_grads,
            pullback,
            jax.tree_util.Partial(self._encode, call.inputs),
            inputs.shared,
            samples.parts,
            self.options,
            has_latent=True,
            moves=rest.moves,
        )
        aux = Aux(encode_aux, found.aux) if self.has_aux else None
        losses, grads = samples.total(found.losses), _masked(call, samples, found)
        return Evaluation(losses, aux, rest.join(latent), grads, linear)

    def heads_at(self, inputs: Inputs, z: PyTree) -> HeadEvaluation:
        if self.encode is None:
            raise ValueError(NO_LATENT)
        samples, call = self._samples(inputs, None)
        found = self._heads.gradients(call, samples, *_all_still(z), None)
        aux = Aux(None, found.aux) if self.has_aux else None
        grads = _masked(call, samples, found)
        return HeadEvaluation(samples.total(found.losses), aux, grads)

    def latent(self, inputs: Inputs) -> PyTree:
        if self.encode is None:
            raise ValueError(NO_LATENT)
        samples, call = self._samples(inputs, None)
        return self._encode_all(call.inputs, samples, inputs.shared)[0]

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        one = HeadProblem(self.encode, self.head_fns, self.has_aux, self.options)
        if z is not None:
            z = first_of(z)
        return one.reads(params, stacked, one_sample(args), z, members)

    @property
    def _heads(self) -> SampleHeads:
        return make_sample_heads(self.head_fns)

    def _weights(self, args: tuple[Any, ...]) -> jax.Array:
        return make_samples(self.form, len(self.tasks), args).task_weights

    def _samples(self, inputs: Inputs, members: Any) -> tuple[Samples, SampleCall]:
        samples = make_samples(self.form, len(self.tasks), inputs.args, members)
        others = dataclasses.replace(inputs, args=inputs.args[1:])
        return samples, SampleCall(others, self.has_aux)

    def _encode_all(
        self, inputs: Inputs, samples: Samples, shared: Leaves
    ) -> tuple[PyTree, Any]:
        encode = vmap(lambda part: self._encode(inputs, part, shared))
        return encode(samples.parts)

    def _encode(self, inputs: Inputs, part: Any, shared: Leaves) -> tuple[PyTree, Any]:
        assert self.encode is not None
        sample, index = part
        params = inputs.params(shared, inputs.head_params)
        out = self.encode(params, sample, *fold_keys(inputs.args, index))
        return split_aux(out, self.has_aux)

    def _evaluate_whole(
        self, samples: Samples, call: SampleCall
    ) -> Evaluation[SampleLinearization]:
        losses, pull, aux = jax.vjp(
            lambda *leaves: self._whole(call, samples, *leaves),
            call.inputs.shared,
            call.inputs.head_params,
            has_aux=True,
        )
        shares = jnp.where(samples.counts, samples.shares, 0).astype(losses.dtype)
        linear = SampleLinearization(
            samples.groups,
            [shares],
            jax.tree_util.Partial(_pull_shared, pull) if call.inputs.shared else None,
            jax.tree_util.Partial(self._one, call),
            call.inputs.shared,
            (samples.parts, samples.tasks, samples.of_tasks(call.inputs.head_params)),
            self.options,
            has_latent=False,
        )
        aux = Aux(None, aux) if self.has_aux else None
        found = Found(losses, aux, pull(shares)[1], [shares])
        grads = _masked(call, samples, found)
        return Evaluation(samples.total(losses), aux, None, grads, linear)

    def _whole(
        self, call: SampleCall, samples: Samples, shared: Leaves, head_params: Leaves
    ) -> tuple[jax.Array, Any]:
        """Returns losses and aux of the samples, without a latent."""
        own = samples.of_tasks(head_params)
        whole = (samples.parts, samples.tasks, own)
        return vmap(lambda sample: self._one(call, sample, shared))(whole)

    def _one(
        self, call: SampleCall, sample: Any, shared: Leaves
    ) -> tuple[jax.Array, Any]:
        """Returns loss and aux of one sample, without a latent."""
        part, task, leaves = sample
        return self.head_fns.loss_of(task, call.one(part, None), leaves, shared)


def _masked(call: SampleCall, samples: Samples, found: Found) -> Leaves:
    """Returns the gradients of the heads, with zeros for tasks without a sample."""
    weights = samples.task_weights
    return scale_head_grads(
        call.inputs.partition,
        found.head_grads,
        jnp.ones_like(weights),
        present=weights != 0,
    )


def _pull_shared(pull: Callable[..., Any], cotangents: Leaves) -> tuple[Leaves]:
    """Pulls cotangents of the samples' losses back to the shared leaves."""
    return (pull(cotangents[0])[0],)


def _all_still(z: PyTree) -> tuple[Leaves, Rest]:
    """Returns a latent without any leaf to differentiate."""
    return split_latent(z, [False] * len(jax.tree.leaves(z)))
