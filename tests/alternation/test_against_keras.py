"""ATE against the authors' Keras class (github.com/Fra0013To/ATEforMTNN).

The arrays are from TensorFlow 2.15.1, float32: 128 points with two binary labels, one
hidden layer, SGD of 0.1, batches of 16 in a fixed order. `compile()` was called before
each `fit`: without it, the class trains all parameters in every epoch.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.problems import QUICK

FOLDER = Path(__file__).parent.parent / "reference"
INIT, RUNS = (np.load(FOLDER / f"ate_keras_{name}.npz") for name in ("init", "runs"))
LAYERS = {"trunk": "trunk_01", "a": "branch_a", "b": "branch_b"}
LABELS = {"trunk": "shared", "a": "a", "b": "b"}
BATCHES = 8  # of an epoch


def arrays(file, prefix=""):
    return {
        name: [file[f"{prefix}{layer}__{part}"] for part in ("kernel", "bias")]
        for name, layer in LAYERS.items()
    }


def encode(params, x, y):
    kernel, bias = params["trunk"]
    return jax.nn.relu(x @ kernel + bias)


def loss(task, place, params, z, x, y):
    kernel, bias = params[task]
    logits = (z @ kernel + bias)[:, 0]
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, y[:, place]))


def oracle():
    losses = {name: functools.partial(loss, name, i) for i, name in enumerate("ab")}
    return mtlopt.task_grad(losses, LABELS, encode=encode)


def train(step, opt_state, epochs):
    """Returns the mean summed loss of each epoch, and the parameters at the end."""
    data = INIT["x"], np.concatenate([INIT["y1"], INIT["y2"]], axis=1)
    batches = [np.tile(part.reshape(BATCHES, 16, -1), [epochs, 1, 1]) for part in data]
    run = mtlopt.Run(jax.device_put(arrays(INIT)), opt_state)
    scan = jax.jit(
        lambda run: jax.lax.scan(lambda run, own: step(run, *own), run, batches),
        compiler_options=QUICK,
    )
    run, output = scan(run)
    losses = output.losses.sum(axis=1).reshape(epochs, BATCHES).mean(axis=1)
    return losses, run.params


@pytest.mark.parametrize(("shared", "task"), [(1, 1), (2, 3)])
def test_alternate_blocks_equals_the_published_class(shared, task):
    """Every epoch's loss and the last parameters, to the rounding of float32."""
    lengths = {"shared_steps": BATCHES * shared, "task_steps": BATCHES * task}
    tx = mtlopt.alternate_blocks(optax.sgd(0.1), optax.sgd(0.1), LABELS, **lengths)
    step = mtlopt.block_step(oracle(), tx)
    expected = RUNS[f"loss_{shared}_{task}"]
    losses, params = train(step, tx.init(arrays(INIT)), len(expected))
    np.testing.assert_allclose(losses, expected, atol=2e-7)
    ends = arrays(RUNS, f"{shared}_{task}__")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-7), params, ends)


def test_training_without_phases_is_another_result():
    tx = optax.chain(mtlopt.sum_tasks(2), optax.sgd(0.1))
    expected = RUNS["loss_1_1"]
    step = mtlopt.train_step(oracle(), tx)
    losses, _ = train(step, tx.init(arrays(INIT)), len(expected))
    assert abs(losses[0] - expected[0]) > 1e-3
    assert abs(losses[-1] - expected[-1]) > 1e-2
