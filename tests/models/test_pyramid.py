"""The pyramid network is Table 7's, and its heads compute what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtlopt.models import PyramidResNet
from mtlopt.models.pyramid import PyramidHead, grid_means
from tests.models.networks import (
    assert_finite_gradients,
    compiled,
    count,
    normal,
    random_params,
    reference_layer,
    split,
)

SMALL = {"stages": (), "width": 1}
PARAMS, STATS, MERGE = split(
    nnx.eval_shape(lambda: PyramidResNet({"a": 2}, **SMALL, rngs=nnx.Rngs(0)))
)
PARAMS = random_params(PARAMS)
STATS = jax.tree.map(lambda leaf: np.abs(normal(leaf.shape, dtype=leaf.dtype)), STATS)
X = normal((2, 8, 12, 3))


def abstract(**settings):
    return nnx.eval_shape(lambda: PyramidResNet(**settings, rngs=nnx.Rngs(0)))


def test_parameter_counts():
    """ResNet-50 without its classifier; four grids, 3 x 3 and 1 x 1 for each task."""
    model = abstract()
    assert count(model.encoder) == 25557032 - 1000 * 2049
    body = 4 * (2048 * 512 + 1024) + 9 * 4096 * 512 + 1024
    heads = {task: count(head) for task, head in model.heads.items()}
    outputs = {"depth": 1, "instance": 2, "semantic": 19}
    assert heads == {task: body + 513 * size for task, size in outputs.items()}
    assert count(model) == 92740694


def test_dilation():
    """Stages after the second keep the map; a first block spreads as the one before."""
    encoder = abstract(stages=(1, 1, 2, 2), width=1).encoder
    layers = {
        name: (block.layer2.conv.stride, block.layer2.conv.dilation)
        for name, block in vars(encoder).items()
        if name.startswith("stage") and "_" in name
    }
    assert layers == {
        "stage1_block1": (1, 1),
        "stage2_block1": (2, 1),
        "stage3_block1": (1, 1),
        "stage3_block2": (1, 2),
        "stage4_block1": (1, 2),
        "stage4_block2": (1, 4),
    }


@pytest.mark.parametrize("grid", [1, 2, 3, 6])
def test_grid_means(grid):
    """As PyTorch's adaptive pooling; of a constant it is the constant."""
    x = np.asarray(normal((2, 7, 4, 3)))

    def cell(i, size):
        return slice(i * size // grid, -(-(i + 1) * size // grid))

    expected = [
        [x[:, cell(i, 7), cell(j, 4)].mean((1, 2)) for j in range(grid)]
        for i in range(grid)
    ]
    expected = np.moveaxis(np.asarray(expected), 2, 0)
    np.testing.assert_allclose(
        grid_means(jnp.asarray(x), grid), expected, rtol=1e-5, atol=1e-6
    )
    constant = grid_means(jnp.full([1, 7, 4, 2], 3.0), grid)
    np.testing.assert_allclose(constant, np.full([1, grid, grid, 2], 3.0), rtol=1e-6)


def test_head():
    """Pooled, convolved, resized and joined by hand."""
    head = nnx.eval_shape(lambda: PyramidHead(3, 2, 4, rngs=nnx.Rngs(0)))
    params, stats, merge = split(head)
    params = random_params(params)
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), stats)
    run = compiled(lambda x: merge(params, stats)(x))
    x = normal((2, 6, 6, 3))

    def resized(pooled, grid):
        weights = jax.image.resize(jnp.eye(grid), (6, grid), "bilinear")
        return jnp.einsum("ir,js,brsc->bijc", weights, weights, pooled)

    @compiled
    def reference(x):
        parts = [x]
        for grid in (1, 2, 3, 6):
            pooled = x.reshape(2, grid, 6 // grid, grid, 6 // grid, 3).mean((2, 4))
            pooled = jax.nn.relu(reference_layer(pooled, params[f"grid{grid}"]))
            parts.append(resized(pooled, grid))
        x = jnp.concatenate(parts, -1)
        x = jax.nn.relu(reference_layer(x, params["hidden"]))
        return x @ params["out"]["kernel"][0, 0] + params["out"]["bias"]

    np.testing.assert_allclose(run(x), reference(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_finite(dtype):
    """A head's, for an encoder's are `ResNet`'s; and nothing is promoted."""
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    z = normal((2, 3, 4, 1), dtype=dtype)

    def loss(params):
        out = MERGE(params, STATS).heads["a"](z)
        assert out.dtype == dtype
        return jnp.mean(out**2)

    with jax.numpy_dtype_promotion("strict"):
        assert_finite_gradients(loss, PARAMS, dtype)
        latent = jax.eval_shape(
            lambda params, x: MERGE(params, STATS).encode(x), narrow, X.astype(dtype)
        )
    assert latent.dtype == dtype
