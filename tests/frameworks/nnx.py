"""Flax NNX: a step moves the module and the optimizer, as in plain NNX."""

import optax
from flax import nnx

import mtlopt
from tests.frameworks.common import (
    ADAMW,
    DROP,
    INPUTS,
    LABELS,
    MOMENTUM,
    OUTPUTS,
    TASKS,
    WIDTH,
    Program,
    Trainer,
    mean_loss,
    on_device,
    present,
)


class Head(nnx.Module):
    def __init__(self, outputs, rngs):
        self.norm = nnx.BatchNorm(WIDTH, momentum=MOMENTUM, rngs=rngs)
        self.dropout = nnx.Dropout(DROP, rngs=rngs)
        self.dense = nnx.Linear(WIDTH, outputs, rngs=rngs)

    def __call__(self, z):
        return self.dense(self.dropout(self.norm(z)))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(INPUTS, WIDTH, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=MOMENTUM, rngs=rngs)
        self.dropout = nnx.Dropout(DROP, rngs=rngs)
        self.cls, self.reg, self.tags = (Head(n, rngs) for n in OUTPUTS.values())

    def encode(self, x):
        return nnx.tanh(self.dropout(self.norm(self.dense(x))))


def make_program():
    """Of plain NNX: modules are put together, run, and taken apart."""
    graphdef, *arrays = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    params, state = map(nnx.as_pure, arrays)

    def run(params, state, call):
        model = nnx.merge(graphdef, params, state)
        out = call(model)
        return out, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

    def encode(params, x, key, state):
        return run(params, state, lambda model: model.encode(x))

    def head(task, params, z, key, state):
        return run(params, state, lambda model: getattr(model, task)(z))

    return Program(params, state, LABELS, encode, head, lambda state, task: state[task])


def make_trainer(program, aggregator):
    def loss_of(task):
        return lambda model, z, batch: mean_loss(task, getattr(model, task)(z), batch)

    oracle = mtlopt.nnx.task_grad(
        {task: loss_of(task) for task in TASKS},
        program.labels,
        encode=lambda model, batch: model.encode(batch["x"]),
    )
    tx = optax.chain(aggregator, mtlopt.per_label(ADAMW, program.labels))
    traces = []

    @nnx.jit
    def jitted(model, optimizer, batch):
        traces.append(None)
        grads = oracle(model, batch, present=present(batch))
        optimizer.update(model, grads)
        return grads.losses

    def start():
        model = Net(nnx.Rngs(0))
        run = model, mtlopt.nnx.Optimizer(model, tx, wrt=nnx.Param)
        nnx.update(run, on_device(nnx.state(run)))
        return run

    def step(run, batch, key):
        return run, jitted(*run, batch)

    def arrays(run):
        model, optimizer = run
        states = nnx.state(model, nnx.Param, ...)
        params, state, opt_state = map(nnx.as_pure, (*states, optimizer.opt_state))
        return mtlopt.Run(params, opt_state, state)

    def save(run):
        return nnx.as_pure(nnx.state(run))

    def load(saved):
        run = start()
        nnx.update(run, saved)
        return run

    return Trainer(start, step, arrays, save, load, traces)
