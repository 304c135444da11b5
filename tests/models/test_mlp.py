"""The network of ATE-SG's Table 1, and stacked heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mtlopt
from mtlopt.models import MLP, MultiTaskMLP, stack_heads
from tests.models.networks import (
    abstract,
    assert_finite_gradients,
    compiled,
    count,
    counts,
    normal,
    random_params,
    split,
)

TRUNK = {"trunk": (6, 5), "heads": {"a": (4, 1), "b": (4, 1), "c": (4, 1)}}
PARAMS, STATS, MERGE = split(abstract(functools.partial(MultiTaskMLP, 3, **TRUNK)))
PARAMS = random_params(PARAMS)
X = normal((7, 3))


def encode(params, *args):
    return MERGE(params, STATS).encode(*args)


def test_parameter_counts():
    """Table 1, layer by layer and in groups."""
    model = nnx.eval_shape(lambda: MultiTaskMLP(rngs=nnx.Rngs(0)))
    names = ["dense1", "dense2", "dense3"]
    assert counts(model.encoder, names) == [1536, 262656, 262656]
    assert counts(model.heads["quad"], names) == [262656, 262656, 2052]
    assert counts(model.heads["circ"], names) == [262656, 262656, 513]
    groups = [model.encoder, model.heads["quad"], model.heads["circ"]]
    assert [count(group) for group in groups] == [526848, 527364, 525825]
    assert count(model) == 1580037


def test_forward():
    """ReLU behind every layer of the trunk, and between a head's, not behind it."""
    params = random_params(PARAMS)

    def dense(x, layer):
        return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

    z = np.asarray(X)
    for name in ("dense1", "dense2"):
        z = np.maximum(dense(z, params["encoder"][name]), 0)
    head = params["heads"]["b"]
    out = dense(np.maximum(dense(z, head["dense1"]), 0), head["dense2"])
    model = MERGE(params, STATS)
    np.testing.assert_allclose(model.encode(X), z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(X)["b"], out, rtol=1e-5, atol=1e-6)
    assert (out < 0).any()


def test_masked_units_are_as_if_removed():
    """The latent is the narrower network's, with zeros between."""
    params = random_params(PARAMS)
    params["encoder"]["dense2"]["bias"] += 2  # no unit is dead
    masks = {
        "dense1": np.array([True, False, True, True, False, False]),
        "dense2": np.array([False, True, True, False, True]),
    }
    kept, x = masks["dense1"], np.asarray(X)
    one, two = (jax.tree.map(np.asarray, params["encoder"][name]) for name in masks)
    hidden = np.maximum(x @ one["kernel"][:, kept] + one["bias"][kept], 0)
    z = np.maximum(hidden @ two["kernel"][kept] + two["bias"], 0)
    assert (z > 0).any(axis=0).all()
    expected = np.where(masks["dense2"], z, 0)
    found = compiled(encode)(params, X, masks)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_masked_units_need_not_be_finite():
    """Zero, and not zero times infinity; layers without a mask are whole."""
    params = random_params(PARAMS)
    params["encoder"]["dense1"]["bias"] = np.array([0.1] + [np.inf] * 5, np.float32)
    z = compiled(encode)(params, X, {"dense1": np.arange(6) == 0})
    assert np.isfinite(z).all()
    assert (np.asarray(z) > 0).any()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"dense3": np.ones(6, bool)}, r"name layers of .*'dense2'\), got 'dense3'"),
        ({"dense1": np.ones((2, 6), bool)}, r"\['dense1'\]` must .*\(6,\).*\(2, 6\)"),
    ],
)
def test_wrong_masks_are_named(masks, message):
    with pytest.raises(ValueError, match=message):
        encode(PARAMS, X, masks)


def test_initialisation_is_keras():
    """Kernels uniform within sqrt(6 / (in + out)), biases zero."""
    layer = MLP((60, 90), rngs=nnx.Rngs(0)).dense1
    kernel, bound = np.asarray(layer.kernel[...]), np.sqrt(6 / 150)
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)
    assert not np.asarray(layer.bias[...]).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_finite(dtype):
    def loss(params):
        outputs = MERGE(params, STATS)(X.astype(dtype))
        return sum(jnp.sum(out**2) for out in outputs.values())

    assert_finite_gradients(loss, PARAMS, dtype)


def test_stacked_heads_are_the_separate_heads():
    """The oracle's losses and gradients are the same, stacked in the heads' order."""
    model = MERGE(PARAMS, STATS)
    targets = normal((7, 3), 1)

    def encode(model, x, targets):
        return model.encode(x)

    def error(out, task, targets):
        return jnp.mean((out[:, 0] - targets[:, task]) ** 2)

    def stacked(model, z, task, x, targets):
        return error(model.heads["stacked"](z), task, targets)

    def separate(i, task):
        return lambda model, z, x, targets: error(model.heads[task](z), i, targets)

    ours = mtlopt.nnx.task_grad(
        mtlopt.stacked(stacked, 3),
        {"encoder": "shared", "heads": "stacked"},
        encode=encode,
    )
    expected = mtlopt.nnx.task_grad(
        {task: separate(i, task) for i, task in enumerate("abc")},
        {"encoder": "shared", **{f"heads/{task}": task for task in "abc"}},
        encode=encode,
    )

    def run(oracle, model):
        params, state, oracle, _ = oracle.pure(model)

        def all_of(params):
            grads = oracle(params, X, targets, state)
            combined = grads.combine(jnp.ones(3))
            return grads.losses, grads.jacobian()["encoder"], combined["heads"]

        return jax.device_get(compiled(all_of)(params))

    losses, rows, head_grads = run(ours, stack_heads(model))
    expected_losses, expected_rows, expected_grads = run(expected, model)
    close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(losses, expected_losses, **close)

    def check(a, b):
        np.testing.assert_allclose(a, b, **close)

    jax.tree.map(check, rows, expected_rows)
    for i, task in enumerate("abc"):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], head_grads["stacked"])
        jax.tree.map(check, one, expected_grads[task])


def test_stack_heads_leaves_the_model_alone():
    model = MERGE(PARAMS, STATS)
    stack_heads(model)
    assert list(model.heads) == ["a", "b", "c"]


@pytest.mark.parametrize("heads", [{"a": (1,), "b": (2,)}, {"a": (1,), "b": (4, 1)}])
def test_unlike_heads_do_not_stack(heads):
    with pytest.raises(ValueError, match="heads of the same layers and sizes"):
        stack_heads(MultiTaskMLP(3, (4,), heads, rngs=nnx.Rngs(0)))


def test_a_layer_is_needed():
    with pytest.raises(ValueError, match=r"`sizes` must .* got \(3,\)"):
        MLP((3,), rngs=nnx.Rngs(0))
