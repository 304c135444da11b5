"""BERT has the published counts and computes what the paper says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtlopt.models import Bert, bert
from tests.models.networks import (
    assert_finite_gradients,
    compiled,
    count,
    counts,
    normal,
    random_params,
    split,
)

SETTINGS = {
    "num_layers": 2,
    "hidden_size": 8,
    "num_heads": 2,
    "vocabulary_size": 11,
    "max_length": 6,
}
TOKENS = np.array([[1, 4, 2, 9, 2], [1, 10, 3, 2, 0]], np.int32)
SEGMENTS = np.array([[0, 0, 0, 1, 1], [0, 0, 1, 1, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], np.int32)


@functools.cache
def small(pooling, dropout=0.5):
    """A network of two layers, with random parameters."""
    model = nnx.eval_shape(
        lambda: Bert(pooling=pooling, dropout=dropout, **SETTINGS, rngs=nnx.Rngs(0))
    )
    params, stats, merge = split(model)
    return random_params(params), lambda params: merge(params, stats)


@functools.cache
def compiled_encode(pooling):
    """`encode` of that network, compiled once."""
    params, network = small(pooling)
    return compiled(network(params).encode)


PARAMS, NETWORK = small("cls")
ENCODE = NETWORK(PARAMS).encode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "expected"),
    [("base", 109482240), ("small", 28763648), ("tiny", 4385920)],
)
def test_parameter_counts(size, expected):
    """As published, with the pooler; the mean has none."""
    model = nnx.eval_shape(lambda: bert(size, rngs=nnx.Rngs(0)))
    hidden = model.encoder.norm.num_features
    assert count(model.encoder) == expected
    assert list(model.heads) == ["task1", "task2", "task3"]
    for head in model.heads.values():
        assert counts(head, ["dense1", "dense2"]) == [hidden * (hidden + 1), hidden + 1]
    if size == "tiny":
        mean = nnx.eval_shape(lambda: bert(size, pooling="mean", rngs=nnx.Rngs(0)))
        assert count(mean.encoder) == expected - hidden * (hidden + 1)


def norm(x, layer):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * layer["scale"] + layer["bias"]


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def attention(x, layer, keep):
    """Scaled dot products, head by head."""
    out = np.zeros_like(x) + layer["out"]["bias"]
    for head in range(2):
        query, key, value = (
            x @ layer[name]["kernel"][:, head] + layer[name]["bias"][head]
            for name in ("query", "key", "value")
        )
        scores = query @ np.swapaxes(key, 1, 2) / np.sqrt(query.shape[-1])
        weights = np.exp(scores) * keep[:, None, :]
        weights /= weights.sum(-1, keepdims=True)
        out += weights @ value @ layer["out"]["kernel"][head]
    return out


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_forward(pooling):
    """Segments, positions, mask, exact GELU and pooling, written in NumPy."""
    params, network = small(pooling)
    numbers = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    encoder, keep = numbers["encoder"], np.asarray(MASK, np.float64)
    embedded = [encoder[name]["embedding"] for name in ("tokens", "segments")]
    x = embedded[0][TOKENS] + embedded[1][SEGMENTS]
    x = norm(x + encoder["positions"]["embedding"][:5], encoder["norm"])
    for name in ("layer1", "layer2"):
        layer = encoder[name]
        x = norm(x + attention(x, layer["attention"], keep), layer["attention_norm"])
        out = dense(x, layer["dense1"])
        out = np.asarray(jax.nn.gelu(jnp.asarray(out, jnp.float32), approximate=False))
        x = norm(x + dense(out, layer["dense2"]), layer["dense_norm"])
    if pooling == "cls":
        expected = np.tanh(dense(x[:, 0], encoder["pooler"]))
    else:
        weights = keep[:, :, None]
        expected = (x * weights).sum(1) / weights.sum(1)
    model = network(params)
    z = compiled_encode(pooling)(TOKENS, SEGMENTS, MASK)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)

    head = numbers["heads"]["task2"]
    out = dense(np.maximum(dense(expected, head["dense1"]), 0), head["dense2"])
    np.testing.assert_allclose(model.heads["task2"](z), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_changes_nothing(pooling):
    """A sequence has the same latent with and without padding, whatever the tokens."""
    encode = compiled_encode(pooling)
    z = encode(TOKENS, SEGMENTS, MASK)
    other = encode(np.where(MASK, TOKENS, 7), SEGMENTS, MASK)
    np.testing.assert_allclose(other, z, rtol=1e-6)
    short = encode(TOKENS[1:, :4], SEGMENTS[1:, :4])
    np.testing.assert_allclose(short, z[1:], rtol=1e-4, atol=1e-6)


def test_dropout_is_on_with_a_key_only():
    """The same key drops the same numbers, another one others."""
    encode = compiled_encode("cls")
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    first, again, other = (encode(TOKENS, key=key) for key in keys)
    plain = encode(TOKENS)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    assert np.abs(first - plain).max() > 1e-2
    _, undropped = small("cls", dropout=0.0)
    same = compiled(undropped(PARAMS).encode)(TOKENS, key=keys[0])
    np.testing.assert_allclose(same, plain, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_finite(dtype):
    """Also through dropout and the mask; the latent has the parameters' dtype."""

    def loss(params):
        model = NETWORK(params)
        z = model.encode(TOKENS, SEGMENTS, MASK, jax.random.key(0))
        assert z.dtype == dtype
        return sum(jnp.sum(head(z) ** 2) for head in model.heads.values())

    assert_finite_gradients(loss, PARAMS, dtype)


def test_initialisation():
    """Normal with standard deviation 0.02 before it is cut at two of them."""

    @jax.jit
    def build():
        model = Bert({"a": (100, 1)}, **SETTINGS, rngs=nnx.Rngs(0))
        return model.heads["a"].dense1.kernel[...]

    kernel = np.asarray(build())
    assert 0.03 < np.abs(kernel).max() <= 0.04
    np.testing.assert_allclose(kernel.std(), 0.02 * 0.8796, rtol=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bert("large", rngs=nnx.Rngs(0)), "`size` must be one of .*'large'"),
        (
            lambda: Bert(pooling="max", rngs=nnx.Rngs(0)),
            "`pooling` must be one of 'cls', 'mean', got 'max'",
        ),
        (lambda: Bert(dropout=1.0, rngs=nnx.Rngs(0)), "`dropout` must be .*got 1.0"),
        (lambda: Bert(num_heads=7, rngs=nnx.Rngs(0)), "of `num_heads`, 7, got 768"),
        (
            lambda: ENCODE(TOKENS[0]),
            r"`tokens` must be an .*shape \(5,\)",
        ),
        (
            lambda: ENCODE(normal((2, 5))),
            "`tokens` must be an .*got float32",
        ),
        (
            lambda: ENCODE(jnp.ones([1, 7], int)),
            "at most 6 positions, got 7",
        ),
        (
            lambda: ENCODE(TOKENS, SEGMENTS[:1]),
            r"`segments` .*shape \(1, 5\)",
        ),
        (
            lambda: ENCODE(TOKENS, None, MASK[:, :4]),
            "`mask` must have the",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
