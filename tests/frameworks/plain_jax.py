"""Without a framework: layers are functions, and dropout's key is in the state."""

import jax
import jax.numpy as jnp

from tests.frameworks.common import (
    DROP,
    INPUTS,
    LABELS,
    MOMENTUM,
    OUTPUTS,
    TASKS,
    WIDTH,
    Program,
    functional_trainer,
)


def regularise(z, params, state):
    """BatchNorm, then dropout."""
    mean, variance = jnp.mean(z, axis=0), jnp.var(z, axis=0)
    key, now = jax.random.split(state["key"])
    new = {
        "mean": MOMENTUM * state["mean"] + (1 - MOMENTUM) * mean,
        "variance": MOMENTUM * state["variance"] + (1 - MOMENTUM) * variance,
        "key": key,
    }
    z = (z - mean) / jnp.sqrt(variance + 1e-5) * params["scale"] + params["shift"]
    return z * jax.random.bernoulli(now, 1 - DROP, z.shape) / (1 - DROP), new


def encode(params, x, key, state):
    own = params["trunk"]
    z, new = regularise(x @ own["kernel"], own, state["trunk"])
    return jnp.tanh(z), {**state, "trunk": new}


def head(task, params, z, key, state):
    own = params[task]
    z, new = regularise(z, own, state[task])
    return z @ own["kernel"] + own["bias"], {**state, task: new}


def layer(key, inputs, outputs, width):
    return {
        "kernel": jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(inputs),
        "scale": jnp.ones(width),
        "shift": jnp.zeros(width),
    }


@jax.jit
def make_arrays():
    keys = dict(
        zip(("trunk", *TASKS), jax.random.split(jax.random.key(0), 4), strict=True)
    )
    params = {"trunk": layer(keys["trunk"], INPUTS, WIDTH, WIDTH)}
    for task, outputs in OUTPUTS.items():
        params[task] = layer(keys[task], WIDTH, outputs, WIDTH)
        params[task]["bias"] = jnp.zeros(outputs)
    state = {
        name: {
            "mean": jnp.zeros(WIDTH),
            "variance": jnp.ones(WIDTH),
            "key": jax.random.fold_in(key, 1),
        }
        for name, key in keys.items()
    }
    return params, state


def make_program():
    arrays = make_arrays()
    return Program(*arrays, LABELS, encode, head, lambda state, task: state[task])


make_trainer = functional_trainer
