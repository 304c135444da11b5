"""Gradient surgery in task space: projections of conflicting gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtlopt.linalg.normalise import (
    Gramian,
    nan_unless_finite,
    normalise,
    safe_divide,
    safe_root,
)
from mtlopt.linalg.products import diagonal


def project_conflicts(
    gramian: Gramian, order: jax.Array, present: jax.Array | None = None
) -> jax.Array:
    r"""Removes from every task gradient its conflicts with the other gradients.

    .. math:: p_i \leftarrow p_i - \frac{\min(\langle p_i, g_j \rangle, 0)}{|g_j|^2} g_j
        \quad \text{for } j = \mathrm{order}_{i1}, \dots, \mathrm{order}_{iT}

    Here `p_i` starts as `g_i`, and `j = i` is skipped. The gradients themselves are
    never used: each `p_i` is stored as its inner products with all unit rows. Each step
    adds a multiple of a row of cosines to every `p_i` at once, so the whole loop costs
    `tasks^3` operations. No ratio of the row norms reduces the accuracy. The loop
    ends after `tasks` steps.

    A zero row changes nothing and is not changed. Opposed rows give zero; duplicate
    rows give equal results. NaN in the input gives NaN. The weights are differentiable
    if no `<p_i, g_j>` is zero. For two tasks, the order does not matter.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      order: Row `i` is the order in which `p_i` is updated for the other tasks, int
        `[tasks, tasks]`; `i` itself is skipped.
      present: Tasks that take part, bool `[tasks]`; the others change nothing.

    Returns:
      The weights `[tasks]` that give the sum of the projected gradients:
      `sum_i p_i = sum_j weights_j g_j`. They are at least 1 for present tasks and 0 for
      absent tasks.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> print(project_conflicts(gramian, jnp.array([[0, 1], [0, 1]])))
      [2.   1.25]

    References:
      Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, Algorithm 1.
    """
    cosines, norms = normalise(gramian, present)
    order = _check_square("order", order, cosines)
    # inner[i, j] is <p_i, u_j> / |g_i|.
    if len(norms) == 2:
        _, added = _meet((cosines, cosines), _other_of_two())
    else:
        _, added = jax.lax.scan(
            _meet, (cosines, cosines), order.T
        )  # [positions, tasks]
    return _total_weights(added, order, cosines, norms, present)


def _other_of_two() -> jax.Array:
    return jnp.array([1, 0], jnp.int32)


def _check_square(name: str, matrix: jax.Array, cosines: jax.Array) -> jax.Array:
    matrix = jnp.asarray(matrix)
    if matrix.shape != cosines.shape:
        raise ValueError(
            f"`{name}` must have shape {cosines.shape}, got {matrix.shape}."
        )
    return matrix


def _total_weights(
    added: jax.Array,
    order: jax.Array,
    cosines: jax.Array,
    norms: jax.Array,
    present: jax.Array | None,
) -> jax.Array:
    """Returns the weights of `sum_i p_i`.

    `added` is the amount added to `p_i` in units of `|g_i|`, `[positions, tasks]`, or
    `[tasks]` for two tasks.
    """
    # If p_i gains added |g_i| u_j, it gains added |g_i| / |g_j| times g_j.
    gained = added * jnp.broadcast_to(norms, added.shape)
    if len(norms) == 2:
        gained = gained[::-1]
    else:
        gained = jnp.zeros_like(norms).at[order.T].add(gained)
    weights = 1 + safe_divide(gained, norms)
    if present is not None:
        weights = jnp.where(present, weights, 0)
    return nan_unless_finite(weights, cosines)


def _meet(
    carry: tuple[jax.Array, jax.Array], other: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Updates every `p_i` for task `other[i]`; returns the multiple that is added."""
    inner, cosines = carry
    met = jnp.take_along_axis(inner, other[:, None], axis=1)[:, 0]
    is_self = other == jnp.arange(other.shape[0])
    gain = jnp.where(is_self, 0, -jnp.minimum(met, 0))
    return (inner + gain[:, None] * cosines[other], cosines), gain


