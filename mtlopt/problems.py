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

from mtlopt._jaxprs import used_leaves, used_leaves_of_entries
from mtlopt.heads import (
    HeadCall,
    Inputs,
    SeparateHeads,
    StackedHeads,
    as_loss,
    split_aux,
)
from mtlopt.labels import SHARED
from mtlopt.latent_leaves import linearize
from mtlopt.linalg.gramian import solver_dtype
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


class Reads(NamedTuple):
    """Which leaves of the parameters the functions of a problem read.

    Attributes:
      encode: per leaf, whether `encode` reads it; None without `encode`.
      tasks: mapping from task to the same of its loss; None if the losses cannot be
        told apart.
    """

    encode: list[bool] | None
    tasks: dict[str, list[bool]] | None


class Problem(Protocol):
    """A problem shape."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the losses."""
        ...

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        """Returns the losses `[members]`, on a given latent if there is one."""
        ...

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation:
        """Returns losses and gradients.

        Args:
          inputs: where.
          factors: `[tasks]`, factors of all losses and gradients; None for one.
          members: indices of the tasks to evaluate; None for all.
        """
        ...

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        """Returns which leaves of `params` each function reads.

        Args:
          params: parameters.
          stacked: which leaves have a leading task axis; None for those of floating
            point that `encode` does not read.
          args: arguments of the functions.
          z: a latent to read instead of what `encode` returns, which is then not run;
            `stacked` must be given.
          members: indices of the tasks to look at; None for all.
        """
        ...


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

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        if z is None:
            z = self.latent(inputs)
        call = self._call(inputs, lambda _: z)
        return self.heads.losses(call, inputs.heads, [], members)

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation:
        latent, rest, pullback, encode_aux = linearize(
            lambda shared: self._encode(inputs, shared), inputs.shared
        )
        if inputs.shared and not latent:
            raise ValueError(
                "`encode` must return at least one floating-point leaf that depends on "
                f"a leaf labelled {SHARED!r}, got none, so that "
                f"`{inputs.partition.shared_paths[0]}` would never move."
            )
        call = self._call(inputs, rest.join)
        losses, aux, heads, rows = self.heads.gradients(
            call, inputs.heads, latent, factors, members
        )
        linear = Linearization(
            rows,
            pullback,
            self.batching,
            self.streaming,
            has_latent=True,
            backward=_backward(self.heads, call, inputs, latent, members),
            moves=rest.moves,
        )
        aux = Aux(encode_aux, aux) if self.has_aux else None
        return Evaluation(losses, aux, rest.join(latent), heads, linear)

    def heads_at(
        self, inputs: Inputs, z: PyTree
    ) -> tuple[jax.Array, Aux | None, Leaves]:
        """Returns losses, aux and the heads' gradients on a given latent."""
        call = self._call(inputs, lambda _: z)
        losses, aux, heads, _ = self.heads.gradients(call, inputs.heads, [], None, None)
        return losses, Aux(None, aux) if self.has_aux else None, heads

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        if z is not None:
            assert stacked is not None
            reads = self.heads.reads(params, stacked, (z,), args, self.has_aux, members)
            return Reads([], reads)

        def encode(params: PyTree) -> PyTree:
            return split_aux(self.encode(params, *args), self.has_aux)[0]

        z = jax.eval_shape(encode, params)
        used = used_leaves(encode, params)
        if stacked is None:
            stacked = [
                not read and bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))
                for leaf, read in zip(jax.tree.leaves(params), used, strict=True)
            ]
        reads = self.heads.reads(params, stacked, (z,), args, self.has_aux, members)
        return Reads(used, reads)

    def latent(self, inputs: Inputs) -> PyTree:
        """Returns what `encode` returns, without aux."""
        return self._encode(inputs, inputs.shared)[0]

    def _encode(self, inputs: Inputs, shared: Leaves) -> tuple[PyTree, Any]:
        params = inputs.params(shared, inputs.heads)
        return split_aux(self.encode(params, *inputs.args), self.has_aux)

    def _call(self, inputs: Inputs, rebuild: Callable[[Leaves], PyTree]) -> HeadCall:
        return HeadCall(inputs, rebuild, self.has_aux)


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

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        del z
        call = self._call(inputs)
        return self.heads.losses(call, inputs.heads, inputs.shared, members)

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation:
        call = self._call(inputs)
        losses, aux, heads, rows = self.heads.gradients(
            call, inputs.heads, inputs.shared, factors, members
        )
        linear = Linearization(
            rows,
            None,
            "auto",
            False,
            has_latent=False,
            backward=_backward(self.heads, call, inputs, inputs.shared, members),
        )
        aux = Aux(None, aux) if self.has_aux else None
        return Evaluation(losses, aux, None, heads, linear)

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        del z
        stacked = stacked or [False] * len(jax.tree.leaves(params))
        reads = self.heads.reads(params, stacked, (), args, self.has_aux, members)
        return Reads(None, reads)

    def _call(self, inputs: Inputs) -> HeadCall:
        return HeadCall(inputs, None, self.has_aux)


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

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        del z
        return self._vector(inputs, inputs.shared, inputs.heads, members)[0]

    def evaluate(self, inputs: Inputs, factors: Any, members: Any) -> Evaluation:
        losses, pullback, aux = jax.vjp(
            lambda shared, heads: self._vector(inputs, shared, heads, members),
            inputs.shared,
            inputs.heads,
            has_aux=True,
        )
        if factors is None:
            factors = jnp.ones_like(losses)
        elif members is not None:
            factors = factors[jnp.asarray(members, jnp.int32)]
        rows = jnp.diag(factors.astype(losses.dtype))
        losses = losses * factors
        # Only its own task's loss reads a head's leaf (see `check_ownership`), so one
        # pullback of all rows gives every head its own gradient.
        heads = pullback(jnp.sum(rows, axis=0))[1]
        linear = Linearization(
            [rows],
            jax.tree_util.Partial(_pull_vector, pullback),
            self.batching,
            self.streaming and bool(inputs.shared),
            has_latent=False,
            backward=jax.tree_util.Partial(_backward_vector, pullback),
        )
        aux = Aux(aux, None) if self.has_aux else None
        return Evaluation(losses, aux, None, heads, linear)

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        del stacked, z, members  # one function: all or nothing

        def values(params: PyTree) -> Any:
            return self._values(params, args)[0]

        reads = used_leaves_of_entries(values, params, self.num_tasks)
        return Reads(
            None, None if reads is None else dict(zip(self.tasks, reads, strict=True))
        )

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    def _values(self, params: PyTree, args: tuple[Any, ...]) -> tuple[Any, Any]:
        """Returns the losses as one vector or a list of scalars, and aux."""
        out, aux = split_aux(self.function(params, *args), self.has_aux)
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
        return out.astype(solver_dtype([out])), aux

    def _vector(
        self, inputs: Inputs, shared: Leaves, heads: Leaves, members: Any
    ) -> tuple[jax.Array, Any]:
        params = inputs.params(shared, heads)
        values, aux = self._values(params, inputs.args)
        if members is None:
            return jnp.stack(values) if isinstance(values, list) else values, aux
        if isinstance(values, list) and all(isinstance(i, int) for i in members):
            # The others' scalars are then read by nobody, and XLA deletes them.
            some = [values[i] for i in members]
            return jnp.stack(some) if some else jnp.zeros(0), aux
        return jnp.asarray(values)[jnp.asarray(members, jnp.int32)], aux


def _backward(
    heads: SeparateHeads | StackedHeads,
    call: HeadCall,
    inputs: Inputs,
    latent: Leaves,
    members: Any,
) -> Callable[[jax.Array], tuple[Leaves, Leaves]] | None:
    """Returns the pullback of the losses to the heads' leaves and the latent.

    Unlike the rows it never separates the tasks' gradients of the latent: for stacked
    heads those are T times the latent's size. Some of the tasks have none: it would
    run the functions of all.
    """
    if members is not None:
        return None
    return jax.vjp(
        lambda leaves, latent: heads.losses(call, leaves, latent), inputs.heads, latent
    )[1]


def _backward_vector(
    pullback: Callable[..., Any], factors: jax.Array
) -> tuple[Leaves, Leaves]:
    """The same for one function, whose latent is the losses themselves."""
    return pullback(factors)[1], [factors]


def _pull_vector(pullback: Callable[..., Any], cotangent: Leaves) -> tuple[Leaves]:
    """Pulls a cotangent of the vector of losses back to the shared leaves."""
    return (pullback(cotangent[0])[0],)
