"""Layerwise rows of networks of the zoo, of a convolution, and on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mtlopt
from mtlopt.models import Bert, LeNet
from mtlopt.rows.layerwise import KeptProducts, LayerwiseRows
from tests.models.networks import split
from tests.problems import QUICK

ENCODER = {"encoder": "shared", "heads": "frozen"}


def products_and_update(oracle, params, x, known):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        grads = oracle(params, x)
        rows = grads.rows()
        plan = grads.linear.plan(grads.partition.shared_paths)
        known.append((type(rows), plan))
        weights = jnp.linspace(0.5, 2, grads.num_tasks)
        return rows.gramian(), rows.norms(), rows.combine(weights)

    return run(params)


def compare(encode, params, x, num_tasks, labels="shared", tolerance=1e-6):
    """Gramian, norms and a combination; returns the kind of rows and their plan."""
    z = jax.eval_shape(encode, params, x)

    def head(params, z, task, x):
        sign = jnp.cos(jnp.arange(z.size).reshape(z.shape) * (task + 1.0))
        return jnp.mean(jnp.tanh(z * sign)) + jnp.mean(z[..., 0] * (task - 1.0))

    assert z.ndim >= 2
    oracles = [
        mtlopt.task_grad(
            mtlopt.stacked(head, num_tasks), labels, encode=encode, layerwise=way
        )
        for way in (True, False)
    ]
    known = []
    found, expected = (products_and_update(o, params, x, known) for o in oracles)
    for left, right in zip(found[:2], expected[:2], strict=True):
        size = np.max(np.abs(right))
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * size)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in expected[2])
    for left, right in zip(found[2], expected[2], strict=True):  # keys' biases are 0
        np.testing.assert_allclose(left, right, rtol=0, atol=3e-6 * largest)
    assert not issubclass(known[1][0], LayerwiseRows)
    return known[0]


def encoder_of(model):
    params, stats, merge = split(model)
    return params, lambda params, x: merge(params, stats).encode(x)


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [2, 12])
def test_lenet(num_tasks):
    """Dense layers are layerwise; convolutions have more positions than inputs."""
    params, encode = encoder_of(LeNet(("unused",), rngs=nnx.Rngs(0)))
    images = jax.random.normal(jax.random.key(0), (3, 28, 28, 1))
    _, plan = compare(encode, params, images, num_tasks, ENCODER)
    layerwise = [leaf.path for leaf in plan if leaf.layerwise]
    dense = [leaf for leaf in plan if len(leaf.shape) == 2]
    assert set(layerwise) >= {leaf.path for leaf in dense if leaf.shape[0] > 6}


@pytest.mark.slow
@pytest.mark.parametrize("num_tasks", [3, 12])
def test_transformer(num_tasks):
    """Attention, embeddings and norms: two samples of three tokens, 32 features."""
    model = Bert(
        {"unused": (1,)},
        num_layers=2,
        hidden_size=32,
        num_heads=2,
        vocabulary_size=20,
        max_length=3,
        pooling="mean",
        dropout=0.0,
        rngs=nnx.Rngs(0),
    )
    params, encode = encoder_of(model)
    tokens = jnp.array([[1, 2, 3], [4, 5, 1]])
    _, plan = compare(encode, params, tokens, num_tasks, ENCODER)
    kernels = [leaf for leaf in plan if leaf.path.endswith("kernel")]
    assert len(kernels) == 2 * 6
    assert all(leaf.layerwise for leaf in kernels)
    assert sum(leaf.layerwise for leaf in plan) == len(kernels)


@pytest.mark.slow
def test_a_convolution_stays_out_of_loops():
    """On a CPU XLA runs it many times slower there."""
    rng = np.random.default_rng(0)
    params = {
        "filter": jnp.float32(rng.normal(size=(3, 3, 1, 2))),
        "kernel": jnp.float32(rng.normal(size=(72, 16))),
    }

    def encode(params, x):
        x = jax.lax.conv_general_dilated(
            x,
            params["filter"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.tanh(jnp.tanh(x).reshape(len(x), -1) @ params["kernel"])

    images = jnp.float32(rng.normal(size=(2, 6, 6, 1)))
    kind, plan = compare(encode, params, images, 12)
    assert [leaf.layerwise for leaf in plan] == [False, True]
    if jax.default_backend() == "cpu":
        assert kind == KeptProducts


def test_several_devices_have_rows_unless_it_is_said(monkeypatch):
    """A batch in parts does not show while a step is traced."""
    monkeypatch.setattr(jax, "device_count", lambda: 2)

    def kind(layerwise):
        oracle = mtlopt.task_grad(
            mtlopt.stacked(lambda params, z, task, x: jnp.mean(z) * task, 3),
            "shared",
            encode=lambda params, x: x @ params,
            layerwise=layerwise,
        )
        return type(oracle(jnp.ones((8, 8)), jnp.ones((2, 8))).rows())

    assert not issubclass(kind("auto"), LayerwiseRows)
    assert issubclass(kind(True), LayerwiseRows)
