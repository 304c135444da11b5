"""Krum: the gradients that lie closest to their neighbours (Blanchard et al., 2017)."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from mtlopt._checks import as_int, check_choice, check_num_tasks
from mtlopt.aggregators.by_weights import aggregate_by_weights
from mtlopt.linalg.normalise import Gramian, nan_unless_finite, normalise
from mtlopt.rows.protocol import Rows

Distance = Literal["squared", "plain"]


def krum_weights(
    gramian: Gramian,
    num_byzantine: int = 1,
    num_selected: int = 1,
    *,
    distance: Distance = "squared",
    present: jax.Array | None = None,
) -> jax.Array:
    """Returns the weights `[tasks]` of `krum`: `1 / k` for selected tasks, else zero.

    Here `f` is `num_byzantine`, `k` is `num_selected`, and `T` is the number of present
    tasks. If `T = f + 3`, each gradient has one neighbour, so the two closest gradients
    tie. Equal gradients `g` give `d = g`. Zero gradients count like any other. If too
    few tasks are present, each is compared with one neighbour, and all may be selected.
    Derivatives are zero. In float32, distances below 3e-4 times the norms are noise.

    Raises:
      ValueError: if there are fewer than `f + 3` or `k` tasks, or a number is negative.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> rows = jnp.array([[9.0], [1.0], [2.0], [2.5]])
      >>> weights = jax.jit(krum_weights, static_argnames="num_selected")
      >>> print(weights(rows @ rows.T, num_selected=2))
      [0.  0.  0.5 0.5]
    """
    cosines, norms = normalise(gramian, present)
    num_tasks = len(norms)
    _check(num_tasks, num_byzantine, num_selected, distance)
    there = jnp.ones(num_tasks, bool) if present is None else jnp.asarray(present)
    count = jnp.sum(there, dtype=jnp.int32)

    # Twice the product of two norms may overflow although no squared norm does.
    size = jnp.max(norms)
    relative = norms / jnp.where(size == 0, 1, size)
    squares = (relative[:, None] - relative[None]) ** 2
    squares += 2 * relative[:, None] * relative[None] * (1 - cosines)
    distances = jnp.sqrt(squares) if distance == "plain" else squares
    others = there[:, None] & there[None] & ~jnp.eye(num_tasks, dtype=bool)
    # Drops the f + 1 farthest: they are few, and sorting all distances is slow.
    _, farthest = jax.lax.top_k(jnp.where(others, distances, -1), num_byzantine + 1)
    is_far = jax.nn.one_hot(farthest, num_tasks, axis=1, dtype=bool).any(axis=2)
    neighbours = jnp.sum(distances, axis=1, where=others & ~is_far)
    nearest = jnp.min(distances, axis=1, where=others, initial=jnp.inf)
    scores = jnp.where(count >= _fewest_tasks(num_byzantine), neighbours, nearest)

    ranks = jnp.argsort(jnp.argsort(jnp.where(there, scores, jnp.inf)))
    selected = (ranks < num_selected) & there
    weights = selected.astype(norms.dtype)
    weights /= jnp.maximum(jnp.sum(weights), 1)
    return nan_unless_finite(weights, cosines)


def _check(
    num_tasks: int, num_byzantine: int, num_selected: int, distance: str
) -> None:
    check_choice("distance", distance, ("squared", "plain"))
    as_int("num_byzantine", num_byzantine, low=0)
    as_int("num_selected", num_selected, high=num_tasks)  # at most all tasks
    fewest = _fewest_tasks(num_byzantine)
    if num_tasks < fewest:
        raise ValueError(
            f"`num_tasks` must be at least num_byzantine + 3 = {fewest} for Krum, so "
            f"that every gradient has a neighbour, got {num_tasks}."
        )


def _fewest_tasks(num_byzantine: int) -> int:
    """Returns the smallest T for which a gradient has a neighbour: `T - f - 2 = 1`."""
    return num_byzantine + 3


def krum(
    num_tasks: int,
    num_byzantine: int = 1,
    num_selected: int = 1,
    *,
    distance: Distance = "squared",
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the task gradients that are closest to their neighbours: Krum.

    .. math:: d = \frac{1}{k} \sum_{i \in S} g_i, \qquad S \text{ the } k
        \text{ lowest of } s_i = \sum_{j \in N_i} |g_i - g_j|^2

    `N_i` are the `T - f - 2` other gradients nearest to `g_i`. Ties go to the lowest
    index. Krum was made for distributed workers, `f` of which may send any vector; its
    guarantee needs `T >= 2 f + 3`. With tasks, Krum drops outliers and may oppose them.

    Args:
      num_tasks: number of tasks T, at least `num_byzantine + 3`.
      num_byzantine: `f`, the number of gradients that may be wrong, an int.
      num_selected: `k`, the number of averaged gradients; `k > 1` gives Multi-Krum.
      distance: which distances are summed, `"squared"` (paper) or `"plain"` (TorchJD).

    Raises:
      ValueError: if there are too few tasks, or an argument is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp, mtlopt
      >>> grads = mtlopt.TaskGrads.from_rows(jnp.array([[9.0], [1.0], [2.0], [2.5]]))
      >>> aggregator = mtlopt.krum(4)
      >>> print(jax.jit(aggregator.update)(grads, aggregator.init(jnp.zeros(1)))[0])
      [2.]

    References:
      Blanchard et al., *Machine Learning with Adversaries*, NeurIPS 2017, section 4.
    """
    check_num_tasks(num_tasks)
    _check(num_tasks, num_byzantine, num_selected, distance)

    def weights(rows: Rows, present: jax.Array | None) -> jax.Array:
        return krum_weights(
            rows.scaled_gramian(present),
            num_byzantine,
            num_selected,
            distance=distance,
            present=present,
        )

    return aggregate_by_weights("krum", num_tasks, weights)
