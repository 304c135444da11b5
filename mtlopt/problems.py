"""The three shapes of a multi-task problem, each reduced to a `Linearization`.

`LatentProblem`: an encoder and heads on its latent (hard parameter sharing).
`VectorProblem`: one function that returns all losses.
`IndependentProblem`: one function per task, each with its own use of the shared leaves.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mtlopt._dependencies import inputs_of_entries, used_inputs
from mtlopt.heads import HeadCall, SeparateHeads, StackedHeads, as_loss, split_aux
from mtlopt.labels import SHARED, Partition
from mtlopt.rows import Batching, Leaves, Linearization

PyTree = Any


class Aux(NamedTuple):
    """Second values of the functions of a problem.

    Attributes:
      encode: what `encode` returned beside the latent; for a problem given by one
        function, what that function returned beside the losses.
      tasks: mapping from task to what its loss returned beside; for stacked heads one
        pytree with a leading task axis.
    """

    encode: Any
    tasks: Any


class Evaluation(NamedTuple):
    """Losses `[members]` and their linearization, at one batch."""

    losses: jax.Array
    aux: Aux | None
    z: PyTree
    heads: Leaves
    linear: Linearization


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a problem is evaluated at: parameters, cut by label, and arguments."""

    shared: Leaves
    heads: Leaves
    args: tuple[Any, ...]
    partition: Partition = dataclasses.field(metadata={"static": True})


class Problem(Protocol):
    """A problem shape."""

    tasks: tuple[str, ...]

    def losses(self, inputs: Inputs, z: PyTree = None) -> jax.Array:
        """Returns the losses `[tasks]`, on a given latent if there is one."""
        ...

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation:
        """Returns losses and gradients.

        Args:
          inputs: where.
          factors: `[tasks]`, factors of all losses and gradients; None for one.
          members: indices of the tasks to evaluate; None for all.
        """
        ...

    def check(self, inputs: Inputs) -> None:
        """Raises if a function reads a leaf that its labels do not let it read."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rest:
    """A latent without its floating-point leaves: those are differentiated."""

    leaves: list[Any]
    treedef: Any = dataclasses.field(metadata={"static": True})
    floating: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

    def join(self, latent: Leaves) -> PyTree:
        floats, rest = iter(latent), iter(self.leaves)
        return self.treedef.unflatten(
            next(floats if floating else rest) for floating in self.floating
        )


def _split_floating(z: PyTree) -> tuple[Leaves, _Rest]:
    leaves, treedef = jax.tree.flatten(z)
    floating = tuple(
        bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating)) for leaf in leaves
    )
    if not any(floating):
        raise ValueError(
            "`encode` must return a latent with at least one floating-point leaf, got "
            f"{treedef}."
        )
    pairs = list(zip(leaves, floating, strict=True))
    rest = [leaf for leaf, is_floating in pairs if not is_floating]
    return [leaf for leaf, is_floating in pairs if is_floating], _Rest(
        rest, treedef, floating
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LatentProblem:
    """Losses of heads on the latent of one encoder."""

    encode: Callable[..., Any]
    heads: SeparateHeads | StackedHeads
    has_aux: bool
    batching: Batching
    streaming: bool

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.heads.tasks

    def losses(self, inputs: Inputs, z: PyTree = None) -> jax.Array:
        if z is None:
            latent, (rest, _) = self._encode(inputs, inputs.shared)
        else:
            latent, rest = _split_floating(z)
        return self.heads.losses(self._call(inputs, rest), inputs.heads, latent)

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation:
        latent, pullback, (rest, encode_aux) = jax.vjp(
            lambda shared: self._encode(inputs, shared), inputs.shared, has_aux=True
        )
        losses, aux, heads, rows = self.heads.gradients(
            self._call(inputs, rest), inputs.heads, latent, factors, members
        )
        linear = Linearization(
            rows, pullback, self.batching, self.streaming, has_latent=True
        )
        aux = Aux(encode_aux, aux) if self.has_aux else None
        return Evaluation(losses, aux, rest.join(latent), heads, linear)

    def heads_at(self, inputs: Inputs, z: PyTree) -> Evaluation:
        """Returns losses and the heads' gradients on a given latent."""
        latent, rest = _split_floating(z)
        losses, aux, heads, rows = self.heads.gradients(
            self._call(inputs, rest), inputs.heads, latent, None, None
        )
        linear = Linearization(rows, None, self.batching, False, has_latent=True)
        aux = Aux(None, aux) if self.has_aux else None
        return Evaluation(losses, aux, z, heads, linear)

    def check(self, inputs: Inputs) -> None:
        def encode(shared: Leaves, heads: Leaves) -> Leaves:
            return self._encode(dataclasses.replace(inputs, heads=heads), shared)[0]

        program = jax.make_jaxpr(encode)(inputs.shared, inputs.heads).jaxpr
        used = used_inputs(program, [True] * len(program.outvars))
        paths = inputs.partition.paths_of(shared=False)
        reads = used[len(inputs.shared) :]
        for path, label, read in zip(
            paths, inputs.partition.head_labels, reads, strict=True
        ):
            if read:
                raise ValueError(
                    f"encode reads `{path}`, which is labelled {label!r}. What encode "
                    f"reads must be labelled {SHARED!r}."
                )
        latent, (rest, _) = self._encode(inputs, inputs.shared)
        self.heads.check_reads(self._call(inputs, rest), inputs.heads, latent)

    def _encode(self, inputs: Inputs, shared: Leaves) -> tuple[Leaves, Any]:
        params = inputs.partition.merge(shared, inputs.heads)
        z, aux = split_aux(self.encode(params, *inputs.args), self.has_aux)
        latent, rest = _split_floating(z)
        return latent, (rest, aux)

    def _call(self, inputs: Inputs, rest: _Rest) -> HeadCall:
        return HeadCall(
            inputs.partition, inputs.shared, rest.join, inputs.args, self.has_aux
        )


