"""Weight gradients that are found to be products, and what they are products of."""

import functools
from itertools import pairwise

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from mtlopt.rows.sweep import Sweep
from tests.problems import QUICK

BATCH, SIZES = 3, (4, 7, 6, 5)
RNG = np.random.default_rng(0)


def normal(*shape):
    return np.float32(RNG.normal(size=shape))


X = normal(BATCH, SIZES[0])


def plain(dtype):
    params = [(normal(m, n), np.ones(n, np.float32)) for m, n in pairwise(SIZES)]

    def encode(params):
        x = X.astype(dtype)
        for kernel, bias in params:
            x = jnp.tanh(x @ kernel.astype(dtype) + bias.astype(dtype))
        return x

    return params, encode


def kernel_on_the_left(dtype):
    params, _ = plain(dtype)
    params = [(kernel.T, bias) for kernel, bias in params]

    def one(params, x):
        for kernel, bias in params:
            x = jnp.tanh(kernel.astype(dtype) @ x + bias.astype(dtype))
        return x

    return params, lambda params: jax.vmap(lambda x: one(params, x))(X.astype(dtype))


def in_nnx(dtype):
    @nnx.jit
    def build():
        rngs = nnx.Rngs(0)
        sizes = pairwise(SIZES)
        return nnx.List([nnx.Linear(m, n, dtype=dtype, rngs=rngs) for m, n in sizes])

    graph, params = nnx.split(build())

    def encode(params):
        x = X
        for layer in nnx.merge(graph, params):
            x = jnp.tanh(layer(x))
        return x

    return params, encode


def in_linen(dtype):
    class MLP(linen.Module):
        @linen.compact
        def __call__(self, x):
            for size in SIZES[1:]:
                x = jnp.tanh(linen.Dense(size, dtype=dtype)(x))
            return x

    params = jax.jit(MLP().init)(jax.random.key(0), X)
    return params, lambda params: MLP().apply(params, X)


def in_equinox(dtype):
    @jax.jit
    def build(key):
        sizes = pairwise(SIZES)
        keys = jax.random.split(key, 3)
        return [eqx.nn.Linear(*s, key=k) for k, s in zip(keys, sizes, strict=True)]

    def encode(layers):
        layers = jax.tree.map(lambda leaf: leaf.astype(dtype), layers)

        def one(x):
            for layer in layers:
                x = jnp.tanh(layer(x))
            return x

        return jax.vmap(one)(X.astype(dtype))

    return build(jax.random.key(0)), encode


def in_haiku(dtype):
    def forward(x):
        return hk.nets.MLP(SIZES[1:], activation=jnp.tanh)(x)

    network = hk.without_apply_rng(hk.transform(forward))

    def encode(params):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return network.apply(params, X.astype(dtype))

    return jax.jit(network.init)(jax.random.key(0), X), encode


FRAMEWORKS = (plain, kernel_on_the_left, in_nnx, in_linen, in_equinox, in_haiku)


def read(encode, params, accept=lambda *_: True):
    """The pullback with products undone, as it is, and cotangents of two tasks."""
    leaves, treedef = jax.tree.flatten(params)
    z, pull = jax.vjp(lambda leaves: encode(treedef.unflatten(leaves)), leaves)
    rows = jnp.asarray(normal(2, *z.shape), z.dtype)

    def pull_leaves(cotangent):
        return pull(cotangent[0])[0]

    return Sweep(pull_leaves, [z], accept), pull_leaves, [rows]


def sizes_of(encode, params):
    """Sizes of the products that are found."""
    seen = []

    @jax.make_jaxpr
    def run(params):
        read(encode, params, lambda *sizes: seen.append(sizes))

    run(params)
    return seen


def check(encode, params, tolerance=1e-6):
    """Compares every product with the gradient; returns the leaves of the products."""
    seen = []

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        sweep, pull, rows = read(encode, params)
        found = sweep.keep(rows, "unroll")
        seen.append(sweep.products)
        made = {}
        for i, values in found.items():
            made[i] = values
            if i in sweep.products:
                x, ds = values
                matrices = [jnp.einsum("...rm,...rn->...mn", x, d) for d in ds]
                made[i] = [sweep.products[i].layout.finish(m) for m in matrices]
        return made, [pull([row]) for row in rows[0]]

    made, expected = run(params)
    for task, gradients in enumerate(expected):
        for i, right in enumerate(gradients):
            if i not in made:
                assert not np.any(right)
                continue
            left, right = np.float32(made[i][task]), np.float32(right)
            size = np.max(np.abs(right))
            np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * size)
    return list(seen[0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("make", FRAMEWORKS, ids=lambda make: make.__name__)
def test_every_kernel_is_found(make, dtype):
    """A change of what JAX emits would make rows of them: slower, not wrong."""
    params, encode = make(dtype)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    assert len(kernels) == 3
    found = check(encode, params, 2e-2 if dtype == jnp.bfloat16 else 1e-6)
    undone = [jax.tree.leaves(params)[i].shape for i in found]
    assert undone == [leaf.shape for leaf in kernels]


def test_sizes_are_those_of_the_layer():
    params, encode = plain(jnp.float32)
    assert sizes_of(encode, params) == [(BATCH, m, n) for m, n in pairwise(SIZES)]


def layers(x, kernels, biases):
    def layer(x, params):
        return jnp.tanh(x @ params[0] + params[1]), None

    return layer, x, (kernels, biases)


WIDTH = 5
WIDE = normal(2, 3, WIDTH)  # [batch, sequence, width]
KERNELS = normal(4, WIDTH, WIDTH) / 2
BIASES = np.linspace(-1, 1, 4 * WIDTH, dtype=np.float32).reshape(4, WIDTH)


def scanned(params):
    return jax.lax.scan(*layers(WIDE, *params))[0]


def scanned_and_recomputed(params):
    layer, x, params = layers(WIDE, *params)
    return jax.lax.scan(jax.checkpoint(layer), x, params)[0]


def scanned_with_outputs(params):
    """The cotangents of the layers' outputs enter the loop layer by layer."""

    def layer(x, params):
        x = jnp.tanh(x @ params[0] + params[1])
        return x, x[:, 0]

    last, each = jax.lax.scan(layer, WIDE, params)
    return last + jnp.sum(each, axis=0)[:, None]


def scanned_in_a_scan(params):
    def block(x, params):
        return jax.lax.scan(*layers(x, *params))[0], None

    params = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), params)
    return jax.lax.scan(block, WIDE, params)[0]


