"""Flax Linen: `apply` with a method; statistics are a collection."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.frameworks.common import (
    BATCHES,
    DROP,
    LABELS,
    MOMENTUM,
    OUTPUTS,
    WIDTH,
    Program,
    functional_trainer,
)


class Head(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, z):
        z = nn.BatchNorm(use_running_average=False, momentum=MOMENTUM)(z)
        return nn.Dense(self.outputs)(nn.Dropout(DROP, deterministic=False)(z))


class Net(nn.Module):
    def setup(self):
        self.dense = nn.Dense(WIDTH, use_bias=False)
        self.norm = nn.BatchNorm(use_running_average=False, momentum=MOMENTUM)
        self.dropout = nn.Dropout(DROP, deterministic=False)
        self.cls, self.reg, self.tags = map(Head, OUTPUTS.values())

    def encode(self, x):
        return nn.tanh(self.dropout(self.norm(self.dense(x))))

    def head(self, z, task):
        return getattr(self, task)(z)

    def __call__(self, x):
        z = self.encode(x)
        return [self.head(z, task) for task in OUTPUTS]


NET = Net()


def apply(params, state, key, method, *args):
    out, new = NET.apply(
        {"params": params, "batch_stats": state},
        *args,
        method=method,
        mutable="batch_stats",
        rngs={"dropout": key},
    )
    return out, new["batch_stats"]


def encode(params, x, key, state):
    return apply(params, state, key, "encode", x)


def head(task, params, z, key, state):
    return apply(params, state, key, "head", z, task)


def make_program():
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(NET.init)(keys, jnp.zeros_like(BATCHES[0]["x"]))
    return Program(
        variables["params"],
        variables["batch_stats"],
        LABELS,
        encode,
        head,
        lambda state, task: state[task],
    )


make_trainer = functional_trainer
