"""Convolution and pooling equal `lax.conv` and `reduce_window`, on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mtlopt.models import Conv, conv2d, conv2d_max_pool, max_pool
from mtlopt.models._formulations import banded_conv, lax_conv, sliced_max, window_max


def reference_pool(x, window, stride=None, padding="VALID"):
    """`reduce_window`; its gradient picks the first of equal maxima."""
    stride = stride or window
    if not isinstance(padding, str):
        padding = ((0, 0), *padding, (0, 0))
    window, stride = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, stride, padding)


def reference_conv(x, kernel, bias, stride, padding):
    dimensions = ("NHWC", "HWIO", "NHWC")
    out = lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=dimensions
    )
    return out + bias


def reference(x, kernel, bias, stride=1, padding="VALID", pool=1):
    out = reference_conv(x, kernel, bias, stride, padding)
    return reference_pool(out, pool)


def layer(x, kernel, bias, stride=1, padding="VALID", pool=1):
    if pool == 1:
        return conv2d(x, kernel, bias, stride=stride, padding=padding)
    return conv2d_max_pool(x, kernel, bias, stride=stride, padding=padding, window=pool)


def arrays(image, kernel, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (image, kernel, kernel[-1:])
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def value_and_grads(function, args):
    """Value, and gradients with respect to all arguments for one cotangent."""
    value, pullback = jax.vjp(function, *args)
    cotangent = jax.random.normal(jax.random.key(7), value.shape, value.dtype)
    return value, *pullback(cotangent)


def assert_close(actual, expected, tolerance):
    """Equal up to `tolerance` of the largest entry, leaf by leaf."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1e-30))


# Image, kernel, stride, padding, pooling window. Odd sizes, remainders of windows and
# of tiles, strides that skip pixels, few and many channels, kernels of one pixel.
CASES = [
    ((3, 28, 28, 1), (5, 5, 1, 10), 1, "VALID", 2),  # LeNet
    ((3, 12, 12, 10), (5, 5, 10, 20), 1, "VALID", 2),
    ((2, 11, 13, 3), (3, 3, 3, 4), 1, "VALID", 2),
    ((2, 11, 13, 3), (3, 3, 3, 40), 1, "SAME", 1),
    ((2, 9, 7, 2), (3, 2, 2, 5), 1, ((1, 0), (2, 3)), 3),
    ((2, 17, 19, 3), (7, 7, 3, 64), 2, "SAME", 1),  # ResNet's first
    ((2, 9, 9, 64), (3, 3, 64, 96), 1, "SAME", 1),
    ((2, 9, 8, 64), (3, 3, 64, 48), 2, ((1, 1), (1, 1)), 2),
    ((2, 6, 7, 64), (1, 1, 64, 3), 1, "VALID", 1),
    ((2, 7, 7, 8), (1, 1, 8, 16), 2, "VALID", 2),
    ((2, 4, 20, 1), (4, 3, 1, 2), 3, "VALID", 1),
    ((2, 5, 5, 2), (5, 5, 2, 3), 1, "VALID", 1),
]


@pytest.mark.parametrize(("image", "kernel", "stride", "padding", "pool"), CASES)
def test_conv_equals_lax_conv(image, kernel, stride, padding, pool):
    """Value and gradients are `lax.conv`'s and `reduce_window`'s."""
    settings = {"stride": stride, "padding": padding, "pool": pool}
    with jax.enable_x64(True):
        for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.float64, 1e-12)):
            args = arrays(image, kernel, dtype)
            actual = jax.jit(
                lambda *a: value_and_grads(lambda *b: layer(*b, **settings), a)
            )(*args)
            expected = value_and_grads(lambda *b: reference(*b, **settings), args)
            assert_close(actual, expected, tolerance)


