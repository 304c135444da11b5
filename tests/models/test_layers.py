"""Convolution and pooling equal `lax.conv` and `reduce_window`, on every platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mtlopt.models import (
    BatchNorm,
    Conv,
    _formulations,
    conv2d,
    conv2d_max_pool,
    max_pool,
)
from mtlopt.models._formulations import banded_conv, lax_conv, sliced_max, window_max
from tests.models.networks import compiled


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


def normal(shape, dtype=np.float32, seed=0):
    """Standard normal numbers; from NumPy, which has nothing to compile."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def arrays(image, kernel, dtype=np.float32, seed=0):
    """An image, a kernel and a bias."""
    shapes = (image, kernel, kernel[-1:])
    return [normal(shape, dtype, seed + i) for i, shape in enumerate(shapes)]


def value_and_grads(function, args):
    """Value, and gradients with respect to all arguments for one cotangent."""

    def both(*args):
        value, pullback = jax.vjp(function, *args)
        return value, *pullback(normal(value.shape, value.dtype, seed=7))

    return compiled(both)(*args)


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
        args = arrays(image, kernel, np.float64)
        actual = value_and_grads(lambda *a: layer(*a, **settings), args)
        expected = value_and_grads(lambda *a: reference(*a, **settings), args)
        assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize(("image", "kernel", "stride", "padding", "pool"), CASES[:2])
def test_float32(image, kernel, stride, padding, pool):
    """In single precision equal to 1e-5 of the largest entry."""
    settings = {"stride": stride, "padding": padding, "pool": pool}
    args = arrays(image, kernel)
    actual = value_and_grads(lambda *a: layer(*a, **settings), args)
    expected = value_and_grads(lambda *a: reference(*a, **settings), args)
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize(("pool", "dilation"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_both_formulations_agree(pool, dilation):
    """What other platforms compile equals what this one does."""
    x, kernel, _ = arrays((2, 9, 10, 3), (3, 3, 3, 4))
    settings = {"stride": 2, "dilation": dilation, "pool": pool}
    settings["padding"] = ((1, 0), (0, 2))
    actual = value_and_grads(lambda *a: banded_conv(*a, **settings), (x, kernel))
    expected = value_and_grads(lambda *a: lax_conv(*a, **settings), (x, kernel))
    assert_close(actual, expected, 1e-5)


# A kernel with few and one with many numbers in a row of a tile. The batch of seven is
# cut in parts of three, three and one, and in parts of one.
@pytest.mark.parametrize("numbers", [1, 3])
@pytest.mark.parametrize(("channels", "pool"), [(3, 2), (64, 1)])
def test_parts_of_a_batch_equal_the_whole(monkeypatch, channels, pool, numbers):
    """Value, gradients and a derivative along a direction."""
    x, kernel, _ = arrays((7, 9, 8, channels), (3, 3, channels, 40))
    settings = {"stride": 1, "dilation": 1, "pool": pool}
    settings["padding"] = ((1, 0), (0, 2))

    def convolve(x, kernel):
        return banded_conv(x, kernel, **settings)

    def along(x, kernel):
        return jax.jvp(convolve, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))[1]

    def has_loop():
        return "scan" in str(jax.make_jaxpr(lambda *a: convolve(*a))(x, kernel))

    expected = value_and_grads(convolve, (x, kernel)), compiled(along)(x, kernel)
    assert not has_loop()
    monkeypatch.setattr(_formulations, "_parts", lambda *_: (-(-7 // numbers), numbers))
    actual = value_and_grads(convolve, (x, kernel)), compiled(along)(x, kernel)
    assert has_loop()
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5, 31, 64])
@pytest.mark.parametrize("numbers", [0, 1, 2**20, 2**22 + 1, 2**23, 2**25])
def test_parts_cover_the_batch_and_are_small(batch, numbers):
    """No image is left out, no part is empty, and none is larger than it may be."""
    num_parts, per_part = _formulations._parts(batch, numbers)
    assert (num_parts - 1) * per_part < batch <= num_parts * per_part
    assert per_part == 1 or per_part * numbers <= _formulations._PART_NUMBERS


def test_memory_of_a_large_convolution():
    """The tiles are not kept for the backward pass: far less than their size."""
    x = jax.ShapeDtypeStruct((16, 128, 128, 16), np.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 64), np.float32)

    def loss(kernel, x):
        out = conv2d(x, kernel, padding="SAME")
        return jnp.sum(conv2d(jnp.tanh(out), jnp.ones([3, 3, 64, 1])) ** 2)

    memory = jax.jit(jax.grad(loss)).lower(kernel, x).compile().memory_analysis()
    activations = 4 * 16 * 128 * 128 * 64
    assert memory.temp_size_in_bytes < 4 * activations


def zero_stuffed(kernel, dilation):
    """The same kernel with zeros between its rows and columns."""
    return lax.pad(
        kernel,
        np.zeros((), kernel.dtype),
        [(0, 0, dilation - 1), (0, 0, dilation - 1), (0, 0, 0), (0, 0, 0)],
    )


# Features few, in wide tiles, and many, in tiles of one column.
@pytest.mark.parametrize("features", [3, 90])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 2), (1, 4), (2, 3)])
def test_dilated_kernel_is_a_zero_stuffed_one(features, stride, dilation):
    """Value and gradients, also where the image is not larger than the kernel."""

    def dilated(x, kernel):
        return conv2d(x, kernel, stride=stride, dilation=dilation, padding="SAME")

    def stuffed(x, kernel):
        kernel = zero_stuffed(kernel, dilation)
        return reference_conv(x, kernel, 0.0, stride, "SAME")

    with jax.enable_x64(True):
        args = arrays((2, 7, 11, 4), (3, 3, 4, features), np.float64)[:2]
        actual, expected = (value_and_grads(f, args) for f in (dilated, stuffed))
        assert_close(actual, expected, 1e-12)


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
        x = normal((2, 9, 7, 3), np.float64)
        actual = value_and_grads(
            lambda x: max_pool(x, window, stride=stride, padding=padding), (x,)
        )
        expected = value_and_grads(
            lambda x: reference_pool(x, window, stride, padding), (x,)
        )
        assert_close(actual, expected, 1e-12)


