"""The shapes of a multi-task problem, each reduced to a `Linearization`.

`HeadProblem` has heads on the latent of one encoder (hard parameter sharing). Without
an encoder, it has one function per task, and each uses the shared leaves in its own
way.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import used_leaves
from mtlopt.heads import HeadCall, HeadFns, Inputs, split_aux
from mtlopt.labels import SHARED
from mtlopt.latent_leaves import linearize
from mtlopt.linearization import Linearization, PullbackLinearization, RowOptions
from mtlopt.rows.protocol import Leaves

PyTree = Any

Linear = TypeVar("Linear", bound=Linearization, covariant=True)

NO_LATENT = (
    "a given latent needs an oracle built with `encode`, or an oracle of one function "
    "that marks its latent with mtlopt.latent."
)


class Aux(NamedTuple):
    """Auxiliary values (aux) that the functions of a problem returned.

    Attributes:
      encode: the aux of `encode`; for a problem given by one function, the aux of that
        function.
      tasks: mapping from task to the aux of its loss; for stacked heads one pytree with
        a leading task axis.
    """

    encode: Any
    tasks: Any


class Evaluation(NamedTuple, Generic[Linear]):
    """Losses `[members]` and their linearization, on one batch.

    `state` is the model's state after the batch; None without state.
    """

    losses: jax.Array
    aux: Any
    z: PyTree
    head_grads: Leaves
    linear: Linear
    state: PyTree = None


class HeadEvaluation(NamedTuple):
    """Losses `[tasks]` and the heads' gradients on a given latent."""

    losses: jax.Array
    aux: Any
    head_grads: Leaves
    state: PyTree = None


class Reads(NamedTuple):
    """Says which leaves of the parameters the functions of a problem read.

    Attributes:
      encode: per leaf, whether `encode` reads it; None without `encode`.
      tasks: mapping from task to a list that says, per leaf, whether its loss reads it;
        None if the losses cannot be told apart.
      marked: whether `encode` is the part of one function before `mtlopt.latent`.
    """

    encode: list[bool] | None
    tasks: dict[str, list[bool]] | None
    marked: bool = False


class Problem(Protocol[Linear]):
    """A problem shape.

    Attributes:
      tasks: names of the tasks, in the order of the losses.
      has_latent: whether the tasks share one latent. True until this is known, see
        `latent`.
      stacked: whether the heads of all tasks are stacked along a leading axis.
      takes_traced_task: whether the index of a task may be traced.
      label_counts: function from arguments to the number of labels of each task,
        `[tasks]`; None if the problem does not know these numbers.
    """

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def has_latent(self) -> bool: ...

    @property
    def stacked(self) -> bool: ...

    @property
    def takes_traced_task(self) -> bool: ...

    @property
    def label_counts(self) -> Callable[..., Any] | None: ...

    def present(self, args: tuple[Any, ...]) -> jax.Array | None:
        """Returns which tasks have labels in a batch, bool `[tasks]`; None for all."""
        ...

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        """Returns the losses `[members]`, on a given latent if there is one."""
        ...

    def evaluate(
        self, inputs: Inputs, factors: Any, members: Any
    ) -> Evaluation[Linear]:
        """Returns losses and gradients.

        Args:
          inputs: the point at which to evaluate.
          factors: `[tasks]`, which multiply all losses and gradients; None means ones.
          members: indices of the tasks to evaluate; None for all.
        """
        ...

    def heads_at(self, inputs: Inputs, z: PyTree) -> HeadEvaluation:
        """Returns losses and the heads' gradients on a given latent."""
        ...

    def latent(self, inputs: Inputs) -> PyTree:
        """Returns the latent, without aux; raises if the problem cannot have one.

        Returns None if the problem could have a latent, but its function marks none.
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
          stacked: which leaves have a leading task axis; None for all floating-point
            leaves that `encode` does not read.
          args: arguments of the functions.
          z: a latent to read instead of the result of `encode`, which then does not
            run; `stacked` must be given.
          members: indices of the tasks to check; None for all.
        """
        ...


def check_moves(latent: Leaves, inputs: Inputs) -> None:
    """Raises if leaves are shared but no leaf of the latent depends on them."""
    if inputs.shared and not latent:
        raise ValueError(
            "`encode` must return, or mtlopt.latent mark, at least one floating-point "
            f"leaf that depends on a leaf labelled {SHARED!r}, got none, so "
            f"`{inputs.partition.shared_paths[0]}` would never move."
        )


class OfHeads:
    """Properties that follow from a problem's `encode` and its head functions."""

    encode: Callable[..., Any] | None
    head_fns: HeadFns

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.head_fns.tasks

    @property
    def has_latent(self) -> bool:
        return self.encode is not None

    @property
    def stacked(self) -> bool:
        return self.head_fns.stacked

    @property
    def takes_traced_task(self) -> bool:
        return self.head_fns.stacked


