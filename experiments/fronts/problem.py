"""Two or three losses of one network, whose Pareto front is known and not convex."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mtlopt

HIDDEN = 64
TASKS = ("first", "second", "third")
# Targets are this far apart; from sqrt(2) on a weighted sum misses the middle.
APART = 2.0
# Corners of a triangle with edges of length one; two tasks have its first two.
_CORNERS = np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.75**0.5]])


def corners(num_tasks: int) -> np.ndarray:
    """Returns the targets without their common part, `[tasks, 2]`."""
    chosen = APART * _CORNERS[:num_tasks]
    return chosen - chosen.mean(axis=0)


def make_losses(num_tasks: int) -> Any:
    """Returns `losses(params, x)`, `[tasks]`, of inputs `[batch, 2]`.

    The network is to be at a function of `x`, moved to the corner of the task, and the
    loss is `1 - exp(-|y - target|^2)` of the mean square over the batch.
    """
    ends = corners(num_tasks)

    def losses(params: Any, x: jax.Array) -> jax.Array:
        missed = network(params, x) - common(x) - ends[:, None]
        return -jnp.expm1(-jnp.mean(jnp.sum(missed**2, axis=2), axis=1))

    return losses


def common(x: jax.Array) -> jax.Array:
    """Returns the common part of the targets of all tasks, `[batch, 2]`."""
    left, right = x[:, 0], x[:, 1]
    return jnp.stack([jnp.sin(3 * left) * right, jnp.cos(2 * right) * left], 1) / 2


def make_oracle(num_tasks: int) -> mtlopt.Oracle:
    """Returns the oracle; all layers are shared."""
    losses = make_losses(num_tasks)
    return mtlopt.task_grad(losses, "shared", tasks=TASKS[:num_tasks])


def network(params: Any, x: jax.Array) -> jax.Array:
    """Two hidden layers, `[batch, 2]` to `[batch, 2]`."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def start(seed: int) -> list[dict[str, jax.Array]]:
    """Returns initial parameters."""
    sizes = (2, HIDDEN, HIDDEN, 2)
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(key, (a, b)) / a**0.5, "bias": jnp.zeros(b)}
        for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def draw(seed: int, *shape: int) -> jax.Array:
    """Returns inputs, uniform in a square, `[*shape, 2]`."""
    return jax.random.uniform(jax.random.key(seed), (*shape, 2), minval=-1, maxval=1)


def front(num_tasks: int, points: int) -> np.ndarray:
    """The analytic front, `[about points, tasks]`.

    The best networks are at a convex combination of the targets, the same for every
    input: of all functions with the same mean distance it has the least mean squares.
    """
    ends = corners(num_tasks)
    places = preferences(num_tasks, points) @ ends
    squares = np.sum((places[:, None] - ends) ** 2, axis=2)
    return -np.expm1(-squares)


def preferences(num_tasks: int, points: int) -> np.ndarray:
    """Returns an even grid of shares that sum to one, `[about points, tasks]`.

    Of three tasks, the least triangle with as many points.
    """
    if num_tasks == 2:
        share = np.linspace(0, 1, points)
        return np.stack([share, 1 - share], axis=1)
    edge = 1
    while (edge + 1) * (edge + 2) < 2 * points:
        edge += 1
    grid = [(i, j, edge - i - j) for i in range(edge + 1) for j in range(edge + 1 - i)]
    return np.array(grid) / edge


def place(losses: np.ndarray) -> np.ndarray:
    """Returns the places of networks between two targets, from 0 to 1."""
    away = np.sqrt(-np.log1p(-np.minimum(losses, 1 - 1e-12)))
    return away[..., 0] / np.sum(away, axis=-1)


def supported_end() -> float:
    """Returns the place up to which, from an end, the front has weighted minima."""
    curve = front(2, 20_001)
    weights = np.linspace(0.5, 1, 2_001)
    best = np.argmin(
        np.outer(weights, curve[:, 0]) + np.outer(1 - weights, curve[:, 1]), 1
    )
    places = place(curve[best])
    return float(np.max(np.minimum(places, 1 - places)))


def coordinates(losses: np.ndarray) -> np.ndarray:
    """Three losses as seen along their diagonal, `[points, 2]`."""
    axes: Sequence[Any] = [[-1, 1, 0], [-1, -1, 2]]
    directions = np.array(axes) / np.linalg.norm(axes, axis=1)[:, None]
    return losses @ directions.T