def test_first_of_equal_maxima_gets_the_gradient():
    """Overlapping windows on an image of few values: `reduce_window`'s convention."""
    x = np.round(normal((2, 9, 9, 2)))
    pads = ((1, 0), (0, 1))
    actual = value_and_grads(lambda x: sliced_max(x, 3, 2, pads), (x,))
    expected = value_and_grads(lambda x: window_max(x, 3, 2, pads), (x,))
    assert_close(actual, expected, 1e-6)

    constant, identity = np.ones([1, 4, 4, 1]), np.ones([1, 1, 1, 1])
    first = np.zeros([1, 4, 4, 1], np.float32)
    first[:, ::2, ::2] = 1
    for pooled in (max_pool, lambda x: conv2d_max_pool(x, identity)):
        gradient = compiled(jax.grad(lambda x, f=pooled: f(x).sum()))(constant)
        assert_close(gradient, first, 0)


def test_nan_stays_visible():
    """A window with a NaN anywhere in it has a NaN as its maximum."""
    identity = jnp.ones([1, 1, 1, 1])
    both = compiled(lambda x: (max_pool(x), conv2d_max_pool(x, identity)))
    for i, j in np.ndindex(2, 2):
        x = np.ones([1, 4, 4, 1], np.float32)
        x[0, i, j, 0] = np.nan
        for out in both(x):
            expected = [[True, False], [False, False]]
            np.testing.assert_array_equal(np.isnan(out)[0, :, :, 0], expected)


def test_relu_commutes_with_max_pool():
    """relu(pool(conv)) = pool(relu(conv))."""
    args = arrays((2, 10, 10, 2), (3, 3, 2, 4))
    after = compiled(lambda *a: jax.nn.relu(conv2d_max_pool(*a)))(*args)
    before = compiled(lambda *a: max_pool(jax.nn.relu(conv2d(*a))))(*args)
    np.testing.assert_allclose(after, before, atol=1e-5)


def pooled(*args):
    return layer(*args, pool=2)


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


