"""The nine-layer network of CelebA, and its heads for tasks and groups of tasks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtlopt.models import CelebaCNN, max_pool, stack_heads
from tests.models.networks import (
    assert_finite_gradients,
    compiled,
    count,
    counts,
    normal,
    ones_like,
    random_params,
    reference_layer,
    reference_norm,
    split,
)

GROUPS = {"a": (3,), "b": (1,)}
PARAMS, STATS, MERGE = split(
    nnx.eval_shape(lambda: CelebaCNN(GROUPS, width=2, rngs=nnx.Rngs(0)))
)
PARAMS = random_params(PARAMS)
STATS = ones_like(STATS)
X = normal((4, 8, 8, 3))


def test_parameter_counts():
    """Kernels of 3 x 3, and a scale and a bias behind each layer."""
    model = nnx.eval_shape(lambda: CelebaCNN({"a": (1,)}, rngs=nnx.Rngs(0)))
    widths = [3, 64, 128, 128, 256, 256, 512, 512]
    expected = [
        9 * before * after + 2 * after for before, after in itertools.pairwise(widths)
    ]
    assert counts(model.encoder, [f"conv{i}" for i in range(1, 8)]) == expected
    assert counts(model.encoder, ["dense1", "dense2"]) == [512**2] * 2
    assert count(model.encoder) == sum(expected) + 2 * 512**2 + 2 * 1024 == 5176640
    assert count(model.heads["a"]) == 513


def test_forty_attributes_stack():
    """And groups of them give as many outputs as they have attributes."""
    heads = {str(i): (1,) for i in range(40)}
    build = lambda: stack_heads(CelebaCNN(heads, rngs=nnx.Rngs(0)))  # noqa: E731
    head = nnx.eval_shape(build).heads["stacked"]
    assert head.dense1.kernel.shape == (40, 512, 1)
    z, heads = jnp.zeros([4, 16]), MERGE(PARAMS, STATS).heads
    shapes = {task: head(z).shape for task, head in heads.items()}
    assert shapes == {"a": (4, 3), "b": (4, 1)}


def test_forward():
    """Pools behind the first, third and fifth convolution, then the mean."""
    encoder = PARAMS["encoder"]

    @compiled
    def reference(x):
        for i in range(1, 8):
            x = jax.nn.relu(reference_layer(x, encoder[f"conv{i}"]))
            x = max_pool(x) if i in (1, 3, 5) else x
        x = jnp.mean(x, (1, 2))
        for i in (1, 2):
            x = reference_norm(x @ encoder[f"dense{i}"]["kernel"], encoder[f"norm{i}"])
            x = jax.nn.relu(x)
        return x

    z = compiled(lambda x: MERGE(PARAMS, STATS).encode(x))(X)
    np.testing.assert_allclose(z, reference(X), rtol=1e-3, atol=1e-3)


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
