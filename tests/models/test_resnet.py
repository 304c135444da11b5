"""ResNets are torchvision's, Keras's and the papers'; BatchNorm is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import mtlopt
from mtlopt.models import (
    BatchNorm,
    ResNet,
    celeba_resnet18,
    mammography_resnet50,
    pose_resnet34,
    resnet,
)
from tests.models.networks import (
    abstract,
    assert_finite_gradients,
    compiled,
    count,
    counts,
    normal,
    random_params,
    reference_layer,
    split,
    stats_of,
)

TASKS = ("a", "b", "c")
HEADS = dict.fromkeys(TASKS, (2,))
PARAMS, STATS, MERGE = split(
    abstract(lambda rngs: ResNet((1,), HEADS, width=3, small_images=True, rngs=rngs))
)
PARAMS = random_params(PARAMS)
STATS = jax.tree.map_with_path(  # as at the start: variances of one
    lambda path, leaf: np.full(leaf.shape, path[-1].key == "var", leaf.dtype), STATS
)
X = 2 + normal((4, 6, 6, 3))


@pytest.mark.parametrize(
    ("depth", "expected"), [(18, 11689512), (34, 21797672), (50, 25557032)]
)
def test_parameter_counts_are_torchvision(depth, expected):
    """With a linear head of 1,000 classes."""
    model = abstract(lambda rngs: resnet(depth, {"all": (1000,)}, rngs=rngs))
    assert count(model) == expected


def test_small_images_change_only_the_stem():
    """7 x 7 becomes 3 x 3."""
    heads = {str(i): (1,) for i in range(10)}
    plain = abstract(lambda rngs: resnet(18, heads, rngs=rngs))
    small = abstract(lambda rngs: resnet(18, heads, small_images=True, rngs=rngs))
    assert count(plain) - count(small) == (49 - 9) * 3 * 64
    assert count(small) == 11168832 + 10 * 513


def test_forty_stacked_heads():
    """CelebA's heads are one head with a leading task axis; the encoder is the same."""
    params, stats, _ = split(abstract(celeba_resnet18))
    shapes = jax.tree.map(lambda leaf: leaf.shape, params["heads"])
    assert shapes == {"stacked": {"dense1": {"kernel": (40, 512, 2), "bias": (40, 2)}}}
    sizes = [leaf.size for leaf in jax.tree.leaves(params["encoder"])]
    assert sum(sizes) == 11168832
    assert len(jax.tree.leaves(stats)) == 2 * 20


def test_parameter_counts_of_the_pose_network():
    """torchvision's ResNet-34 without its classifier of 1,000 classes, and Table 7."""
    model = abstract(pose_resnet34)
    assert count(model.encoder) == 21797672 - 1000 * 513
    heads = {task: count(head) for task, head in model.heads.items()}
    assert heads == {"translation": 3 * 513, "rotation": 4 * 513}


def test_parameter_counts_of_the_mammography_network():
    """Table 7 as corrected: 33 for the last layer, the trunk without its branches."""
    model = abstract(mammography_resnet50)
    everything = [nnx.Param, nnx.BatchStat]
    assert count(model.encoder, nnx.Any(*everything)) == 23587712
    assert count(model.encoder, nnx.BatchStat) == 53120
    names = ["dense1", "dense2", "dense3", "dense4"]
    heads = {task: counts(head, names) for task, head in model.heads.items()}
    assert heads == {
        "task1": [1049088, 65664, 4128, 165],
        "task2": [1049088, 65664, 4128, 462],
        "task3": [1049088, 65664, 4128, 33],
    }
    assert [sum(sizes) for sizes in heads.values()] == [1119045, 1119342, 1118913]
    assert count(model, nnx.Any(*everything)) == 26945012


def reference_block(x, params, strides, epsilon):
    out = x
    for i, stride in enumerate(strides):
        out = out if i == 0 else jax.nn.relu(out)
        out = reference_layer(out, params[f"layer{i + 1}"], stride, epsilon=epsilon)
    if "shortcut" in params:
        stride = int(np.prod(strides))
        x = reference_layer(x, params["shortcut"], stride, epsilon=epsilon)
    return jax.nn.relu(out + x)


