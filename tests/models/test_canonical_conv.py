"""The convolution with fast derivatives is `lax.conv`, and so are its derivatives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mtlopt.models import _formulations, conv2d, conv2d_max_pool
from mtlopt.models._canonical_conv import canonical_conv
from tests.models.networks import compiled, normal


def lax_conv(x, kernel, *, stride, dilation, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def assert_close(actual, expected, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


# Image, kernel, stride, dilation, padding: strides that leave pixels out, dilation,
# more zeros than a kernel reaches over, none, one row.
CASES = [
    ((2, 7, 6, 3), (3, 3, 3, 4), 1, 1, ((1, 1), (1, 1))),
    ((2, 8, 7, 3), (3, 3, 3, 4), 2, 1, ((1, 1), (0, 1))),
    ((2, 9, 8, 2), (2, 3, 2, 5), 3, 2, ((0, 0), (2, 0))),
    ((2, 7, 6, 3), (3, 2, 3, 4), 1, 2, ((5, 4), (3, 6))),
    ((3, 1, 9, 2), (1, 4, 2, 3), 2, 1, ((0, 0), (1, 2))),
]


@pytest.mark.parametrize(("image", "kernel", "stride", "dilation", "padding"), CASES)
def test_every_derivative_is_that_of_lax_conv(image, kernel, stride, dilation, padding):
    """Value, both gradients, along a direction, and the second in either order."""
    settings = {"stride": stride, "dilation": dilation, "padding": padding}

    def derivatives(convolve):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel, **settings)))

        def all_of_them(args, tangents):
            gradient = jax.grad(loss, (0, 1))
            return (
                jax.jvp(lambda *a: convolve(*a, **settings), args, tangents),
                gradient(*args),
                jax.jvp(gradient, args, tangents)[1],
                jax.grad(lambda *a: jax.jvp(loss, a, tangents)[1], (0, 1))(*args),
            )

        return compiled(all_of_them)(args, tangents)

    with jax.enable_x64(True):
        args, tangents = (
            (normal(image, seed, np.float64), normal(kernel, seed + 1, np.float64))
            for seed in (0, 2)
        )
        assert_close(derivatives(canonical_conv), derivatives(lax_conv))


SETTINGS = {"stride": 2, "dilation": 1, "padding": ((1, 0), (1, 1))}


@pytest.mark.parametrize("axes", [(1, None), (None, 2), (0, 4), (-1, 0)])
def test_vmap(axes):
    """Over images, kernels or both, at any axis: as one after the other."""
    x, kernel = normal((2, 5, 6, 3)), normal((3, 3, 3, 4), 1)
    args = [
        array if axis is None else jnp.stack([array, jnp.cos(array), -array], axis)
        for array, axis in zip((x, kernel), axes, strict=True)
    ]

    def pullback(x, kernel):
        out, pull = jax.vjp(lambda *a: canonical_conv(*a, **SETTINGS), x, kernel)
        return out, *pull(jnp.cos(out))

    def each(*args):
        pairs = [
            [
                array if axis is None else jnp.take(array, i, axis)
                for array, axis in zip(args, axes, strict=True)
            ]
            for i in range(3)
        ]
        outs = [pullback(*pair) for pair in pairs]
        return jax.tree.map(lambda *rows: jnp.stack(rows), *outs)

    actual = compiled(jax.vmap(pullback, axes))(*args)
    assert_close(actual, compiled(each)(*args), 1e-5)


def test_vmap_of_the_pullback():
    """Of one batch, for several tasks."""
    x, kernel = normal((2, 5, 6, 3)), normal((3, 3, 3, 4), 1)
    out, pull = jax.vjp(lambda *a: canonical_conv(*a, **SETTINGS), x, kernel)
    rows = normal((3, *out.shape), 2)
    expected = jax.tree.map(lambda *a: jnp.stack(a), *[pull(row) for row in rows])
    assert_close(compiled(jax.vmap(pull))(rows), expected, 1e-5)


def wide_loss(x, kernel):
    """Convolutions with a stride, and without."""
    out = jnp.tanh(conv2d(x, kernel, padding="SAME"))
    return jnp.sum(conv2d(out, kernel, stride=2, padding="SAME") ** 2)


WIDE = np.ones((2, 6, 6, 8), np.float32), np.ones((3, 3, 8, 8), np.float32)


def lowered(function, *args):
    traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=("cpu",)).as_text()


def gradients(*args):
    return jax.grad(wide_loss, (0, 1))(*args)


@pytest.mark.skipif(jax.device_count() > 1, reason="of one device")
@pytest.mark.parametrize(
    ("function", "number"),
    [
        (gradients, 2 + 4),
        (lambda *a: lax.scan(lambda c, _: (gradients(*c), None), a, length=2)[0], 6),
        (lambda *a: jax.jvp(gradients, a, a)[1], 12),
        (lambda *a: jax.vmap(gradients)(*(jnp.stack([b, b]) for b in a)), 6),
    ],
    ids=["gradient", "scan", "second", "vmap"],
)
def test_all_convolutions_have_the_form_that_is_fast(function, number):
    """Batch first, channels last; none grouped, none of an image with gaps."""
    text = lowered(function, *WIDE)
    forms = re.findall(r"dim_numbers = (.*?), window.*?group_count = (\d)", text)
    assert len(forms) >= number
    assert set(forms) == {("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]", "1")}
    assert not re.search(r"lhs_dilate = \[[^1]", text)
    assert not re.search("feature_group_count = [^1]", text)


@pytest.mark.skipif(jax.device_count() > 1, reason="of one device")
@pytest.mark.parametrize(
    ("image", "kernel", "convolve", "dtype", "canonical"),
    [
        ((2, 6, 6, 8), (3, 3, 8, 8), conv2d, "float32", True),
        ((2, 6, 6, 8), (3, 3, 8, 8), conv2d, "bfloat16", True),
        ((2, 6, 6, 8), (3, 3, 8, 8), conv2d, "float64", False),
        ((2, 6, 6, 8), (1, 1, 8, 8), conv2d, "float32", False),
        ((2, 6, 6, 3), (3, 3, 3, 64), conv2d, "float32", False),
        ((2, 6, 6, 64), (3, 3, 64, 3), conv2d, "float32", False),
        ((2, 8, 8, 10), (5, 5, 10, 20), conv2d_max_pool, "float32", False),
        ((2, 8, 8, 16), (5, 5, 16, 20), conv2d_max_pool, "float32", True),
    ],
)
def test_formulation_is_chosen_by_shape_and_dtype(
    image, kernel, convolve, dtype, canonical
):
    """XLA's for wide layers; the banded matmul for narrow ones, 1 x 1 and float64."""
    with jax.enable_x64(dtype == "float64"):
        text = lowered(convolve, jnp.ones(image, dtype), jnp.ones(kernel, dtype))
    assert ("stablehlo.convolution" in text) == canonical


def test_several_devices_have_plain_jax(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    text = lowered(lambda *a: conv2d(*a), *WIDE)  # not traced before
    assert "stablehlo.convolution" not in text


def test_a_mesh_has_plain_jax():
    """Also one of one device: the kernel's gradient is a sum over its axis."""
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def sharded(function):
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(spec("data"), spec()),
            out_specs=(spec("data"), spec()),
        )

    actual = compiled(sharded(gradients))(*WIDE)
    assert_close(actual, compiled(gradients)(*WIDE), 1e-5)


@pytest.mark.parametrize("pool", [1, 2])
def test_wide_layers_equal_the_banded_matmul(pool):
    x, kernel = normal((2, 9, 8, 16)), normal((3, 3, 16, 17), 1)
    settings = {"stride": 1, "dilation": 1, "padding": ((1, 1), (0, 1)), "pool": pool}

    def both(formulation):
        def value_and_pullback(x, kernel):
            out, pull = jax.vjp(lambda *a: formulation(*a, **settings), x, kernel)
            return out, *pull(jnp.cos(out))

        return compiled(value_and_pullback)(x, kernel)

    actual = both(_formulations.cpu_conv)
    assert_close(actual, both(_formulations.banded_conv), 1e-5)
