"""The LeNets are the networks of the papers, and each part reads its own leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from mtlopt.models import LeNet, LeNet5
from tests.models.networks import abstract, compiled, normal, random_params, split

PARAMS, STATS, MERGE = split(abstract(LeNet))
PARAMS = random_params(PARAMS)
IMAGES = normal((4, 28, 28, 1))


def encode(params, *args):
    return MERGE(params, STATS).encode(*args)


def every_third(size):
    return np.arange(size) % 3 == 0


def without_units(encoder, masks):
    """Parameters whose masked units and channels are zero behind the ReLU."""
    return {
        layer: jax.tree.map(lambda leaf, mask=masks[layer]: leaf * mask, leaves)
        for layer, leaves in encoder.items()
    }


def reference_encode(params, x):
    """The encoder written with `lax.conv` and `reduce_window`."""
    encoder = params["encoder"]
    for name in ("conv1", "conv2"):
        dimensions = ("NHWC", "HWIO", "NHWC")
        kernel, bias = encoder[name]["kernel"], encoder[name]["bias"]
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=dimensions
        )
        window = (1, 2, 2, 1)
        x = lax.reduce_window(x + bias, -jnp.inf, lax.max, window, window, "VALID")
        x = jax.nn.relu(x)
    x = x.reshape(x.shape[0], -1)
    return jax.nn.relu(x @ encoder["dense"]["kernel"] + encoder["dense"]["bias"])


def test_parameter_counts():
    """260 + 5,020 + 16,050 and 510 for each head; the paths are readable."""
    sizes = jax.tree.map(jnp.size, PARAMS)
    assert sizes == {
        "encoder": {
            "conv1": {"kernel": 250, "bias": 10},
            "conv2": {"kernel": 5000, "bias": 20},
            "dense": {"kernel": 16000, "bias": 50},
        },
        "heads": {
            "left": {"kernel": 500, "bias": 10},
            "right": {"kernel": 500, "bias": 10},
        },
    }
    assert sum(jax.tree.leaves(sizes)) == 22350


def test_any_tasks_and_classes():
    params, stats, merge = split(abstract(functools.partial(LeNet, ("a", "b", "c"), 7)))
    model = merge(random_params(params), stats)
    logits = compiled(model)(IMAGES)
    assert {task: out.shape for task, out in logits.items()} == dict.fromkeys(
        "abc", (4, 7)
    )
    z = compiled(model.encode)(IMAGES)
    assert z.shape == (4, 50)
    np.testing.assert_allclose(model.heads["b"](z), logits["b"], atol=1e-6)


def test_masked_encode_and_gradient_equal_the_obvious_form():
    """Masked units and channels are as if whatever leads into them were zero."""
    masks = {
        "conv1": every_third(10),
        "conv2": every_third(20),
        "dense": every_third(50),
    }

    def narrow(params, x):
        encoder = without_units(params["encoder"], masks)
        return reference_encode({**params, "encoder": encoder}, x)

    def both(function):
        def value_and_grads(params):
            z, pullback = jax.vjp(lambda p: function(p, IMAGES), params)
            return z, pullback(normal((4, 50)))

        return compiled(value_and_grads)(PARAMS)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        both(lambda params, x: encode(params, x, masks)),
        both(narrow),
    )


def test_wrong_masks_are_named():
    with pytest.raises(
        ValueError, match=r"`masks\['conv1'\]` .*\(10,\).*got \(2, 10\)"
    ):
        jax.eval_shape(encode, PARAMS, IMAGES, {"conv1": np.ones((2, 10), bool)})


def test_transposed_pullback_is_the_forward_product():
    """`jax.linear_transpose(pullback)` and `jax.jvp` give the obvious form's J v."""
    tangent = jax.tree.map(lambda p: normal(p.shape), PARAMS)

    def forward(function):
        def product(params, tangent):
            return jax.jvp(lambda p: function(p, IMAGES), (params,), (tangent,))[1]

        return compiled(product)(PARAMS, tangent)

    @compiled
    def transposed(params, tangent):
        z, pullback = jax.vjp(lambda p: encode(p, IMAGES), params)
        return jax.linear_transpose(pullback, z)((tangent,))[0]

    expected = forward(reference_encode)
    for actual in (forward(encode), transposed(PARAMS, tangent)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def used_paths(function, *args):
    """Paths of the leaves of `args[0]` that the result depends on."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    needed = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(v for v in equation.invars if not hasattr(v, "val"))
    paths = jax.tree_util.tree_leaves_with_path(args[0])
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, _), var in zip(paths, jaxpr.invars, strict=False)
        if var in needed
    }


def test_each_part_reads_only_its_own_leaves():
    """The encoder reads no head, and a head reads only itself."""
    read = used_paths(encode, PARAMS, IMAGES)
    assert read == {
        f"encoder/{layer}/{leaf}"
        for layer in ("conv1", "conv2", "dense")
        for leaf in ("kernel", "bias")
    }
    for task in PARAMS["heads"]:
        head = lambda params, z, task=task: MERGE(params, STATS).heads[task](z)  # noqa: E731
        read = used_paths(head, PARAMS, jnp.zeros([4, 50]))
        assert read == {f"heads/{task}/kernel", f"heads/{task}/bias"}


def test_vmap_over_seeds():
    """Stacked initial parameters train side by side."""

    def loss(params, x):
        return jnp.sum(encode(params, x) ** 2)

    stacked = jax.tree.map(lambda p: normal((3, *p.shape)) / 10, PARAMS)
    grads = compiled(jax.vmap(jax.grad(loss), in_axes=(0, None)))(stacked, IMAGES)
    one = compiled(jax.grad(loss))(jax.tree.map(lambda p: p[1], stacked), IMAGES)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-2),
        grads,
        one,
    )


def test_wrong_images_are_named():
    with pytest.raises(ValueError, match=r"`x` must have shape .*got .*\(2, 32, 32"):
        encode(PARAMS, jnp.zeros([2, 32, 32, 1]))


def reference_encode_lenet5(encoder, x):
    """LeNet-5's encoder written with `lax.conv` and `reduce_window`."""
    for name, padding in (("conv1", ((2, 2), (2, 2))), ("conv2", "VALID")):
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            x, encoder[name]["kernel"], (1, 1), padding, dimension_numbers=dimensions
        )
        window = (1, 2, 2, 1)
        x = x + encoder[name]["bias"]
        x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
        x = jax.nn.relu(x)
    x = x.reshape(x.shape[0], -1)
    for name in ("dense1", "dense2"):
        x = jax.nn.relu(x @ encoder[name]["kernel"] + encoder[name]["bias"])
    return x