def random_orders(key: jax.Array, num_tasks: int) -> tuple[jax.Array, jax.Array]:
    """Draws an order of all tasks for every task.

    Args:
      key: PRNG key of the random numbers.
      num_tasks: number of tasks T.

    Returns:
      The next key, and the orders, int `[tasks, tasks]`, one per row. Two tasks have
      only one order, so nothing is drawn for them, and the key does not change.
    """
    if num_tasks == 2:
        return key, jnp.array([[0, 1], [0, 1]])
    # Splitting a key only makes random words. To save compile time, one call makes the
    # next key and all words to sort.
    count = num_tasks**2
    keys = jax.random.split(key, 1 + -(-count // jax.random.key_data(key).size))
    words = jax.random.key_data(keys[1:]).reshape(-1)[:count]
    return keys[0], jnp.argsort(words.reshape(num_tasks, num_tasks), axis=1)


class Vaccinated(NamedTuple):
    """The results of `raise_cosines`.

    Attributes:
      weights: the weights of the original gradients that give the sum of the changed
        gradients, `[tasks]`.
      cosines: the cosine of every `p_i` with `g_j` just before the update for task `j`,
        `[tasks, tasks]`; the target itself if there is no cosine.
    """

    weights: jax.Array
    cosines: jax.Array


def raise_cosines(
    gramian: Gramian,
    targets: jax.Array,
    order: jax.Array,
    present: jax.Array | None = None,
) -> Vaccinated:
    r"""Raises the cosines between every task gradient and the others to their targets.

    .. math:: p_i \leftarrow p_i + \frac{|p_i| \big( \tau_{ij} \sqrt{1 - \phi^2} -
        \phi \sqrt{1 - \tau_{ij}^2} \big)}{|g_j| \sqrt{1 - \tau_{ij}^2}} \, g_j
        \quad \text{if } \phi = \frac{\langle p_i, g_j \rangle}{|p_i| |g_j|} < \tau_{ij}
        \quad \text{for } j = \mathrm{order}_{i1}, \dots, \mathrm{order}_{iT}

    Here `p_i` starts as `g_i`, and `j = i` is skipped. If all targets are zero, this is
    `project_conflicts`. As in `project_conflicts`, the gradients themselves are never
    used, and no ratio of the row norms reduces the accuracy. In `sqrt(1 - phi^2)`, a
    rounding error of the cosines grows to its square root. Gradients that are parallel
    up to this square root count as parallel. If `sqrt(1 - tau^2)` is below this
    root, it counts as equal to this root.

    A zero row changes nothing and is not changed, and its pairs have no cosine. A
    gradient that has become zero has no cosine either. NaN in the Gramian gives NaN
    weights and no cosines. The results are differentiable unless a cosine equals its
    target or rows are parallel.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      targets: `tau`, cosines, `[tasks, tasks]`.
      order: Row `i`, a permutation, is the order in which `p_i` is updated for the
        other tasks, int `[tasks, tasks]`; `i` itself is skipped.
      present: Tasks that take part, bool `[tasks]`; the others change nothing.

    Returns:
      The weights (at least 1 for present tasks, 0 for absent tasks) and the cosines.

    Raises:
      ValueError: If a shape does not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian = jnp.array([[1.0, 0.0], [0.0, 4.0]])
      >>> order = jnp.array([[0, 1], [0, 1]])
      >>> result = raise_cosines(gramian, jnp.full((2, 2), 0.6), order)
      >>> print(result.weights)
      [2.5   1.375]

    References:
      Wang et al., *Gradient Vaccine*, ICLR 2021, equation 3.
    """
    cosines, norms = normalise(gramian, present)
    order = _check_square("order", order, cosines)
    targets = _check_square("targets", targets, cosines).astype(cosines.dtype)
    # inner as above, and lengths[i] is |p_i| / |g_i|.
    start = cosines, diagonal(cosines), cosines
    if len(norms) == 2:
        wanted = jnp.stack([targets[0, 1], targets[1, 0]])
        _, (added, met) = _meet_target(start, (_other_of_two(), wanted))
        found = jnp.where(jnp.eye(2, dtype=bool), targets, met[:, None])
    else:
        wanted = jnp.take_along_axis(targets, order, axis=1)
        _, (added, met) = jax.lax.scan(_meet_target, start, (order.T, wanted.T))
        tasks = jnp.arange(len(norms))[:, None]
        found = targets.at[tasks, order].set(met.T)
    weights = _total_weights(added, order, cosines, norms, present)
    # One NaN in the Gramian makes all weights NaN.
    return Vaccinated(weights, jnp.where(jnp.isnan(weights[0]), targets, found))


def _meet_target(
    carry: tuple[jax.Array, jax.Array, jax.Array], meeting: tuple[jax.Array, jax.Array]
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Updates every `p_i` for task `other[i]`; returns the gain and the cosine."""
    inner, lengths, cosines = carry
    other, target = meeting
    rounding = (16 + len(other)) * jnp.finfo(inner.dtype).eps
    along = jnp.take_along_axis(inner, other[:, None], axis=1)[:, 0]
    across = lengths**2 - along**2
    across = jnp.where(across <= rounding * lengths**2, 0, across)
    meets = (other != jnp.arange(len(other))) & (diagonal(cosines)[other] > 0)
    # The update keeps the part of p_i that is orthogonal to u_j, and gives p_i the
    # target cosine with u_j.
    length = safe_root(across / jnp.maximum(1 - target**2, rounding))
    gain = jnp.maximum(target * length - along, 0)
    gain = jnp.where(meets & (along < target * lengths), gain, 0)
    cosine = jnp.clip(safe_divide(along, lengths), -1, 1)
    known = meets & (lengths > 0)
    carry = (
        inner + gain[:, None] * cosines[other],
        jnp.where(gain > 0, length, lengths),
        cosines,
    )
    return carry, (gain, jnp.where(known, cosine, target))