@dataclasses.dataclass(frozen=True, eq=False)
class IndependentProblem:
    """Losses that share parameters but no latent.

    Each task gets its own copy of the shared leaves, whose cotangents are the rows.
    """

    heads: SeparateHeads | StackedHeads
    has_aux: bool

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.heads.tasks

    def losses(self, inputs: Inputs, z: PyTree = None) -> jax.Array:
        del z
        return self.heads.losses(self._call(inputs), inputs.heads, inputs.shared)

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation:
        losses, aux, heads, rows = self.heads.gradients(
            self._call(inputs), inputs.heads, inputs.shared, factors, members
        )
        linear = Linearization(rows, None, "auto", False, has_latent=False)
        aux = Aux(None, aux) if self.has_aux else None
        return Evaluation(losses, aux, None, heads, linear)

    def check(self, inputs: Inputs) -> None:
        self.heads.check_reads(self._call(inputs), inputs.heads, inputs.shared)

    def _call(self, inputs: Inputs) -> HeadCall:
        return HeadCall(
            inputs.partition, inputs.shared, None, inputs.args, self.has_aux
        )


@dataclasses.dataclass(frozen=True, eq=False)
class VectorProblem:
    """Losses of one function.

    The latent is the vector of losses, and its rows are the identity.
    """

    function: Callable[..., Any]
    tasks: tuple[str, ...]
    has_aux: bool
    batching: Batching
    streaming: bool

    def losses(self, inputs: Inputs, z: PyTree = None) -> jax.Array:
        del z
        return self._vector(inputs, inputs.shared, inputs.heads)[0]

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation:
        losses, pullback, aux = jax.vjp(
            lambda shared, heads: self._vector(inputs, shared, heads),
            inputs.shared,
            inputs.heads,
            has_aux=True,
        )
        factors = jnp.ones_like(losses) if factors is None else factors
        rows = jnp.diag(factors.astype(losses.dtype))
        losses = losses * factors
        if members is not None:
            rows, losses = rows[jnp.asarray(members)], losses[jnp.asarray(members)]
        # Only its own task's loss reads a head's leaf (see `check`), so one pullback
        # of all rows gives every head its own gradient.
        heads = pullback(jnp.sum(rows, axis=0))[1]
        linear = Linearization(
            [rows],
            jax.tree_util.Partial(_pull_vector, pullback),
            self.batching,
            self.streaming,
            has_latent=False,
        )
        aux = Aux(aux, None) if self.has_aux else None
        return Evaluation(losses, aux, None, heads, linear)

    def check(self, inputs: Inputs) -> None:
        if not inputs.heads:
            return

        def scalars(shared: Leaves, heads: Leaves) -> Any:
            return self._values(inputs, shared, heads)[0]

        program = jax.make_jaxpr(scalars)(inputs.shared, inputs.heads).jaxpr
        num_outputs = len(program.outvars)
        reads: list[list[bool]] | None
        if num_outputs == self.num_tasks and not program.outvars[0].aval.shape:
            reads = [
                used_inputs(program, [i == j for j in range(num_outputs)])
                for i in range(num_outputs)
            ]
        else:
            reads = inputs_of_entries(program, self.num_tasks)
        if reads is None:
            raise ValueError(
                "`losses` must return a mapping or sequence of scalars, or a vector "
                "made by jnp.stack of scalars, when tasks have parameters of their own: "
                "otherwise mtlopt cannot see which loss reads which leaf."
            )
        partition = inputs.partition
        paths = partition.paths_of(shared=False)
        for task, used in zip(self.tasks, reads, strict=True):
            for path, label, read in zip(
                paths, partition.head_labels, used[len(inputs.shared) :], strict=True
            ):
                if read and label != task:
                    raise ValueError(
                        f"the loss of task {task!r} reads `{path}`, which is labelled "
                        f"{label!r}. Label a leaf that several tasks read {SHARED!r}."
                    )

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    def _values(self, inputs: Inputs, shared: Leaves, heads: Leaves) -> tuple[Any, Any]:
        """Returns the losses as one vector or a list of scalars, and aux."""
        params = inputs.partition.merge(shared, heads)
        out, aux = split_aux(self.function(params, *inputs.args), self.has_aux)
        if isinstance(out, Mapping):
            if set(out) != set(self.tasks):
                raise ValueError(
                    f"`losses` must return the tasks {self.tasks}, got {tuple(out)}."
                )
            out = [out[task] for task in self.tasks]
        if isinstance(out, list | tuple):
            if len(out) != self.num_tasks:
                raise ValueError(
                    f"`losses` must return {self.num_tasks} losses, one for each of "
                    f"`tasks`, got {len(out)}."
                )
            return [as_loss(v, t) for v, t in zip(out, self.tasks, strict=True)], aux
        if jnp.shape(out) != (self.num_tasks,):
            raise ValueError(
                f"`losses` must return {self.num_tasks} losses, one for each of "
                f"`tasks`, got an array of shape {jnp.shape(out)}."
            )
        return out.astype(jnp.promote_types(out.dtype, jnp.float32)), aux

    def _vector(
        self, inputs: Inputs, shared: Leaves, heads: Leaves
    ) -> tuple[jax.Array, Any]:
        values, aux = self._values(inputs, shared, heads)
        return jnp.stack(values) if isinstance(values, list) else values, aux


def _pull_vector(pullback: Callable[..., Any], cotangent: Leaves) -> tuple[Leaves]:
    """Pulls a cotangent of the vector of losses back to the shared leaves."""
    return (pullback(cotangent[0])[0],)
