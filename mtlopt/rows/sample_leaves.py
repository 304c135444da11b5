"""Gradients of single samples, leaf by leaf, in the form that costs the least work.

The pullback of one sample is vmapped over samples. If the gradient of a leaf is a
product `x^T d`, the product is not computed (see `factors`), because one ordinary
backward pass computes `x` and `d` of all samples anyway.

Each leaf's gradients have one of three forms. The costs below are in units of one
product over the batch. B samples have R positions in all, and there are T tasks, m
inputs and n outputs. `X` and `D` hold `x` and `d` of all samples, `X_t` and `D_t` hold
`x` and `d` of the samples of task t, and `o` multiplies entry by entry:

* inner products of pairs of samples, `(X X^T) o (D D^T)`, cost `R/m + R/n`, and the
  combination costs 1;
* rows of tasks, `X_t^T D_t`, cost about 1, their Gramian costs `T^2/R`, and their
  combination `T/R`;
* rows of samples, summed to rows of tasks, cost `T/positions` more than rows of tasks.
  They are used for leaves so small that the rows of all samples fit in memory.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

from mtlopt.rows.factors import Pullback
from mtlopt.rows.groups import Groups
from mtlopt.rows.leaf_rows import Made, ProductLeaf, RowLeaf, SampleLeaf
from mtlopt.rows.products import alone
from mtlopt.rows.protocol import Leaves

# Limit on the numbers in the rows of all samples of one leaf: 16 MiB of float32.
_SMALL = 2**22

Form = Literal["pairs", "tasks", "samples"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The form of each leaf's gradients; leaves that no cotangent reaches have no form.

    Attributes:
      factors: leaves whose gradients stay factors of products; for each leaf, a bool
        tells whether to compute inner products of pairs of samples.
      rows: leaves with rows of samples, each with the same kind of bool.
      large: leaves that are too large for the two other forms.
    """

    factors: dict[int, bool]
    rows: dict[int, bool]
    large: list[int]

    @classmethod
    def of(cls, pullback: Pullback, groups: Groups, streaming: bool) -> "Choice":
        """Returns the forms that need the least work, for a pullback of one sample."""
        factors, rows, large = {}, {}, []
        for i, product in enumerate(pullback.products):
            if product is not None and not product.layout.layers:
                form = _form(groups, *product.sizes)
                if form != "samples":
                    factors[i] = form == "pairs"
        # There are fewer rows of samples than rows of tasks.
        few = groups.num_samples <= groups.num_tasks and not streaming
        for i, shape in enumerate(pullback.shapes):
            if i in factors or not pullback.moves[i]:
                continue
            if few or shape.size <= _row_limit(groups):
                # A bias has the factors `d` as its rows, so their products are the
                # same.
                free = factors.get(pullback.factor_of[i], False)
                rows[i] = _single() and (free or few)
            else:
                large.append(i)
        return cls(factors, rows, large)


def sample_leaves(
    make_pull: Callable[[Any], Callable[[Leaves], Leaves]],
    samples: Any,
    cotangents: Leaves,
    groups: Groups,
    task_rows: Callable[[Sequence[int]], Leaves] | None,
) -> Made | None:
    """Returns the gradients of all leaves, by one backward pass for every sample.

    Args:
      make_pull: function from one sample to the pullback of its latent.
      samples: the samples, leaves `[samples, ...]`.
      cotangents: cotangents of the samples' latents, leaves `[samples, ...]`.
      groups: the tasks of the samples.
      task_rows: function from indices of leaves to their rows of tasks, for leaves that
        are too large for one row per sample; None if rows of tasks must not be
        computed.

    Returns:
      The gradients; None if rows of tasks are needed but must not be computed.
    """
    traced: list[tuple[Pullback, Choice]] = []

    def one(sample: Any, cotangent: Leaves) -> Any:
        pullback = Pullback(make_pull(sample), cotangent)
        choice = Choice.of(pullback, groups, streaming=task_rows is None)
        traced.append((pullback, choice))
        return pullback.run(list(choice.rows), list(choice.factors), cotangent)

    found, xs, ds = jax.vmap(one)(samples, cotangents)
    pullback, choice = traced[-1]
    leaves: dict[int, SampleLeaf] = {}
    for (i, in_pairs), rows in zip(choice.rows.items(), found, strict=True):
        leaves[i] = RowLeaf(rows, in_pairs)
    for (i, in_pairs), x, d in zip(choice.factors.items(), xs, ds, strict=True):
        product, dtype = pullback.products[i], pullback.shapes[i].dtype
        assert product is not None
        leaves[i] = ProductLeaf(
            x, d, product.layout, product.precision, dtype, in_pairs
        )
    if task_rows is None:
        return None if choice.large else Made({}, leaves, tuple(pullback.shapes))
    rows = dict(zip(choice.large, task_rows(choice.large), strict=True))
    rows |= {i: leaf.by_task(groups) for i, leaf in leaves.items() if not leaf.in_pairs}
    undone = {i: leaf for i, leaf in leaves.items() if leaf.in_pairs}
    return Made(rows, undone, tuple(pullback.shapes))


def _form(groups: Groups, positions: int, inputs: int, outputs: int) -> Form:
    """Returns the form with the least work for a product, see the top of this file."""
    samples, tasks = groups.num_samples, groups.num_tasks
    all_positions, size = samples * positions, inputs * outputs
    if not all_positions or not size:
        return "samples"
    if groups.one_each:
        by_task = 1.0
    elif alone():
        tile = groups.tile_size(positions)
        by_task = groups.num_tiles(tile) * tile / samples
    else:
        by_task = tasks
    rows = tasks * (tasks + 1) / all_positions
    costs: dict[Form, float] = {"tasks": by_task + rows}
    if _single():
        costs["pairs"] = 1 + all_positions / inputs + all_positions / outputs
    if size <= _row_limit(groups):
        costs["samples"] = 1 + tasks / positions + rows
    return min(costs, key=lambda form: costs[form])


def _row_limit(groups: Groups) -> float:
    """Returns the largest size of a leaf for which every sample may have a row."""
    return _SMALL / max(groups.num_samples, 1)


def _single() -> bool:
    """Whether the batch is on one device, so that no device has to gather it."""
    return jax.device_count() == 1