@pytest.mark.parametrize("pool", [1, 2])
def test_both_formulations_agree(pool):
    """What other platforms compile equals what this one does."""
    x, kernel, _ = arrays((2, 9, 10, 3), (3, 3, 3, 4))
    settings = {"stride": 2, "padding": ((1, 0), (0, 2)), "pool": pool}
    actual = value_and_grads(lambda *a: banded_conv(*a, **settings), (x, kernel))
    expected = value_and_grads(lambda *a: lax_conv(*a, **settings), (x, kernel))
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_convolution_is_lowered_for_the_platform(platform):
    """XLA's convolution and `reduce_window` appear, except on CPU."""
    args = arrays((2, 12, 12, 3), (3, 3, 3, 4))
    step = jax.jit(
        jax.grad(lambda *a: conv2d_max_pool(*a).sum() + max_pool(a[0]).sum())
    )
    text = step.trace(*args).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == (platform != "cpu")
    assert ("stablehlo.select_and_scatter" in text) == (platform != "cpu")


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [(2, None, "VALID"), (3, 2, ((1, 1), (1, 1))), (3, 1, "SAME"), (2, 3, "VALID")],
)
def test_max_pool_equals_reduce_window(window, stride, padding):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 9, 7, 3), jnp.float64)
        actual = value_and_grads(
            lambda x: max_pool(x, window, stride=stride, padding=padding), (x,)
        )
        expected = value_and_grads(
            lambda x: reference_pool(x, window, stride, padding), (x,)
        )
        assert_close(actual, expected, 1e-12)


def test_first_of_equal_maxima_gets_the_gradient():
    """Overlapping windows on an image of few values: `reduce_window`'s convention."""
    x = jnp.round(jax.random.normal(jax.random.key(0), (2, 9, 9, 2)))
    pads = ((1, 0), (0, 1))
    actual = value_and_grads(lambda x: sliced_max(x, 3, 2, pads), (x,))
    expected = value_and_grads(lambda x: window_max(x, 3, 2, pads), (x,))
    assert_close(actual, expected, 1e-6)

    constant = jnp.ones([1, 4, 4, 1])
    identity = jnp.ones([1, 1, 1, 1])
    first = jnp.zeros([1, 4, 4, 1]).at[:, ::2, ::2].set(1)
    for pooled in (max_pool, lambda x: conv2d_max_pool(x, identity)):
        assert_close(jax.grad(lambda x, f=pooled: f(x).sum())(constant), first, 0)


def test_nan_stays_visible():
    """A window with a NaN anywhere in it has a NaN as its maximum."""
    for i, j in np.ndindex(2, 2):
        x = jnp.ones([1, 4, 4, 1]).at[0, i, j, 0].set(jnp.nan)
        for out in (max_pool(x), conv2d_max_pool(x, jnp.ones([1, 1, 1, 1]))):
            expected = [[True, False], [False, False]]
            np.testing.assert_array_equal(jnp.isnan(out[0, :, :, 0]), expected)


def test_relu_commutes_with_max_pool():
    """relu(pool(conv)) = pool(relu(conv))."""
    args = arrays((2, 10, 10, 2), (3, 3, 2, 4))
    after = jax.nn.relu(conv2d_max_pool(*args))
    np.testing.assert_allclose(after, max_pool(jax.nn.relu(conv2d(*args))), atol=1e-5)


@pytest.mark.parametrize("channels", [2, 64])
def test_vmap_over_seeds(channels):
    """Batched images, kernels and biases, in value and pullback."""
    image, kernel = (2, 8, 8, channels), (3, 3, channels, 6)
    seeds = [arrays(image, kernel, seed=seed) for seed in range(3)]
    stacked = [jnp.stack(leaf) for leaf in zip(*seeds, strict=True)]

    def both(*args):
        return value_and_grads(lambda *a: layer(*a, pool=2), args)

    actual = jax.jit(jax.vmap(both))(*stacked)
    expected = [
        jnp.stack(leaf) for leaf in zip(*(both(*args) for args in seeds), strict=True)
    ]
    assert_close(list(actual), expected, 1e-5)


@pytest.mark.parametrize("channels", [2, 64])
def test_vmap_of_the_pullback(channels):
    args = arrays((2, 8, 8, channels), (3, 3, channels, 6))
    value, pullback = jax.vjp(lambda *a: layer(*a, pool=2), *args)
    rows = jax.random.normal(jax.random.key(1), (3, *value.shape))
    expected = [
        jnp.stack(leaf) for leaf in zip(*(pullback(row) for row in rows), strict=True)
    ]
    assert_close(list(jax.vmap(pullback)(rows)), expected, 1e-5)