def recomputed(params):
    x = WIDE
    for kernel, bias in zip(*params, strict=True):
        x = jax.checkpoint(lambda x, k, b: jnp.tanh(x @ k + b))(x, kernel, bias)
    return x


@pytest.mark.parametrize(
    "encode",
    [scanned, scanned_and_recomputed, scanned_with_outputs, scanned_in_a_scan],
    ids=lambda encode: encode.__name__,
)
def test_layers_of_a_loop_are_found(encode):
    assert len(check(encode, (KERNELS, BIASES))) == 1
    assert sizes_of(encode, (KERNELS, BIASES)) == [(6, WIDTH, WIDTH)]


def test_recomputed_layers_are_found():
    assert len(check(recomputed, (list(KERNELS), list(BIASES)))) == 4


def test_experts_are_products_of_a_batch():
    """One kernel for each of four experts, applied by one contraction."""
    x = normal(4, 3, WIDTH)

    def encode(params):
        return jnp.tanh(jnp.einsum("erm,emn->ern", x, params))

    assert len(check(encode, KERNELS)) == 1


def test_low_rank_adapters_are_found():
    """Both factors, beside a kernel that does not move."""
    down, up = KERNELS[0][:, :2], KERNELS[1][:2]

    def encode(params):
        return jnp.tanh(WIDE @ KERNELS[2] + (WIDE @ params[0]) @ params[1])

    assert len(check(encode, (down, up))) == 2


def test_other_uses_of_a_leaf_are_rows():
    """Tied twice, transformed before its use, looked up, or an elementwise factor."""
    kernel, bias = KERNELS[0], BIASES[0]
    assert len(check(lambda k: jnp.tanh(WIDE @ k) @ k.T, kernel)) == 0
    assert len(check(lambda k: WIDE @ (k * k), kernel)) == 0
    assert len(check(lambda k: k[jnp.array([0, 2, 2])], kernel)) == 0
    assert len(check(lambda b: WIDE * b, bias)) == 0


def test_a_leaf_that_is_not_used_has_no_row():
    assert len(check(lambda k: jnp.tanh(WIDE @ k[0]), (KERNELS[0], KERNELS[1]))) == 1


@jax.custom_jvp
def doubled(x, kernel):
    """A product whose derivative is said to be twice the true one."""
    return x @ kernel


@doubled.defjvp
def _doubled_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    return x @ kernel, 2 * (dx @ kernel + x @ dkernel)


@jax.custom_vjp
def tripled(x, kernel):
    return x @ kernel


tripled.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda saved, d: (3 * d @ saved[1].T, 3 * jnp.einsum("brm,brn->mn", saved[0], d)),
)


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, -1, 1)


@clipped.defjvp
def _clipped_jvp(primals, tangents):
    """The derivative of the identity: gradients pass where values are clipped."""
    return clipped(*primals), tangents[0]


def test_kernels_in_units_of_their_own_are_found():
    """The number may be a result of the forward pass."""

    def encode(params):
        size = jnp.sum(WIDE**2)
        return jnp.tanh(WIDE @ (params[0] / size)) @ (0.3 * params[1].T)

    assert len(check(encode, (KERNELS[0], KERNELS[1]))) == 2

    def looped(params):
        def layer(x, kernel):
            return jnp.tanh(x @ (kernel / 3)), None

        return jax.lax.scan(layer, WIDE, params)[0]

    assert len(check(looped, KERNELS)) == 1


@pytest.mark.parametrize("dense", [doubled, tripled])
def test_rules_of_the_user_hold_around_a_product(dense):
    def encode(params):
        return dense(jnp.tanh(dense(WIDE, params[0])), params[1])

    assert len(check(encode, (KERNELS[0], KERNELS[1]))) == 2


def test_rules_of_the_user_hold_for_an_activation():
    def encode(params):
        return clipped(clipped(3 * WIDE @ params[0]) @ params[1])

    assert len(check(encode, (KERNELS[0], KERNELS[1]))) == 2


@jax.custom_vjp
def watched(x):
    return x


def _watched_bwd(_, d):
    jax.debug.print("{}", jnp.sum(d))
    return (d,)


watched.defvjp(lambda x: (x, None), _watched_bwd)


def test_a_pullback_may_print():
    """In a loop its layers are rows: the factors are not returned without printing."""

    def layer(x, kernel):
        return jnp.tanh(watched(x @ kernel)), None

    assert len(check(lambda kernel: layer(WIDE, kernel)[0], KERNELS[0])) == 1
    assert (
        len(check(lambda kernels: jax.lax.scan(layer, WIDE, kernels)[0], KERNELS)) == 0
    )