class OfProblem:
    """Properties that a problem takes over from the problem that it contains."""

    problem: Problem[Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.problem.tasks

    @property
    def has_latent(self) -> bool:
        return self.problem.has_latent

    @property
    def stacked(self) -> bool:
        return self.problem.stacked

    @property
    def takes_traced_task(self) -> bool:
        return self.problem.takes_traced_task

    def present(self, args: tuple[Any, ...]) -> jax.Array | None:
        return self.problem.present(args)

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        return self.problem.losses(inputs, z, members)

    def heads_at(self, inputs: Inputs, z: PyTree) -> HeadEvaluation:
        return self.problem.heads_at(inputs, z)

    def latent(self, inputs: Inputs) -> PyTree:
        return self.problem.latent(inputs)

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        return self.problem.reads(params, stacked, args, z, members)


@dataclasses.dataclass(frozen=True, eq=False)
class HeadProblem(OfHeads):
    """Losses of heads on a latent.

    Without `encode` the latent is the shared leaves themselves. Each task gets its own
    copy of them, and the cotangents of the copies are the rows.
    """

    encode: Callable[..., Any] | None
    head_fns: HeadFns
    has_aux: bool
    options: RowOptions
    label_counts = None

    def present(self, args: tuple[Any, ...]) -> None:
        del args

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        call, latent = HeadCall(inputs, None, self.has_aux), inputs.shared
        if self.encode is not None:
            z = self.latent(inputs) if z is None else z
            call, latent = HeadCall(inputs, lambda _: z, self.has_aux), []
        return self.head_fns.losses(call, inputs.head_params, latent, members)

    def evaluate(
        self, inputs: Inputs, factors: Any, members: Any
    ) -> Evaluation[PullbackLinearization]:
        if self.encode is None:
            latent, rest, pullback, encode_aux = inputs.shared, None, None, None
        else:
            latent, rest, pullback, encode_aux = linearize(
                lambda shared: self._encode(inputs, shared), inputs.shared
            )
            check_moves(latent, inputs)
        call = HeadCall(inputs, None if rest is None else rest.join, self.has_aux)
        found = self.head_fns.gradients(
            call, inputs.head_params, latent, factors, members
        )
        linear = PullbackLinearization(
            found.latent_grads,
            pullback,
            self.options,
            has_latent=self.has_latent,
            backward=self._backward(call, latent, members),
            moves=() if rest is None else rest.moves,
            latent_products=found.latent_products,
        )
        aux = Aux(encode_aux, found.aux) if self.has_aux else None
        z = None if rest is None else rest.join(latent)
        return Evaluation(found.losses, aux, z, found.head_grads, linear)

    def heads_at(self, inputs: Inputs, z: PyTree) -> HeadEvaluation:
        call = HeadCall(inputs, lambda _: z, self.has_aux)
        found = self.head_fns.gradients(call, inputs.head_params, [], None, None)
        aux = Aux(None, found.aux) if self.has_aux else None
        return HeadEvaluation(found.losses, aux, found.head_grads)

    def latent(self, inputs: Inputs) -> PyTree:
        return self._encode(inputs, inputs.shared)[0]

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        def encode(params: PyTree) -> PyTree:
            assert self.encode is not None
            return split_aux(self.encode(params, *args), self.has_aux)[0]

        used, latent = None, ()
        if z is not None:
            used, latent = [], (z,)
        elif self.encode is not None:
            used, latent = (
                used_leaves(encode, params),
                (jax.eval_shape(encode, params),),
            )
        if stacked is None:
            kinds = map(jnp.result_type, jax.tree.leaves(params))
            moves = [bool(jnp.issubdtype(kind, jnp.floating)) for kind in kinds]
            stacked = [
                used is not None and moving and not read
                for moving, read in zip(moves, used or moves, strict=True)
            ]
        reads = self.head_fns.reads(
            params, stacked, latent, args, self.has_aux, members
        )
        return Reads(used, reads, getattr(self.encode, "marked", False))

    def _encode(self, inputs: Inputs, shared: Leaves) -> tuple[PyTree, Any]:
        assert self.encode is not None
        params = inputs.params(shared, inputs.head_params)
        return split_aux(self.encode(params, *inputs.args), self.has_aux)

    def _backward(
        self, call: HeadCall, latent: Leaves, members: Any
    ) -> Callable[[jax.Array], tuple[Leaves, Leaves]] | None:
        """Returns the pullback of the losses to the heads' leaves and the latent.

        Unlike the rows, this pullback never separates the latent gradients of the
        tasks, which for stacked heads have T times the latent's size. The method
        returns None if only some of the tasks are evaluated, because the pullback would
        run the functions of all tasks.
        """
        if members is not None:
            return None
        return jax.vjp(
            lambda leaves, latent: self.head_fns.losses(call, leaves, latent),
            call.inputs.head_params,
            latent,
        )[1]
