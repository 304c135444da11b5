"""PCD: priority-constrained descent, one task before the others (TMLR 2026)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import check_num_tasks
from mtlopt.aggregators.by_weights import aggregate_with_state
from mtlopt.linalg.nonnegative import least_distance
from mtlopt.linalg.normalise import (
    Gramian,
    nan_unless_finite,
    normalise,
    safe_divide,
    safe_root,
)
from mtlopt.linalg.products import dot
from mtlopt.linalg.reductions import reduce_each
from mtlopt.rows.protocol import Rows
from mtlopt.task_grads import TaskGrads

# Up to this many units of rounding, the square of a sum of unit rows counts as zero.
_ROUNDINGS = 32


class PcdState(NamedTuple):
    """State of `pcd`.

    Attributes:
      task_weights: `[tasks]`, weights of the last update.
      norms: `[tasks]`, roots of moving averages of squared gradient norms; 0 at first.
      totals: `[tasks]`, moving averages of 1, which correct the bias of `norms`.
    """

    task_weights: jax.Array
    norms: jax.Array
    totals: jax.Array


def pcd_weights(
    gramian: Gramian,
    tau: Any = 0.02,
    mean_norms: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Returns the weights `[tasks]` of `pcd`, at least 0. `pcd` defines the symbols.

    If `g_1` is zero or absent, the weights are zero. If the constraints contradict each
    other, they are dropped and `d` is `g_1`. This happens if the gradients of other
    tasks are opposed up to the square root of the precision. With `tau = 0`, `\tilde d`
    and therefore `d` may be zero. A zero gradient constrains nothing; duplicates count
    as one constraint. For equal gradients `g`, and for a single task, `d` is `g`.
    `mean_norms` `[tasks]` are `\bar n`; None means the norms in this Gramian.

    Raises:
      ValueError: if `tau` has a wrong shape or is a Python number out of range.

    Examples:
      >>> import jax.numpy as jnp
      >>> print(*pcd_weights(jnp.array([[1, -1.0], [-1, 4]]), 0.5))  # doctest: +NUMBER
      1.0 0.5
    """
    cosines, norms = normalise(gramian, present)
    fractions = _fractions(tau, len(norms)).astype(norms.dtype)
    scales = norms if mean_norms is None else mean_norms.astype(norms.dtype)
    lengths = safe_divide(norms, scales)  # of the scaled gradients
    first = jnp.arange(len(norms)) == 0
    primary = jnp.where(first, lengths, 0)

    # d = length_1 u_1 + the shortest vector that gives the others what they lack.
    target = fractions * lengths - dot(cosines, primary)
    eligible = ~first & (lengths > 0)
    # The result does not depend on this unit, so it needs no derivative.
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(target), where=eligible, initial=0))
    unit_target = jnp.where(eligible, safe_divide(target, size), 0)
    constraints = jnp.where(first[None] | first[:, None], 0, cosines)
    shares, slack = least_distance(constraints, unit_target)
    # With contradictory constraints, the rows times these shares cancel.
    is_found = _length(cosines, shares) > 0
    others = jnp.where(is_found, size * safe_divide(shares, slack), 0)

    made_of = primary + others
    length = _length(cosines, made_of)
    weights = safe_divide(safe_divide(made_of, length) * norms[0], norms)
    weights = jnp.where(norms[0] > 0, weights, 0)
    return nan_unless_finite(weights, cosines)


def _length(cosines: jax.Array, made_of: jax.Array) -> jax.Array:
    """Returns the length of a sum of unit rows; zero if it is only rounding."""
    square, total = reduce_each(sums=[made_of * dot(cosines, made_of), made_of])
    is_rounding = square <= _ROUNDINGS * jnp.finfo(square.dtype).eps * total**2
    return jnp.where(is_rounding, 0, safe_root(square))


