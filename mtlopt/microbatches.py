"""Evaluates a batch in equal parts, so that only one part's activations are in memory.

The losses, the heads' gradients and the rows of the shared leaves (the tasks' gradients
with respect to these leaves) are each summed over the parts. Latent rows are not kept:
for a leaf that depends on the batch, each part has its own piece of the row, so the
parts' Gramians add up. The program shows which leaves depend on the batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtlopt._checks import named_vector
from mtlopt._jaxprs import dependent_outputs
from mtlopt.heads import Inputs
from mtlopt.linalg.normalise import safe_divide
from mtlopt.linearization import PartLinearization, SummedLinearization
from mtlopt.problems import Evaluation, OfProblem, Problem, Reads
from mtlopt.rows.arithmetic import scale_head_grads
from mtlopt.rows.products import gramian_of_tasks
from mtlopt.rows.protocol import Leaves
from mtlopt.samples import batch_leaf, fold_keys

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Microbatches(OfProblem):
    """A problem, evaluated in parts; losses on a given latent use the whole batch.

    Attributes:
      problem: the problem.
      parts: number of parts.
      label_counts: takes the arguments of a part; returns its number of labels per
        task, `[tasks]`.
      has_state: whether the last argument is the model's state, which is passed on from
        part to part.
    """

    problem: Problem[PartLinearization]
    parts: int
    label_counts: Callable[..., Any] | None
    has_state: bool = False

    def reads(
        self,
        params: PyTree,
        stacked: list[bool] | None,
        args: Any,
        z: PyTree = None,
        members: Any = None,
    ) -> Reads:
        if z is not None:
            return self.problem.reads(params, stacked, args, z, members)
        first = self._cut(args, 0)
        try:
            return self.problem.reads(params, stacked, first, z, members)
        except Exception as error:
            error.add_note(
                "With `microbatches`, only the first argument after the parameters is "
                "cut into parts: pass the batch as one pytree, such as (x, y)."
            )
            raise

    def evaluate(
        self, inputs: Inputs, factors: Any, members: Any
    ) -> Evaluation[SummedLinearization]:
        """Returns sums over the parts; aux is stacked, and no latent is kept."""
        assert factors is None  # a part is not evaluated in parts
        shares = self._shares(inputs.args)
        batch_free = self._batch_free(inputs)

        def sums(index: jax.Array, state: PyTree) -> tuple[Any, Any, Any]:
            out = self._evaluate_part(inputs, members, shares, index, state)
            everyone = jnp.ones_like(out.losses)
            rows = out.linear.rows(everyone, None).leaves()
            products, whole = out.linear.latent_pieces(batch_free or [], out.losses)
            total = out.losses, out.head_grads, rows, products, whole
            return total, out.aux, out.state

        total, aux, state = _sum_parts(sums, self.parts, self._state(inputs))
        losses, head_grads, rows, products, whole = total
        linear = SummedLinearization(
            rows,
            products + gramian_of_tasks(whole, losses),
            jax.tree_util.Partial(self._recombine, inputs, members, shares),
            batch_free is not None,
        )
        return Evaluation(losses, aux, None, head_grads, linear, state)

    def _evaluate_part(
        self,
        inputs: Inputs,
        members: Any,
        shares: jax.Array,
        index: Any,
        state: PyTree,
    ) -> Evaluation[PartLinearization]:
        args = self._cut(inputs.args, index)
        seen, present = shares[index] != 0, inputs.present
        absent = False if present is None else ~jnp.asarray(present)
        # The loss of an absent task is what its function computes, as without parts.
        absent &= jnp.all(shares == 0, axis=0)
        factors = jnp.where(absent, 1 / self.parts, shares[index])
        if self.has_state:
            args = *args[:-1], state
        if self.label_counts is not None:
            present = seen if present is None else present & seen
        inputs = dataclasses.replace(inputs, args=args, present=present)
        out = self.problem.evaluate(inputs, factors, members)
        if self.label_counts is None:
            return out
        # The mean over no labels is NaN, and so is its product with zero.
        head_grads = scale_head_grads(
            inputs.partition, out.head_grads, jnp.ones_like(factors), present=seen
        )
        counts = seen | absent
        if members is not None:
            chosen = jnp.asarray(members, jnp.int32)
            seen, counts = seen[chosen], counts[chosen]
        return out._replace(
            losses=jnp.where(counts, out.losses, 0),
            head_grads=head_grads,
            linear=out.linear.masked(seen),
        )

    def _recombine(
        self, inputs: Inputs, members: Any, shares: jax.Array, weights: jax.Array
    ) -> Leaves:
        """Returns the weighted sum of the rows, by evaluating every part again."""

        def combined(index: jax.Array, state: PyTree) -> tuple[Leaves, None, PyTree]:
            out = self._evaluate_part(inputs, members, shares, index, state)
            one = jnp.ones_like(weights)
            # If a weight is zero, the task may be absent and its row may not be finite.
            total = out.linear.combine(one, weights, weights != 0)
            return total, None, out.state

        return _sum_parts(combined, self.parts, self._state(inputs))[0]

    def _cut(self, args: tuple[Any, ...], index: Any) -> tuple[Any, ...]:
        """Returns the arguments of one part, with the state of the whole batch."""
        if not self.has_state:
            return cut_part(args, index, self.parts)
        return *cut_part(args[:-1], index, self.parts), args[-1]

    def _state(self, inputs: Inputs) -> PyTree:
        return inputs.args[-1] if self.has_state else None

    def _shares(self, args: tuple[Any, ...]) -> jax.Array:
        """Returns `[parts, tasks]`: the share of each part's mean in a task's loss."""
        shape = (self.parts, len(self.problem.tasks))
        if self.label_counts is None:
            return jnp.full(shape, 1 / self.parts)
        args = args[:-1] if self.has_state else args
        counts = [
            named_vector(
                "label_counts",
                self.label_counts(*cut_part(args, index, self.parts)),
                self.problem.tasks,
            )
            for index in range(self.parts)
        ]
        counts = jnp.stack(counts).astype(float)
        return safe_divide(counts, jnp.sum(counts, axis=0))

    def _batch_free(self, inputs: Inputs) -> list[bool] | None:
        """Returns which leaves of the latent are the same for all parts.

        These are leaves whose numbers and shapes do not depend on the batch. (If a
        token is repeated for every sample, its shape depends on the batch.) Returns
        None if there is no common latent, because then no method can ask for its
        Gramian.
        """
        problem = self.problem
        if not problem.has_latent:
            return None
        first, *others = self._cut(inputs.args, 0)

        def encode(batch: PyTree) -> PyTree:
            args = (batch, *others)
            return problem.latent(dataclasses.replace(inputs, args=args))

        depends, of_part = dependent_outputs(encode, first)
        if not depends:
            return None
        if all(depends):
            return [False] * len(depends)
        of_batch = jax.tree.leaves(jax.eval_shape(lambda: problem.latent(inputs)))
        return [
            not pieces and part.shape == whole.shape
            for pieces, part, whole in zip(depends, of_part, of_batch, strict=True)
        ]


def cut_part(args: tuple[Any, ...], index: Any, parts: int) -> tuple[Any, ...]:
    """Returns the arguments of a part: the first is cut, keys are folded with `index`.

    Raises:
      ValueError: if the first argument cannot be cut, or if another argument is an
        array of the batch's size, because it looks like a piece of the batch.
    """
    if not args:
        raise ValueError(
            "`microbatches` needs a batch as the first argument, got none."
        )

    def cut(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        size = jnp.shape(leaf)[:1]
        if not size or size[0] % parts:
            raise ValueError(
                f"{batch_leaf(path)} must have a leading axis that {parts} "
                f"microbatches divide, got shape {jnp.shape(leaf)}."
            )
        # The rows of a part are not neighbours. So if several devices share a batch,
        # each device has equally many rows of every part, and nothing is gathered.
        rows = jnp.reshape(leaf, (size[0] // parts, parts, *jnp.shape(leaf)[1:]))
        return jax.lax.dynamic_index_in_dim(rows, index, axis=1, keepdims=False)

    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(args[0])}
    for position, other in enumerate(args[1:], start=2):
        if hasattr(other, "shape") and other.shape and other.shape[:1] in sizes:
            raise ValueError(
                f"argument {position} after `params` has the leading size of the "
                f"batch, {other.shape[0]}, but only the first argument is cut into "
                "microbatches. Pass the batch as one pytree, such as (x, y)."
            )
    batch = jax.tree_util.tree_map_with_path(cut, args[0])
    return batch, *fold_keys(args[1:], index)


def _sum_parts(
    function: Callable[[jax.Array, PyTree], tuple[Any, Any, PyTree]],
    parts: int,
    state: PyTree,
) -> tuple[Any, Any, PyTree]:
    """Sums the first output over the parts, stacks the second, passes on the third."""

    def body(carry: tuple[Any, PyTree], index: jax.Array) -> tuple[Any, Any]:
        total, state = carry
        value, extra, state = function(index, state)
        return (jax.tree.map(jnp.add, total, value), state), extra

    shapes = jax.eval_shape(function, jnp.zeros([], jnp.int32), state)[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    indices = jnp.arange(parts, dtype=jnp.int32)
    (total, state), extra = jax.lax.scan(body, (zeros, state), indices)
    return total, extra, state
