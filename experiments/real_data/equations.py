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
_NUM_INSIDE, _NUM_EDGE = 64, 32  # number of points in a step
_NUM_POINTS = 2000  # points of an evaluation, and points at an edge to draw from
_FACTORS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # weights of the losses at the edges


def load_kovasznay() -> Problem:
    """The flow behind a grid: momentum, mass, and the solution along the boundary."""
    box = np.array([-0.5, -0.5]), np.array([1.0, 1.5])
    points = np.random.default_rng(1).uniform(*box, (_NUM_POINTS, 2))
    return equations(
        ("momentum x", "momentum y", "mass"),
        navier_stokes,
        {"boundary": on_sides(points, box, (0, 1))},
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


def load_beltrami() -> Problem:
    """A flow with decaying vortices in a cube: momentum, mass, and edge values."""
    box = np.array([0.0, -1.0, -1.0, -1.0]), np.ones(4)
    points = np.random.default_rng(1).uniform(*box, (_NUM_POINTS, 4))
    return equations(
        ("momentum x", "momentum y", "momentum z", "mass"),
        unsteady_flow,
        {
            "initial": points * [0, 1, 1, 1],
            "boundary": on_sides(points, box, (1, 2, 3)),
        },
        flows.beltrami,
        box,
        parts=("u", "v", "w", "pressure"),
        source="Beltrami's flow, viscosity 1, whose solution is closed",
        steps=5_000,
    )


def on_sides(points: np.ndarray, box: Any, axes: Sequence[int]) -> np.ndarray:
    """Moves points to the sides of a box across these axes, equally many to each."""
    side = np.arange(len(points))[:, None]
    ends = np.where(side % 2 == 0, *box)
    across = np.array(axes)[side // 2 % len(axes)] == np.arange(points.shape[1])
    return np.where(across, ends, points)


def navier_stokes(value: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the residuals `[3, num]` of steady flow: momentum along x and y, mass.

    `value` is `[num, 3]`, the derivatives by x and by y are `[2, num, 3]`.
    """
    moved = value[:, :1] * first[0] + value[:, 1:2] * first[1]
    rest = moved - (second[0] + second[1]) / flows.REYNOLDS
    mass = first[0][:, 0] + first[1][:, 1]
    return jnp.stack([rest[:, 0] + first[0][:, 2], rest[:, 1] + first[1][:, 2], mass])


def unsteady_flow(value: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the residuals `[4, num]` of viscosity 1: momentum along x, y, z, mass.

    `value` is `[num, 4]`, the derivatives by t, x, y and z are `[4, num, 4]`.
    """
    by_place = first[1:]
    moved = jnp.einsum("nk,knc->nc", value[:, :3], by_place)
    rest = first[0] + moved - second[1:].sum(axis=0)
    momentum = rest[:, :3].T + by_place[:, :, 3]
    mass = jnp.einsum("knk->n", by_place[:, :, :3])
    return jnp.concatenate([momentum, mass[None]])


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
    """Returns the problem of equations in a box, with values at points of its edges.

    Errors are the relative L2 errors of the functions.
    """

    def known(points: np.ndarray) -> dict[str, jax.Array]:
        each = {"points": points, "values": solution(points)}
        return {name: jnp.asarray(own, float) for name, own in each.items()}

    def seen(params: PyTree, batch: PyTree) -> PyTree:
        at = derivatives(params, batch["inside"])
        return at, {name: network(params, batch[name]["points"]) for name in edges}

    def errors_at(seen: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        at, out = seen
        inside = zip(names, residuals(*at), strict=True)
        apart = {name: out[name] - batch[name]["values"] for name in edges}
        return dict(inside) | apart

    def losses(params: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        found = errors_at(mtlopt.latent(seen(params, batch)), batch)
        return {name: jnp.mean(own**2) for name, own in found.items()}

    def draw(key: jax.Array, train: PyTree) -> PyTree:
        low, high = box
        uniform = jax.random.uniform(key, (_NUM_INSIDE, len(box[0])))
        rows = jax.random.randint(key, (_NUM_EDGE,), 0, _NUM_POINTS)
        batch = jax.tree.map(lambda leaf: leaf[rows], train)
        return {"inside": low + (high - low) * uniform, **batch}

    def errors(params: PyTree, split: PyTree) -> jax.Array:
        apart = network(params, split["points"]) - split["values"]
        return jnp.linalg.norm(apart, axis=0) / jnp.linalg.norm(split["values"], axis=0)

    rng, size = np.random.default_rng(0), (_NUM_POINTS, len(box[0]))
    splits = {name: known(rng.uniform(*box, size)) for name in ("validation", "test")}
    some, others = [1.0] * len(names), len(edges)
    return Problem(
        oracle=mtlopt.task_grad(losses, "shared", tasks=(*names, *edges)),
        init=lambda key: dense(key, (len(box[0]), *_HIDDEN, len(about["parts"]))),
        draw=draw,
        errors=errors,
        splits={"train": {name: known(own) for name, own in edges.items()}, **splits},
        weightings={f"edges x {by:g}": some + others * [by] for by in _FACTORS},
        residuals=lambda params, batch: errors_at(seen(params, batch), batch),
        inside=names,
        alone=False,
        **about,
    )


def network(params: PyTree, points: jax.Array) -> jax.Array:
    """Returns the functions `[num, outputs]` at points `[num, inputs]`."""
    *hidden, last = params
    z = points
    for layer in hidden:
        z = jnp.tanh(z @ layer["w"] + layer["b"])
    return z @ last["w"] + last["b"]


def derivatives(params: PyTree, points: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the functions, and their first and second derivatives by each input.

    All go forward through the network together: `[num, outputs]`, and
    `[inputs, num, outputs]` twice. With two calls of `jax.jvp`, a step with T gradients
    takes nearly twice the time.
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
    # One matrix product, because XLA makes its derivative fast on a CPU.
    flat = stack.reshape(-1, stack.shape[-1]) @ layer["w"]
    out = flat.reshape(*stack.shape[:-1], -1)
    half = (len(out) + 1) // 2
    return out[0] + layer["b"], out[1:half], out[half:]