def test_lenet5():
    """61,706 parameters with one head, layer by layer, and the layers' order."""
    model = nnx.eval_shape(lambda: LeNet5(("left", "right"), rngs=nnx.Rngs(0)))
    abstract, stats, merge = split(model)
    sizes = jax.tree.map(lambda leaf: leaf.size, abstract)
    encoder = {name: sum(layer.values()) for name, layer in sizes["encoder"].items()}
    expected = {"conv1": 156, "conv2": 2416, "dense1": 48120, "dense2": 10164}
    assert encoder == expected
    assert {task: sum(head.values()) for task, head in sizes["heads"].items()} == {
        "left": 850,
        "right": 850,
    }
    params = jax.tree.map(lambda p: normal(p.shape) / 10, abstract)
    forward = compiled(lambda params, *args: merge(params, stats).encode(*args))
    reference = compiled(reference_encode_lenet5)
    layers = {"conv1": 6, "conv2": 16, "dense1": 120, "dense2": 84}
    masks = {layer: every_third(size) for layer, size in layers.items()}
    close = {"rtol": 1e-4, "atol": 1e-4}
    z = forward(params, IMAGES, jax.tree.map(np.ones_like, masks))
    np.testing.assert_allclose(z, reference(params["encoder"], IMAGES), **close)
    assert merge(params, stats).heads["right"](z).shape == (4, 10)
    z = forward(params, IMAGES, masks)
    narrow = without_units(params["encoder"], masks)
    np.testing.assert_allclose(z, reference(narrow, IMAGES), **close)
    with pytest.raises(ValueError, match=r"`x` must have shape .*got .*\(2, 32, 32"):
        merge(params, stats).encode(jnp.zeros([2, 32, 32, 1]))