# Few channels are laid side by side, many are summed and recomputed.
@pytest.mark.parametrize("channels", [2, 64])
class TestTransforms:
    def args(self, channels, seed=0):
        return arrays((2, 8, 8, channels), (3, 3, channels, 6), seed=seed)

    def test_vmap_over_seeds(self, channels):
        """Batched images, kernels and biases, in value and pullback."""
        seeds = [self.args(channels, seed) for seed in range(3)]

        def both(args):
            value, pullback = jax.vjp(pooled, *args)
            return value, pullback(value)

        actual = compiled(jax.vmap(both))(stack(seeds))
        one = compiled(both)
        assert_close(actual, stack([one(args) for args in seeds]), 1e-5)

    def test_vmap_uses_no_grouped_convolution(self, channels):
        """Batched kernels are batched matmuls."""
        args = stack([self.args(channels, seed) for seed in range(3)])
        traced = jax.jit(jax.vmap(pooled)).trace(*args)
        text = traced.lower(lowering_platforms=("cpu",)).as_text()
        assert "stablehlo.convolution" not in text

    def test_vmap_of_the_pullback(self, channels):
        args = self.args(channels)
        rows = normal((3, 2, 3, 3, 6))

        def unrolled(args):
            _, pullback = jax.vjp(pooled, *args)
            return stack([pullback(row) for row in rows])

        def batched(args):
            return jax.vmap(jax.vjp(pooled, *args)[1])(rows)

        assert_close(compiled(batched)(args), compiled(unrolled)(args), 1e-5)

    def test_forward_mode_and_transposed_pullback(self, channels):
        """Both give J v, as forward mode through `lax.conv` does."""
        args, tangent = tuple(self.args(channels)), tuple(self.args(channels, 1))

        def forward(function):
            return compiled(lambda a, v: jax.jvp(function, a, v)[1])(args, tangent)

        @compiled
        def transposed(args, tangent):
            value, pullback = jax.vjp(pooled, *args)
            return jax.linear_transpose(pullback, value)(tangent)[0]

        expected = forward(lambda *a: reference(*a, pool=2))
        assert_close(forward(pooled), expected, 1e-5)
        assert_close(transposed(args, tangent), expected, 1e-5)

    def test_scan_and_cond(self, channels):
        args = self.args(channels)
        grads = jax.grad(lambda args: jnp.sum(pooled(*args) ** 2))
        expected = compiled(grads)(args)

        @compiled
        def scanned(args):
            _, rows = lax.scan(lambda c, _: (c, grads(c)), args, None, length=2)
            return jax.tree.map(lambda row: row[1], rows)

        branch = compiled(lambda go, a: lax.cond(go, grads, lambda a: a, a))
        assert_close(scanned(args), expected, 1e-5)
        assert_close(branch(True, args), expected, 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_in_float32(dtype):
    """The result is the float32 result of the same numbers, rounded once."""
    args = arrays((2, 8, 8, 64), (3, 3, 64, 6), dtype)
    run = compiled(conv2d)
    expected = run(*(a.astype(jnp.float32) for a in args)).astype(dtype)
    assert_close(run(*args), expected, 1e-2)
    assert all(g.dtype == dtype for g in value_and_grads(conv2d_max_pool, args))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_nothing_is_promoted_implicitly(dtype):
    """Layers and their gradients exist where promotion is an error."""
    x, kernel, bias = arrays((2, 8, 8, 3), (3, 3, 3, 4), dtype)

    def loss(*args):
        return max_pool(BatchNorm(4)(conv2d_max_pool(*args))).sum()

    with jax.numpy_dtype_promotion("strict"):
        grads = jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), x, kernel, bias)
    assert {grad.dtype for grad in grads} == {jnp.dtype(dtype)}


def test_conv_module():
    """A module holds its parameters and calls the functions."""
    module = Conv(3, 4, 3, stride=2, padding=[(1, 1), (1, 1)], pool=2, rngs=nnx.Rngs(0))
    x = normal((2, 9, 9, 3))
    expected = reference(x, module.kernel[...], 0.0, 2, [(1, 1), (1, 1)], 2)
    np.testing.assert_allclose(compiled(module)(x), expected, atol=1e-5)
    bare = Conv(3, 4, 3, use_bias=False, rngs=nnx.Rngs(0))
    assert bare.bias is None
    assert [leaf.shape for leaf in jax.tree.leaves(nnx.state(bare))] == [(3, 3, 3, 4)]
    hash(nnx.graphdef(module))


IMAGE = np.zeros([2, 8, 8, 3], np.float32)
KERNEL = np.zeros([3, 3, 3, 4], np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: conv2d(IMAGE[0], KERNEL), r"`x` must be .*got float32 of shape \(8"),
        (lambda: conv2d(IMAGE.astype(np.int32), KERNEL), "`x` must be .*got int32"),
        (lambda: conv2d(IMAGE, KERNEL[:, :, :2]), r"3 channels.*got shape \(3, 3, 2"),
        (lambda: conv2d(IMAGE, KERNEL[0]), r"`kernel` must .*got shape \(3, 3, 4\)"),
        (lambda: conv2d(IMAGE, KERNEL, np.zeros([3])), r"`bias` must .*got .*\(3,\)"),
        (lambda: conv2d(IMAGE[:, :2], KERNEL), "`kernel` must not be .*of 2 x 8"),
        (lambda: conv2d(IMAGE, KERNEL, dilation=4), "`kernel` must not be .*9 x 9"),
        (lambda: conv2d(IMAGE, KERNEL, stride=0), "`stride` must be .*got 0"),
        (lambda: conv2d(IMAGE, KERNEL, dilation=0), "`dilation` must be .*got 0"),
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