def reference_pool(x):
    window, stride, padding = (
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )
    return lax.reduce_window(x, -jnp.inf, lax.max, window, stride, padding)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "bottleneck", "stem", "strides", "epsilon"),
    [
        ("torchvision", False, 1, ((1, 1), (2, 1)), 1e-5),
        ("torchvision", True, 2, ((1, 1, 1), (1, 2, 1)), 1e-5),
        ("keras", True, 2, ((1, 1, 1), (2, 1, 1)), 1.001e-5),
    ],
)
def test_forward_equals_lax_conv(variant, bottleneck, stem, strides, epsilon):
    """Latent and gradients of two blocks are the hand-written network's."""
    model = abstract(
        lambda rngs: ResNet(
            (1, 1),
            {"a": (2,)},
            bottleneck=bottleneck,
            width=3,
            small_images=stem == 1,
            variant=variant,
            rngs=rngs,
        )
    )
    params, stats, merge = split(model)
    params = random_params(params)["encoder"]
    stats = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), stats)
    assert ("bias" in params["stem"]["conv"]) == (variant == "keras")
    x = normal((4, 8 * stem**2, 8 * stem**2, 3))

    def reference(params):
        z = jax.nn.relu(reference_layer(x, params["stem"], stem, epsilon=epsilon))
        z = z if stem == 1 else reference_pool(z)
        for i, block in enumerate(strides):
            z = reference_block(z, params[f"stage{i + 1}_block1"], block, epsilon)
        return jnp.mean(z, (1, 2))

    def ours(params):
        heads = {"heads": {"a": {"dense1": {"kernel": 0.0, "bias": 0.0}}}}
        return merge({"encoder": params, **heads}, stats).encode(x)

    def value_and_grads(function):
        def both(params):
            z, pullback = jax.vjp(function, params)
            return z, pullback(normal(z.shape, 9))

        return compiled(both)(params)

    actual, expected = value_and_grads(ours), value_and_grads(reference)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3 * largest),
        actual[1],
        expected[1],
    )


def test_initialisation():
    """He's normal over the fan-out, and Keras's uniform; BatchNorm is the identity."""
    layers = {
        variant: ResNet(
            (), {"a": (1,)}, width=32, variant=variant, rngs=nnx.Rngs(0)
        ).encoder.stem
        for variant in ("torchvision", "keras")
    }
    kernels = {name: np.asarray(x.conv.kernel[...]) for name, x in layers.items()}
    he, glorot = np.sqrt(2 / (49 * 32)), np.sqrt(6 / (49 * 35))
    np.testing.assert_allclose(kernels["torchvision"].std(), he, rtol=0.05)
    assert np.abs(kernels["torchvision"]).max() > 3 * he  # not truncated
    assert 0.99 * glorot < np.abs(kernels["keras"]).max() <= glorot
    norm = layers["keras"].norm
    assert (norm.scale[...] == 1).all()
    assert (norm.bias[...] == 0).all()


class TestBatchNorm:
    def test_statistics_move_towards_the_batch(self):
        """By 1 - momentum of the way, without a gradient."""
        norm = BatchNorm(3, momentum=0.75)
        x = 2 + 3 * normal((50, 3))
        out = norm(x)
        np.testing.assert_allclose(norm.mean[...], 0.25 * x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(norm.var[...], 0.75 + 0.25 * x.var(0), rtol=1e-5)
        np.testing.assert_allclose(out.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(out.std(0), 1, rtol=1e-4)

    def test_evaluation_uses_and_keeps_them(self):
        norm = BatchNorm(2, epsilon=1e-3)
        norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0]), jnp.array([4.0, 0.25])
        norm.scale[...], norm.bias[...] = jnp.array([3.0, 1.0]), jnp.array([0.0, 5.0])
        norm.eval()
        x = normal((4, 2))
        expected = (x - np.array([1, 2])) / np.sqrt(np.array([4, 0.25]) + 1e-3)
        np.testing.assert_allclose(
            norm(x), expected * np.array([3, 1]) + np.array([0, 5]), rtol=1e-5
        )
        np.testing.assert_array_equal(norm.mean[...], [1, 2])
        np.testing.assert_array_equal(norm.var[...], [4, 0.25])

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_half_precision_keeps_its_dtype(self, dtype):
        """Statistics are float32's, also where a sum of squares overflows float16."""
        norm = BatchNorm(2)
        x = (300 + 100 * normal((64, 2))).astype(dtype)
        out = norm(x)
        assert out.dtype == dtype
        assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
        exact = x.astype(jnp.float32)
        np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean(0), rtol=1e-5)
        np.testing.assert_allclose(out.astype(jnp.float32).std(0), 1, rtol=1e-2)

    def test_constant_batch(self):
        """Without variance the output is the bias, however large the numbers."""
        norm = BatchNorm(1)
        np.testing.assert_array_equal(norm(jnp.full([5, 1], 1e4)), np.zeros([5, 1]))

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"momentum": 1.0}, "`momentum` must be between 0 and 1, got 1.0"),
            ({"epsilon": 0.0}, "`epsilon` must be positive, got 0.0"),
        ],
    )
    def test_bad_arguments(self, settings, words):
        with pytest.raises(ValueError, match=words):
            BatchNorm(3, **settings)


