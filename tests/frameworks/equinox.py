"""Equinox: layers of one sample under `vmap`, and a `State` that goes round them."""

import equinox as eqx
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


def batch_norm():
    return eqx.nn.BatchNorm(WIDTH, "batch", momentum=MOMENTUM, mode="batch")


class Head(eqx.Module):
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    dense: eqx.nn.Linear

    def __init__(self, outputs, key):
        self.norm, self.dropout = batch_norm(), eqx.nn.Dropout(DROP)
        self.dense = eqx.nn.Linear(WIDTH, outputs, key=key)

    def __call__(self, z, state, key):
        z, state = self.norm(z, state)
        return self.dense(self.dropout(z, key=key)), state


class Net(eqx.Module):
    dense: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    cls: Head
    reg: Head
    tags: Head

    def __init__(self, key):
        key, *keys = jax.random.split(key, 4)
        self.dense = eqx.nn.Linear(INPUTS, WIDTH, use_bias=False, key=key)
        self.norm, self.dropout = batch_norm(), eqx.nn.Dropout(DROP)
        self.cls, self.reg, self.tags = map(Head, OUTPUTS.values(), keys)

    def encode(self, x, state, key):
        z, state = self.norm(self.dense(x), state)
        return jnp.tanh(self.dropout(z, key=key)), state


def over_batch(function, inputs, state, key):
    keys = jax.random.split(key, len(inputs))
    return jax.vmap(function, (0, None, 0), (0, None), axis_name="batch")(
        inputs, state, keys
    )


def make_program():
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def encode(params, x, key, state):
        return over_batch(eqx.combine(params, static).encode, x, state, key)

    def head(task, params, z, key, state):
        key = jax.random.fold_in(key, TASKS.index(task))
        return over_batch(getattr(eqx.combine(params, static), task), z, state, key)

    def state_of(state, task):
        norm = getattr(model, task).norm
        return state.get(norm.batch_counter), state.get(norm.batch_state_index)

    return Program(params, state, LABELS, encode, head, state_of)


make_trainer = functional_trainer
