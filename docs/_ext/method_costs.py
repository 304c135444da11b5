"""What a step of each method costs and keeps, found by tracing. Needs no Sphinx."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import mtlopt
from mtlopt import Method

HEADER = ["Backward passes", "Gradients held", "State", "Random"]
NUM_TASKS, WIDTH, LATENT = 5, 16, 3
LABELS = {"trunk": "shared", "heads": "stacked"}


class Costs(NamedTuple):
    """What a method costs, in words: the cells of its row below `HEADER`."""

    backward: str
    gradients: str
    state: str
    random: str


def costs(method: Method) -> Costs:
    """Returns the costs of a method."""
    params = _params(WIDTH)
    init = method.make(NUM_TASKS, labels=LABELS).init
    state = jax.eval_shape(init, params)
    growth = _size(jax.eval_shape(init, _params(2 * WIDTH))) - _size(state)
    gradients = growth // (WIDTH * LATENT)
    held = "T" if method.backward == "T" else "1"
    if held == "T" and _streams(method):
        held = "T, streamed 2"
    return Costs(
        method.backward,
        held,
        "T gradients" if gradients else "numbers",
        "yes" if _has_key(state) else "no",
    )


def _params(width: int) -> dict[str, Any]:
    array = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return {"trunk": array((width, LATENT)), "heads": array((NUM_TASKS, LATENT))}


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _has_key(state: Any) -> bool:
    return any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        for leaf in jax.tree.leaves(state)
    )


def _streams(method: Method) -> bool:
    """Whether the method needs no more of the rows than their Gramian."""

    def head(params: Any, z: jax.Array, task: Any, *_: Any) -> jax.Array:
        return jnp.mean((z @ params["heads"] - task) ** 2)

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, NUM_TASKS),
        LABELS,
        encode=lambda params, x: x @ params["trunk"],
        streaming=True,
    )
    tx = method.make(NUM_TASKS, labels=LABELS)

    def update(params: Any, x: jax.Array) -> Any:
        return tx.update(oracle(params, x), tx.init(params), params)

    x = jax.ShapeDtypeStruct((2, WIDTH), jnp.float32)
    try:
        jax.eval_shape(update, _params(WIDTH), x)
    except ValueError as error:
        if "`streaming` must be False" not in str(error):
            raise
        return False
    return True