def test_statistics_move_once_a_step():
    """Three tasks move them as one forward pass does, and by the batch's own."""

    def loss(task):
        return lambda model, z, x: jnp.mean(model.heads[task](z) ** 2)

    oracle = mtlopt.nnx.task_grad(
        {task: loss(task) for task in TASKS},
        {"encoder": "shared", **{f"heads/{task}": task for task in TASKS}},
        encode=lambda model, x: model.encode(x),
    )
    params, state, oracle, _ = oracle.pure(MERGE(PARAMS, STATS))

    @compiled
    def step(params, state):
        grads = oracle(params, X, state)
        return grads.state, grads.combine(jnp.ones(3))

    @compiled
    def once(stats):
        model = MERGE(PARAMS, stats)
        model.encode(X)
        return stats_of(model)

    new, grad = step(params, state)
    expected = once(STATS)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    kernel = PARAMS["encoder"]["stem"]["conv"]["kernel"]
    out = lax.conv_general_dilated(
        X, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    stem = new["encoder"]["stem"]["norm"]
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(stem["mean"], 0.1 * out.mean((0, 1, 2)), **close)
    np.testing.assert_allclose(stem["var"], 0.9 + 0.1 * out.var((0, 1, 2)), **close)
    assert jax.tree.structure(grad) == jax.tree.structure(params)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grad["encoder"]["stem"]))


def test_evaluation_mode():
    """Images do not influence each other, and statistics stay."""

    @compiled
    def evaluate(x):
        model = MERGE(PARAMS, STATS)
        model.eval()
        return model.encode(x), stats_of(model)

    z, kept = evaluate(X)
    jax.tree.map(np.testing.assert_array_equal, kept, STATS)
    changed, _ = evaluate(np.concatenate([X[:1], 0 * X[1:]]))
    np.testing.assert_allclose(changed[0], z[0], rtol=1e-5)
    trained = compiled(lambda x: MERGE(PARAMS, STATS).encode(x))(X)
    assert np.abs(trained[0] - z[0]).max() > 1e-2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_finite(dtype):
    """And the latent has the parameters' dtype, the statistics float32."""

    def loss(params):
        model = MERGE(params, STATS)
        z = model.encode(X.astype(dtype))
        assert z.dtype == dtype
        new = jax.tree.leaves(stats_of(model))
        assert {leaf.dtype for leaf in new} == {jnp.dtype(jnp.float32)}
        return sum(jnp.sum(head(z) ** 2) for head in model.heads.values())

    assert_finite_gradients(loss, PARAMS, dtype)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda rngs: resnet(20, {"a": (1,)}, rngs=rngs), "`depth` must be .*got 20"),
        (
            lambda rngs: resnet(18, {"a": (1,)}, variant="torch", rngs=rngs),
            "`variant` must be one of 'torchvision', 'keras', got 'torch'",
        ),
    ],
)
def test_bad_arguments(build, words):
    with pytest.raises(ValueError, match=words):
        build(nnx.Rngs(0))
