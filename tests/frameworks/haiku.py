"""Haiku: one transform, an encoder and three heads as functions of one tree."""

import haiku as hk
import jax
import jax.numpy as jnp

from tests.frameworks.common import (
    BATCHES,
    DROP,
    LABELS,
    MOMENTUM,
    OUTPUTS,
    TASKS,
    WIDTH,
    Program,
    functional_trainer,
)


def regularise(z, name):
    norm = hk.BatchNorm(True, True, decay_rate=MOMENTUM, name=f"{name}_norm")
    return hk.dropout(hk.next_rng_key(), DROP, norm(z, is_training=True))


def build():
    def encode(x):
        z = hk.Linear(WIDTH, with_bias=False, name="trunk")(x)
        return jnp.tanh(regularise(z, "trunk"))

    def head_of(task):
        def head(z):
            return hk.Linear(OUTPUTS[task], name=task)(regularise(z, task))

        return head

    heads = {task: head_of(task) for task in TASKS}

    def init(x):
        z = encode(x)
        return [head(z) for head in heads.values()]

    return init, (encode, heads)


NET = hk.multi_transform_with_state(build)


def encode(params, x, key, state):
    return NET.apply[0](params, state, key, x)


def head(task, params, z, key, state):
    key = jax.random.fold_in(key, TASKS.index(task))
    return NET.apply[1][task](params, state, key, z)


def make_program():
    params, state = jax.jit(NET.init)(jax.random.key(0), BATCHES[0]["x"])

    def state_of(state, task):
        return {path: own for path, own in state.items() if path.startswith(task)}

    labels = LABELS | {f"{task}_norm": task for task in TASKS}
    return Program(params, state, labels, encode, head, state_of)


make_trainer = functional_trainer
