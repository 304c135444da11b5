"""The problem of one function that returns all losses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from mtlopt._jaxprs import used_leaves_of_entries
from mtlopt.heads import Inputs, as_loss, split_aux
from mtlopt.linalg.dtypes import solver_dtype
from mtlopt.linearization import PullbackLinearization, RowOptions
from mtlopt.problems import NO_LATENT, Aux, Evaluation, Reads
from mtlopt.rows.protocol import Leaves

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class VectorProblem:
    """Losses of one function.

    The latent is the vector of losses, and its rows are the identity.
    """

    function: Callable[..., Any]
    tasks: tuple[str, ...]
    has_aux: bool
    options: RowOptions
    has_latent = False
    stacked = False
    takes_traced_task = True
    label_counts = None

    def present(self, args: tuple[Any, ...]) -> None:
        del args

    def losses(
        self, inputs: Inputs, z: PyTree = None, members: Any = None
    ) -> jax.Array:
        del z
        return self._vector(inputs, inputs.shared, inputs.head_params, members)[0]

    def evaluate(
        self, inputs: Inputs, factors: Any, members: Any
    ) -> Evaluation[PullbackLinearization]:
        losses, pullback, aux = jax.vjp(
            lambda shared, head_params: self._vector(
                inputs, shared, head_params, members
            ),
            inputs.shared,
            inputs.head_params,
            has_aux=True,
        )
        if factors is None:
            factors = jnp.ones_like(losses)
        elif members is not None:
            factors = factors[jnp.asarray(members, jnp.int32)]
        rows = jnp.diag(factors.astype(losses.dtype))
        losses = losses * factors
        # A head's leaf is read by its own task's loss only (see `check_ownership`), so
        # one pullback of the sum of all rows gives every head its own gradient.
        head_grads = pullback(jnp.sum(rows, axis=0))[1]
        options = self.options
        if not inputs.shared:
            options = dataclasses.replace(options, streaming=False)
        linear = PullbackLinearization(
            [rows],
            jax.tree_util.Partial(_pull_vector, pullback),
            options,
            backward=jax.tree_util.Partial(_backward_vector, pullback),
        )
        aux = Aux(aux, None) if self.has_aux else None
        return Evaluation(losses, aux, None, head_grads, linear)

    def heads_at(self, inputs: Inputs, z: PyTree) -> NoReturn:
        del inputs, z
        raise ValueError(NO_LATENT)

    def latent(self, inputs: Inputs) -> NoReturn:
        del inputs
        raise ValueError(NO_LATENT)

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        del stacked, z

        def values(params: PyTree) -> Any:
            return self.values(params, args)[0]

        reads = used_leaves_of_entries(values, params, self.num_tasks)
        if reads is None:
            return Reads(None, None)
        if members is None or not all(isinstance(i, int) for i in members):
            members = range(self.num_tasks)
        return Reads(None, {self.tasks[i]: reads[i] for i in members})

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)

    def values(self, params: PyTree, args: tuple[Any, ...]) -> tuple[Any, Any]:
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
        self, inputs: Inputs, shared: Leaves, head_params: Leaves, members: Any
    ) -> tuple[jax.Array, Any]:
        params = inputs.params(shared, head_params)
        values, aux = self.values(params, inputs.args)
        if members is None:
            return jnp.stack(values) if isinstance(values, list) else values, aux
        if isinstance(values, list) and all(isinstance(i, int) for i in members):
            # The scalars of other tasks are then unused, and XLA deletes them.
            some = [values[i] for i in members]
            return jnp.stack(some) if some else jnp.zeros(0), aux
        return jnp.asarray(values)[jnp.asarray(members, jnp.int32)], aux


def _backward_vector(
    pullback: Callable[..., Any], factors: jax.Array
) -> tuple[Leaves, Leaves]:
    """Returns gradients of heads and latent; here the latent is the losses."""
    return pullback(factors)[1], [factors]


def _pull_vector(pullback: Callable[..., Any], cotangent: Leaves) -> tuple[Leaves]:
    """Pulls a cotangent of the vector of losses back to the shared leaves."""
    return (pullback(cotangent[0])[0],)
