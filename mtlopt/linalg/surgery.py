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
    r"""Projects every task gradient off the gradients that it conflicts with.

    .. math:: p_i \leftarrow p_i - \frac{\min(\langle p_i, g_j \rangle, 0)}{|g_j|^2} g_j
        \quad \text{for } j = \mathrm{order}_{i1}, \dots, \mathrm{order}_{iT}

    starting from `p_i = g_i` and skipping `j = i`. The gradients are never touched:
    each `p_i` is kept by its cosines to all unit rows, so that one step for all tasks
    at once adds a row of `C` to each, and the whole costs `tasks^3`. Scale-free; ends
    after `tasks` steps.

    A zero row changes nothing and is not changed. Rows that oppose each other give
    zero, duplicates give the same. NaN in, NaN out. Differentiable away from
    `<p_i, g_j> = 0`. Two tasks meet once, whatever the order.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      order: Row `i` is the order in which task `i` meets the others, int
        `[tasks, tasks]`; `i` itself is skipped wherever it stands.
      present: Tasks that take part, bool `[tasks]`; the others change nothing.

    Returns:
      The sum of the projected gradients as weights of the original ones, `[tasks]`:
      `sum_i p_i = sum_j weights_j g_j`. At least 1 for present tasks, 0 for absent.

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
    """The weights of `sum_i p_i`.

    `added` is what p_i gained in units of |g_i|, `[positions, tasks]`, or `[tasks]` of
    two tasks.
    """
    # p_i gained added |g_i| u_j, which is added |g_i| / |g_j| of g_j.
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
    """Every task `i` meets task `other[i]`; returns how much of that it gains."""
    inner, cosines = carry
    met = jnp.take_along_axis(inner, other[:, None], axis=1)[:, 0]
    is_self = other == jnp.arange(other.shape[0])
    gain = jnp.where(is_self, 0, -jnp.minimum(met, 0))
    return (inner + gain[:, None] * cosines[other], cosines), gain


def random_orders(key: jax.Array, num_tasks: int) -> tuple[jax.Array, jax.Array]:
    """Draws for every task an order of all tasks.

    Args:
      key: of the random numbers.
      num_tasks: number of tasks T.

    Returns:
      The next key, and the orders, int `[tasks, tasks]`, a row each. Two tasks meet
      once: nothing is drawn, and the key stays.
    """
    if num_tasks == 2:
        return key, jnp.array([[0, 1], [0, 1]])
    # A split makes random words and nothing else: in one call, for compile time, the
    # next key and all that are sorted.
    count = num_tasks**2
    keys = jax.random.split(key, 1 + -(-count // jax.random.key_data(key).size))
    words = jax.random.key_data(keys[1:]).reshape(-1)[:count]
    return keys[0], jnp.argsort(words.reshape(num_tasks, num_tasks), axis=1)


class Vaccinated(NamedTuple):
    """What `raise_cosines` returns.

    Attributes:
      weights: the sum of the changed gradients as weights of the original ones,
        `[tasks]`.
      cosines: of every changed gradient with task `j` as they met, `[tasks, tasks]`;
        the target itself where they have none.
    """

    weights: jax.Array
    cosines: jax.Array


def raise_cosines(
    gramian: Gramian,
    targets: jax.Array,
    order: jax.Array,
    present: jax.Array | None = None,
) -> Vaccinated:
    r"""Raises the cosine of every task gradient with the others to its target.

    .. math:: p_i \leftarrow p_i + \frac{|p_i| \big( \tau_{ij} \sqrt{1 - \phi^2} -
        \phi \sqrt{1 - \tau_{ij}^2} \big)}{|g_j| \sqrt{1 - \tau_{ij}^2}} \, g_j
        \quad \text{if } \phi = \frac{\langle p_i, g_j \rangle}{|p_i| |g_j|} < \tau_{ij}
        \quad \text{for } j = \mathrm{order}_{i1}, \dots, \mathrm{order}_{iT}

    starting from `p_i = g_i` and skipping `j = i`. With targets zero this is
    `project_conflicts`, and like it the gradients are never touched and no scale
    matters. Rounding of the cosines shows in `sqrt(1 - phi^2)` as its square root:
    gradients within that of parallel count as parallel, and a target within that of
    one as that far below it.

    A zero row changes nothing and is not changed, and its pairs have no cosine; nor has
    a gradient that surgery has made zero. NaN in the Gramian gives NaN weights and no
    cosines. Differentiable, except where a cosine is its target or rows are parallel.

    Args:
      gramian: `G`, inner products of the task gradients, `[tasks, tasks]`.
      targets: `tau`, cosines, `[tasks, tasks]`.
      order: Row `i` is the order in which task `i` meets the others, a permutation, int
        `[tasks, tasks]`; `i` itself is skipped wherever it stands.
      present: Tasks that take part, bool `[tasks]`; the others change nothing.

    Returns:
      The weights, at least 1 for present tasks, 0 for absent; and the cosines.

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
    # One NaN in the Gramian is in all weights.
    return Vaccinated(weights, jnp.where(jnp.isnan(weights[0]), targets, found))


def _meet_target(
    carry: tuple[jax.Array, jax.Array, jax.Array], meeting: tuple[jax.Array, jax.Array]
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Every task `i` meets task `other[i]`: how much it gains, and their cosine."""
    inner, lengths, cosines = carry
    other, target = meeting
    rounding = (16 + len(other)) * jnp.finfo(inner.dtype).eps
    along = jnp.take_along_axis(inner, other[:, None], axis=1)[:, 0]
    across = lengths**2 - along**2
    across = jnp.where(across <= rounding * lengths**2, 0, across)
    meets = (other != jnp.arange(len(other))) & (diagonal(cosines)[other] > 0)
    # After it, p_i has the same part across u_j and the target's cosine with it.
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
