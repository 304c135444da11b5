"""Problems without targets: networks that solve an equation (physics-informed)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mtlopt
from experiments.data import flows
from experiments.real_data.problem import Problem, PyTree, dense

_HIDDEN = (32, 32, 32)
_NUM_INSIDE, _NUM_EDGE = 64, 32  # points of a step
_NUM_POINTS = 2000  # of an evaluation, and those at an edge to draw from
_FACTORS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of the losses at the edges


def load_kovasznay() -> Problem:
    """Flow behind a grid: momentum, mass, and the solution along the boundary."""
    low, high = box = np.array([-0.5, -0.5]), np.array([1.0, 1.5])
    # Points moved to a side, a quarter to each.
    side = np.arange(_NUM_POINTS)[:, None]
    ends = np.where(side % 2 == 0, low, high)
    points = np.random.default_rng(1).uniform(*box, ends.shape)
    points = np.where(side // 2 % 2 == np.arange(2), ends, points)
    return equations(
        ("momentum x", "momentum y", "mass"),
        navier_stokes,
        {"boundary": points},
        flows.kovasznay,
        box,
        parts=("u", "v", "pressure"),
        source="Kovasznay's flow, Reynolds number 40, whose solution is closed",
        steps=5_000,
    )


def load_burgers() -> Problem:
    """A sine that steepens to a shock: Burgers' equation of viscosity 0.01 / pi."""
    low, high = box = np.array([0.0, -1.0]), np.array([1.0, 1.0])
    t, x = np.random.default_rng(1).uniform(*box, (_NUM_POINTS, 2)).T
    sides = np.where(np.arange(_NUM_POINTS) % 2 == 0, low[1], high[1])
    edges = {"initial": (np.zeros_like(t), x), "boundary": (t, sides)}
    return equations(
        ("equation",),
        burgers,
        {name: np.stack(points, axis=1) for name, points in edges.items()},
        flows.burgers,
        box,
        parts=("u",),
        source="Burgers' equation, viscosity 0.01 / pi, whose solution is an integral",
        steps=20_000,
    )


def navier_stokes(value: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the residuals `[3, num]` of steady flow: momentum along x and y, mass.

    `value` is `[num, 3]`, the derivatives by x and by y are `[2, num, 3]`.
    """
    moved = value[:, :1] * first[0] + value[:, 1:2] * first[1]
    rest = moved - (second[0] + second[1]) / flows.REYNOLDS
    mass = first[0][:, 0] + first[1][:, 1]
    return jnp.stack([rest[:, 0] + first[0][:, 2], rest[:, 1] + first[1][:, 2], mass])


def burgers(value: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the residual `[1, num]`; the derivatives are by t and by x."""
    return (first[0] + value * first[1] - flows.VISCOSITY * second[1]).T


def equations(
    names: Sequence[str],
    residuals: Callable[..., jax.Array],
    edges: Mapping[str, np.ndarray],
    solution: Callable[[np.ndarray], np.ndarray],
    box: tuple[np.ndarray, np.ndarray],
    **about: Any,
) -> Problem:
    """Returns the problem of equations in a box, and of values at points of its edges.

    Errors are relative, in L2, of each function.
    """

    def known(points: np.ndarray) -> dict[str, jax.Array]:
        each = {"points": points, "values": solution(points)}
        return {name: jnp.asarray(own, float) for name, own in each.items()}

    def losses(params: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        at = derivatives(params, batch["inside"])
        out = {name: network(params, batch[name]["points"]) for name in edges}
        at, out = mtlopt.latent((at, out))
        inside = zip(names, residuals(*at), strict=True)
        apart = {name: out[name] - batch[name]["values"] for name in edges}
        return {name: jnp.mean(own**2) for name, own in (dict(inside) | apart).items()}

    def draw(key: jax.Array, train: PyTree) -> PyTree:
        low, high = box
        uniform = jax.random.uniform(key, (_NUM_INSIDE, 2))
        rows = jax.random.randint(key, (_NUM_EDGE,), 0, _NUM_POINTS)
        batch = jax.tree.map(lambda leaf: leaf[rows], train)
        return {"inside": low + (high - low) * uniform, **batch}

    def errors(params: PyTree, split: PyTree) -> jax.Array:
        apart = network(params, split["points"]) - split["values"]
        return jnp.linalg.norm(apart, axis=0) / jnp.linalg.norm(split["values"], axis=0)

    rng, size = np.random.default_rng(0), (_NUM_POINTS, 2)
    splits = {name: known(rng.uniform(*box, size)) for name in ("validation", "test")}
    some, others = [1.0] * len(names), len(edges)
    return Problem(
        oracle=mtlopt.task_grad(losses, "shared", tasks=(*names, *edges)),
        init=lambda key: dense(key, (2, *_HIDDEN, len(about["parts"]))),
        draw=draw,
        errors=errors,
        splits={"train": {name: known(own) for name, own in edges.items()}, **splits},
        weightings={f"edges x {by:g}": some + others * [by] for by in _FACTORS},
        alone=False,
        **about,
    )


def network(params: PyTree, points: jax.Array) -> jax.Array:
    """Returns the functions `[num, outputs]` at points `[num, 2]`."""
    *hidden, last = params
    z = points
    for layer in hidden:
        z = jnp.tanh(z @ layer["w"] + layer["b"])
    return z @ last["w"] + last["b"]


def derivatives(params: PyTree, points: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the functions, and their first and second derivatives by each input.

    They go forward through the network together: `[num, outputs]`, and `[inputs, num,
    outputs]` twice. Two `jax.jvp` take nearly twice the time in a step of T gradients.
    """
    num, inputs = points.shape
    unit = jnp.broadcast_to(jnp.eye(inputs)[:, None], (inputs, num, inputs))
    stack = jnp.concatenate([points[None], unit, jnp.zeros_like(unit)])
    *hidden, last = params
    for layer in hidden:
        value, first, second = _dense(layer, stack)
        out = jnp.tanh(value)
        slope = 1 - out**2
        bent = slope * (second - 2 * out * first**2)
        stack = jnp.concatenate([out[None], slope * first, bent])
    return _dense(last, stack)


def _dense(layer: PyTree, stack: jax.Array) -> tuple[jax.Array, ...]:
    # As one matrix product, whose derivative XLA makes fast on a CPU.
    flat = stack.reshape(-1, stack.shape[-1]) @ layer["w"]
    out = flat.reshape(*stack.shape[:-1], -1)
    half = (len(out) + 1) // 2
    return out[0] + layer["b"], out[1:half], out[half:]
