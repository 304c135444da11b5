"""The U-Net has the published counts and computes what its docstring says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtlopt.models import UNet
from tests.models.networks import (
    assert_finite_gradients,
    compiled,
    count,
    normal,
    ones_like,
    random_params,
    reference_layer,
    split,
)

HEADS = {"a": 2, "b": 1}
PARAMS, STATS, MERGE = split(
    nnx.eval_shape(lambda: UNet(HEADS, width=2, depth=1, rngs=nnx.Rngs(0)))
)
PARAMS = random_params(PARAMS)
STATS = ones_like(STATS)
X = normal((2, 5, 6, 3))  # an odd number of rows


def test_parameter_counts():
    """17,262,977 with one output, as the published network without redundant biases."""
    model = nnx.eval_shape(lambda: UNet(rngs=nnx.Rngs(0)))
    assert count(model.encoder) + 65 == 17262977
    outputs = {task: count(head) // 65 for task, head in model.heads.items()}
    assert outputs == {"segmentation": 13, "depth": 1, "normals": 3}
    names = ["down0", "down1", "down2", "down3", "down4", "up4", "up3", "up2", "up1"]
    sizes = [getattr(model.encoder, name).layer2.norm.scale.shape[0] for name in names]
    assert sizes == [64, 128, 256, 512, 512, 256, 128, 64, 64]


def reference_pool(x):
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def reference_resize(x, axis, size):
    """Between the centres of two pixels their average, weighted by distance."""
    centres = (np.arange(size) + 0.5) * x.shape[axis] / size - 0.5
    centres = np.clip(centres, 0, x.shape[axis] - 1)
    low = np.floor(centres).astype(int)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    weight = np.expand_dims(centres - low, [i for i in range(4) if i != axis])
    return jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight


def test_forward():
    """One level down and up again, by hand."""
    encoder = PARAMS["encoder"]

    def double(x, name):
        for layer in ("layer1", "layer2"):
            x = jax.nn.relu(reference_layer(x, encoder[name][layer]))
        return x

    def up(x, level, name):
        for axis in (1, 2):
            x = reference_resize(x, axis, level.shape[axis])
        return double(jnp.concatenate([level, x], -1), name)

    @compiled
    def reference(x):
        top = double(x, "down0")
        return up(double(reference_pool(top), "down1"), top, "up1")

    z = compiled(lambda x: MERGE(PARAMS, STATS).encode(x))(X)
    np.testing.assert_allclose(z, reference(X), rtol=1e-3, atol=1e-4)
    head = PARAMS["heads"]["a"]
    out = z @ head["kernel"][0, 0] + head["bias"]
    ours = MERGE(PARAMS, STATS).heads["a"](z)
    np.testing.assert_allclose(ours, out, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_finite(dtype):
    """And nothing is promoted on the way."""

    def loss(params):
        model = MERGE(params, STATS)
        z = model.encode(X.astype(dtype))
        assert z.dtype == dtype
        return sum(jnp.mean(head(z) ** 2) for head in model.heads.values())

    with jax.numpy_dtype_promotion("strict"):
        assert_finite_gradients(loss, PARAMS, dtype)