@pytest.mark.parametrize("channels", [2, 64])
def test_forward_mode_and_transposed_pullback(channels):
    """Both give J v, as forward mode through `lax.conv` does."""
    args = arrays((2, 8, 8, channels), (3, 3, channels, 6))
    tangent = arrays((2, 8, 8, channels), (3, 3, channels, 6), seed=1)
    _, expected = jax.jvp(lambda *a: reference(*a, pool=2), args, tangent)

    def ours(*a):
        return layer(*a, pool=2)

    _, forward = jax.jvp(ours, args, tangent)
    assert_close(forward, expected, 1e-5)
    value, pullback = jax.vjp(ours, *args)
    (transposed,) = jax.linear_transpose(pullback, value)(tuple(tangent))
    assert_close(transposed, expected, 1e-5)


@pytest.mark.parametrize("channels", [2, 64])
def test_scan_and_cond(channels):
    args = arrays((2, 8, 8, channels), (3, 3, channels, 6))

    def grads(args):
        return jax.grad(lambda a: layer(*a, pool=2).sum())(args)

    expected = grads(args)
    step = lambda carry, _: (jax.tree.map(lambda a: a, carry), grads(carry))
    _, stacked = jax.jit(lambda a: lax.scan(step, a, None, length=2))(args)
    assert_close(jax.tree.map(lambda g: g[1], stacked), expected, 1e-5)
    branch = jax.jit(lambda go, a: lax.cond(go, grads, lambda a: a, a))
    assert_close(branch(True, args), expected, 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_in_float32(dtype):
    """The result is the float32 result of the same numbers, rounded once."""
    args = arrays((2, 8, 8, 64), (3, 3, 64, 6), dtype)
    actual = conv2d(*args[:2])
    expected = conv2d(*(a.astype(jnp.float32) for a in args[:2])).astype(dtype)
    assert_close(actual, expected, 1e-2)
    assert all(g.dtype == dtype for g in value_and_grads(conv2d_max_pool, args))


def test_conv_module():
    """A module holds its parameters and calls the functions."""
    layer = Conv(3, 4, 3, stride=2, padding=[(1, 1), (1, 1)], pool=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 3))
    expected = reference(x, layer.kernel[...], 0.0, 2, [(1, 1), (1, 1)], 2)
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    bare = Conv(3, 4, 3, use_bias=False, rngs=nnx.Rngs(0))
    assert bare.bias is None
    assert [leaf.shape for leaf in jax.tree.leaves(nnx.state(bare))] == [(3, 3, 3, 4)]
    hash(nnx.graphdef(layer))


IMAGE = jnp.zeros([2, 8, 8, 3])
KERNEL = jnp.zeros([3, 3, 3, 4])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: conv2d(IMAGE[0], KERNEL), r"`x` must be .*got float32 of shape \(8"),
        (lambda: conv2d(IMAGE.astype(int), KERNEL), "`x` must be .*got int32"),
        (lambda: conv2d(IMAGE, KERNEL[:, :, :2]), r"3 channels.*got shape \(3, 3, 2"),
        (lambda: conv2d(IMAGE, KERNEL[0]), r"`kernel` must .*got shape \(3, 3, 4\)"),
        (lambda: conv2d(IMAGE, KERNEL, jnp.zeros([3])), r"`bias` must .*got .*\(3,\)"),
        (lambda: conv2d(IMAGE[:, :2], KERNEL), "`kernel` must not be .*of 2 x 8"),
        (lambda: conv2d(IMAGE, KERNEL, stride=0), "`stride` must be .*got 0"),
        (lambda: conv2d(IMAGE, KERNEL, padding="FULL"), "`padding` must be .*'FULL'"),
        (lambda: conv2d(IMAGE, KERNEL, padding=((1, 1), (-1, 0))), "`padding` must"),
        (lambda: conv2d_max_pool(IMAGE, KERNEL, window=7), "`window` must not.*9 x 9"),
        (lambda: max_pool(IMAGE, 9), "`window` must not be .*9 x 9 .*of 8 x 8"),
        (lambda: max_pool(IMAGE, 0), "`window` must be .*got 0"),
        (lambda: max_pool(IMAGE[0]), "`x` must be"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
