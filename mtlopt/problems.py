"""The three shapes of a multi-task problem, each reduced to a `Linearization`.

`LatentProblem`: an encoder and heads on its latent (hard parameter sharing).
`VectorProblem`: one function that returns all losses.
`IndependentProblem`: one function per task, each with its own use of the shared leaves.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import used_leaves, used_leaves_of_entries
from mtlopt.heads import (
    HeadCall,
    SeparateHeads,
    Stacked,
    StackedHeads,
    as_loss,
    split_aux,
)
from mtlopt.labels import Partition
from mtlopt.linalg.gramian import solver_dtype
from mtlopt.rows import STATIC, Batching, Leaves, Linearization

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
    partition: Partition = dataclasses.field(metadata=STATIC)


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

    def reads(
        self, params: PyTree, stacked: list[bool] | None, args: Any, z: PyTree = None
    ) -> Reads:
        """Returns which leaves of `params` each function reads.

        Args:
          params: parameters.
          stacked: which leaves have a leading task axis; None for those that
            `encode` does not read.
          args: arguments of the functions.
          z: a latent to read instead of what `encode` returns, which is then not run;
            `stacked` must be given.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rest:
    """A latent without its floating-point leaves: those are differentiated."""

    leaves: list[Any]
    treedef: Any = dataclasses.field(metadata=STATIC)
    floating: tuple[bool, ...] = dataclasses.field(metadata=STATIC)

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
    for leaf in leaves:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(
                "`encode` must return real leaves, got a complex one of shape "
                f"{jnp.shape(leaf)}. Return its real and its imaginary part."
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
            rows,
            pullback,
            self.batching,
            self.streaming,
            has_latent=True,
            backward=_backward(self.heads, self._call(inputs, rest), inputs, latent),
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

    def reads(
        self, params: PyTree, stacked: list[bool] | None, args: Any, z: PyTree = None
    ) -> Reads:
        if z is not None:
            assert stacked is not None
            heads = self.heads.reads(params, stacked, (z,), args, self.has_aux)
            return Reads([], heads)

        def encode(params: PyTree) -> PyTree:
            return split_aux(self.encode(params, *args), self.has_aux)[0]

        z = jax.eval_shape(encode, params)
        used = used_leaves(encode, params)
        if stacked is None:
            stacked = [not read for read in used]
        return Reads(used, self.heads.reads(params, stacked, (z,), args, self.has_aux))

    def latent_shapes(self, inputs: Inputs) -> list[jax.ShapeDtypeStruct]:
        """Returns the shapes of the latent's leaves."""
        return jax.eval_shape(
            lambda shared: self._encode(inputs, shared)[0], inputs.shared
        )

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
        linear = Linearization(
            rows,
            None,
            "auto",
            False,
            has_latent=False,
            backward=_backward(self.heads, self._call(inputs), inputs, inputs.shared),
        )
        aux = Aux(None, aux) if self.has_aux else None
        return Evaluation(losses, aux, None, heads, linear)

    def reads(
        self, params: PyTree, stacked: list[bool] | None, args: Any, z: PyTree = None
    ) -> Reads:
        del z
        stacked = stacked or [False] * len(jax.tree.leaves(params))
        return Reads(None, self.heads.reads(params, stacked, (), args, self.has_aux))

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
        # Only its own task's loss reads a head's leaf (see `check_ownership`), so one
        # pullback of all rows gives every head its own gradient.
        heads = pullback(jnp.sum(rows, axis=0))[1]
        linear = Linearization(
            [rows],
            jax.tree_util.Partial(_pull_vector, pullback),
            self.batching,
            self.streaming,
            has_latent=False,
            backward=jax.tree_util.Partial(_backward_vector, pullback),
        )
        aux = Aux(aux, None) if self.has_aux else None
        return Evaluation(losses, aux, None, heads, linear)

    def reads(
        self, params: PyTree, stacked: list[bool] | None, args: Any, z: PyTree = None
    ) -> Reads:
        del stacked, z

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
        self, inputs: Inputs, shared: Leaves, heads: Leaves
    ) -> tuple[jax.Array, Any]:
        params = inputs.partition.merge(shared, heads)
        values, aux = self._values(params, inputs.args)
        return jnp.stack(values) if isinstance(values, list) else values, aux


def _backward(
    heads: SeparateHeads | StackedHeads, call: HeadCall, inputs: Inputs, latent: Leaves
) -> Callable[[jax.Array], tuple[Leaves, Leaves]]:
    """Returns the pullback of the losses to the heads' leaves and the latent.

    Unlike the rows it never separates the tasks' gradients of the latent: for stacked
    heads those are T times the latent's size.
    """
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


def make_problem(
    losses: Any,
    encode: Callable[..., Any] | None,
    tasks: Sequence[str] | None,
    has_aux: bool,
    batching: Batching = "auto",
    streaming: bool = False,
) -> Problem:
    """Chooses the shape of a problem from the form of its losses: see `task_grad`."""
    if isinstance(losses, Stacked):
        heads = StackedHeads(losses, tasks)
    elif isinstance(losses, Mapping):
        if not losses:
            raise ValueError("`losses` must name at least one task, got none.")
        for task, function in losses.items():
            if not callable(function):
                raise TypeError(
                    f"`losses[{task!r}]` must be callable, got "
                    f"{type(function).__name__}."
                )
        heads = SeparateHeads(dict(losses))
    elif callable(losses):
        if encode is not None:
            raise ValueError(
                "`losses` must be a mapping from task to loss, or mtlopt.stacked(...), "
                "when `encode` is given, got one function."
            )
        if not tasks or isinstance(tasks, str):
            raise ValueError(
                "`tasks` must be a sequence with the names of the tasks when `losses` "
                f"is one function, got {tasks!r}."
            )
        return VectorProblem(losses, tuple(tasks), has_aux, batching, streaming)
    else:
        raise TypeError(
            "`losses` must be a mapping from task to function, mtlopt.stacked(...), or "
            f"a function, got {type(losses).__name__}."
        )
    if (
        isinstance(losses, Mapping)
        and tasks is not None
        and tuple(tasks) != heads.tasks
    ):
        raise ValueError(
            f"`tasks` must be {heads.tasks} as in `losses`, or left out, got {tasks}."
        )
    if encode is not None:
        return LatentProblem(encode, heads, has_aux, batching, streaming)
    if streaming:
        raise ValueError(
            "`streaming` must be False for losses without `encode`, got True: without "
            "a common latent there is no pullback to run again."
        )
    return IndependentProblem(heads, has_aux)
