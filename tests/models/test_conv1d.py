"""The network of ATE-SG's Table 4, and the convolution of sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mtlopt.models import Conv1d, SignalNet, conv1d
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

HEADS = {"a": (4, 6), "b": (8,)}
PARAMS, STATS, MERGE = split(abstract(functools.partial(SignalNet, (5, 4), HEADS)))
PARAMS = random_params(PARAMS)
X = normal((3, 32))


def reference(x, kernel, bias, stride=1, padding="VALID"):
    out = lax.conv_general_dilated(
        x, kernel, (stride,), padding, dimension_numbers=("NWC", "WIO", "NWC")
    )
    return out + bias


def test_parameter_counts():
    """Table 4, layer by layer and in groups."""
    model = nnx.eval_shape(lambda: SignalNet(rngs=nnx.Rngs(0)))
    assert counts(model.encoder, ["conv1", "conv2", "conv3"]) == [576, 8224, 4128]
    names = ["dense1", "dense2", "dense3"]
    assert counts(model.heads["mod"], names) == [2112, 4160, 390]
    assert counts(model.heads["sig"], names) == [2112, 4160, 520]
    groups = [model.encoder, model.heads["mod"], model.heads["sig"]]
    assert [count(group) for group in groups] == [12928, 6662, 6792]
    assert count(model) == 26382


@pytest.mark.parametrize(
    ("stride", "padding", "channels"), [(1, "SAME", 2), (2, "VALID", 64)]
)
def test_conv1d_equals_lax_conv(stride, padding, channels):
    """Value and gradients, with few and many channels."""
    args = normal((3, 9, channels)), normal((4, channels, 6), 1), normal((6,), 2)
    settings = {"stride": stride, "padding": padding}

    def value_and_grads(function):
        def both(*args):
            value, pullback = jax.vjp(lambda *a: function(*a, **settings), *args)
            return value, pullback(normal(value.shape, 3))

        return jax.tree.leaves(compiled(both)(*args))

    for actual, expected in zip(
        value_and_grads(conv1d), value_and_grads(reference), strict=True
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, atol=1e-5 * scale)


def test_same_padding_is_keras():
    """Of an odd number of zeros the larger half is on the right."""
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1)
    same = compiled(lambda x: conv1d(x, jnp.ones([4, 1, 1]), padding="SAME"))
    np.testing.assert_allclose(same(x)[0, :, 0], [6, 10, 14, 12, 9])


def test_forward():
    """Neighbours are two channels of a step; ReLU; the maximum over time."""
    params = PARAMS
    z = X.reshape(3, 16, 2)
    for name in ("conv1", "conv2"):
        layer = params["encoder"][name]
        z = jax.nn.relu(reference(z, layer["kernel"], layer["bias"], padding="SAME"))
    z = jnp.max(z, axis=1)
    model = MERGE(params, STATS)
    np.testing.assert_allclose(compiled(model.encode)(X), z, rtol=1e-5, atol=1e-6)
    assert {task: head(z).shape for task, head in model.heads.items()} == {
        "a": (3, 6),
        "b": (3, 8),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_finite(dtype):
    def loss(params):
        outputs = MERGE(params, STATS)(X.astype(dtype))
        return jnp.sum(outputs["a"] ** 2) + jnp.sum(outputs["b"])

    assert_finite_gradients(loss, PARAMS, dtype)


SEQUENCE, KERNEL = np.zeros([2, 8, 3]), np.zeros([4, 3, 5])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: conv1d(SEQUENCE[0], KERNEL), r"`x` must .*got shape \(8, 3\)"),
        (lambda: conv1d(SEQUENCE, KERNEL[0]), r"`kernel` must .*got shape \(3, 5\)"),
        (lambda: conv1d(SEQUENCE, KERNEL[:, :2]), r"3 channels.*got shape \(4, 2"),
        (lambda: conv1d(SEQUENCE[:, :3], KERNEL), "`kernel` must not be larger"),
        (lambda: conv1d(SEQUENCE, KERNEL, padding="FULL"), "`padding` must .*'FULL'"),
        (lambda: MERGE(PARAMS, STATS)(X[:, :31]), r"`x` must .* got shape \(3, 31\)"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_module_is_hashable():
    """Its static fields are, and all its state is parameters."""
    layer = Conv1d(3, 5, 4, padding="SAME", rngs=nnx.Rngs(0))
    hash(nnx.graphdef(layer))
    shapes = {name: leaf.shape for name, leaf in nnx.state(layer, nnx.Param).items()}
    assert shapes == {"kernel": (4, 3, 5), "bias": (5,)}