def _fractions(tau: Any, num_tasks: int) -> jax.Array:
    """Returns `tau` as `[tasks]`, zero for the first task."""
    if isinstance(tau, int | float) and not 0 <= tau <= 1:
        raise ValueError(f"`tau` must be between 0 and 1, got {tau}.")
    tau = jnp.asarray(tau)
    if tau.shape not in {(), (num_tasks - 1,)}:
        raise ValueError(
            "`tau` must be a scalar or have one entry per task but the first, shape "
            f"({num_tasks - 1},), got shape {tau.shape}."
        )
    return jnp.pad(jnp.broadcast_to(tau, num_tasks - 1), (1, 0))


def pcd(
    num_tasks: int, tau: Any = 0.02, decay: Any = 0.999
) -> optax.GradientTransformationExtraArgs:
    r"""Follows the first task, with guaranteed progress on the others: PCD.

    .. math:: \tilde d = \mathrm{argmin}_d |d - \tilde g_1|^2
        \quad \text{subject to} \quad
        \langle \tilde g_j, d \rangle \ge \tau_j |\tilde g_j|^2, \; j \ge 2,
        \qquad d = |g_1| \, \tilde d / |\tilde d|

    Here `\tilde g_i = s_i g_i / \bar n_i`, and `\bar n_i^2` is the bias-corrected
    moving average of `|s_i g_i|^2`. Every other task makes at least `tau_j` times the
    progress of a step along its own gradient. The first task sets the direction and the
    length. If the constraints require it, `d` may conflict even with this task. The
    other losses' scales do not matter. If a gradient is not finite, no average moves.

    Args:
      num_tasks: number of tasks T; the first task is the primary task.
      tau: a number from 0 to 1, or `[T - 1]` such numbers, one for each other task.
      decay: decay of the moving average, at least 0 and below 1.

    Raises:
      ValueError: if an argument is out of range or `tau` has a wrong shape.

    Examples:
      >>> import jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[1.0, 0.0], [-4.0, 3.0]]))
      >>> aggregator = mtlopt.pcd(2, tau=0.0)
      >>> updates, _ = aggregator.update(grads, aggregator.init(jnp.zeros(2)))
      >>> print(*updates)  # doctest: +NUMBER
      0.6 0.8

    References:
      *Not All Objectives Are Born Equal*, TMLR 2026, arXiv:2606.29521.
    """
    check_num_tasks(num_tasks)
    _fractions(tau, num_tasks)
    if isinstance(decay, int | float) and not 0 <= decay < 1:
        raise ValueError(f"`decay` must be at least 0 and below 1, got {decay}.")

    def initial() -> PcdState:
        return PcdState(
            jnp.full(num_tasks, 1 / num_tasks, float),
            jnp.zeros(num_tasks, float),
            jnp.zeros(num_tasks, float),
        )

    def weigh(
        grads: TaskGrads, rows: Rows, state: PcdState, **_: Any
    ) -> tuple[jax.Array, PcdState]:
        gramian = rows.scaled_gramian(grads.present)
        cosines, norms = normalise(gramian, grads.present)
        dtype = state.norms.dtype
        seen = jnp.all(jnp.isfinite(cosines))
        if grads.present is not None:
            seen &= grads.present

        def average(last: jax.Array, value: jax.Array) -> jax.Array:
            return decay * last + (1 - decay) * value

        # Relative to the longer of the two, so that no square overflows.
        norms = norms.astype(dtype)
        longer = jnp.maximum(norms, state.norms)
        shares = safe_divide(state.norms, longer), safe_divide(norms, longer)
        moved = longer * jnp.sqrt(average(*map(jnp.square, shares)))
        norms = jnp.where(seen, moved, state.norms).astype(dtype)
        totals = average(state.totals, jnp.ones_like(norms))
        totals = jnp.where(seen, totals, state.totals).astype(dtype)
        mean_norms = safe_divide(norms, jnp.sqrt(totals))
        weights = pcd_weights(gramian, tau, mean_norms, grads.present)
        return weights, state._replace(norms=norms, totals=totals)

    return aggregate_with_state("pcd", num_tasks, initial, weigh)
