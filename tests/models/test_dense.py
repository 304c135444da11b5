"""The dense layer's product equals `lax.dot_general` under every transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.ad_checkpoint import print_saved_residuals

from mtlopt.models import dense_dot_general
from tests.marks import cpu_only
from tests.models.networks import compiled

# Shapes of `x` and the kernel, and how many axes are contracted: sizes that alias and
# such that do not, an odd number of rows, few of them, a sequence, several axes.
CASES = [
    ((64, 512), (512, 96), 1),
    ((64, 96), (96, 512), 1),
    ((65, 512), (512, 96), 1),
    ((64, 100), (100, 70), 1),
    ((8, 512), (512, 4), 1),
    ((4, 16, 512), (512, 4, 16), 1),
    ((4, 16, 8, 64), (8, 64, 80), 2),
    ((512,), (512, 64), 1),
    ((4, 0), (0, 3), 1),
]


def normal(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def numbers(x, num):
    return ((tuple(range(x.ndim - num, x.ndim)), tuple(range(num))), ((), ()))


def everything(product):
    """Value, both gradients, a derivative along a direction and a Hessian product."""

    def compute(x, kernel):
        def value(x, kernel):
            return jnp.tanh(product(x, kernel))

        def loss(x, kernel):
            return jnp.sum(value(x, kernel) ** 2)

        out, pull = jax.vjp(value, x, kernel)
        along = (jnp.cos(x), jnp.sin(kernel))
        pushed = jax.jvp(value, (x, kernel), along)[1]
        push = jax.linear_transpose(pull, out)
        hessian = jax.jvp(jax.grad(loss, (0, 1)), (x, kernel), along)[1]
        rows = jax.vmap(pull)(jnp.stack([out, 2 * out]))
        return out, pull(out), pushed, push(along), hessian, rows

    return compiled(compute)


@pytest.mark.parametrize(("x", "kernel", "num"), CASES)
def test_equals_lax(x, kernel, num):
    """In every derivative, to rounding."""
    with jax.enable_x64(True):
        x, kernel = normal(x, 0), normal(kernel, 1) / 20
        dimensions = numbers(x, num)
        actual = everything(lambda x, k: dense_dot_general(x, k, dimensions))(x, kernel)
        expected = everything(lambda x, k: lax.dot_general(x, k, dimensions))(x, kernel)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
            actual,
            expected,
        )


X = jnp.asarray(np.ones([256, 512], np.float32))
KERNEL = jnp.asarray(np.ones([512, 512], np.float32))


def kernel_gradient(product):
    return jax.grad(lambda k: jnp.sum(product(X, k, numbers(X, 1)) ** 2))


def along_kernel(product):
    return lambda k: jax.jvp(lambda k: product(X, k, numbers(X, 1)), (k,), (k,))[1]


def along_x(product):
    return lambda k: jax.jvp(lambda x: product(x, k, numbers(X, 1)), (X,), (X,))[1]


@pytest.mark.parametrize("derivative", [kernel_gradient, along_kernel, along_x])
def test_costs_what_the_plain_product_costs(derivative):
    """XLA counts the same products: what does not depend on anything is left out."""

    def flops(product):
        program = jax.jit(derivative(product)).lower(KERNEL).compile()
        return program.cost_analysis()["flops"]

    assert flops(dense_dot_general) == pytest.approx(flops(lax.dot_general), rel=2e-2)


@cpu_only
def test_gradient_is_computed_from_a_copy():
    """XLA has not folded it into the product: it takes memory."""

    def temporary(product):
        def loss(kernel, x):
            return jnp.sum(product(x, kernel, numbers(x, 1)) ** 2)

        program = jax.jit(jax.grad(loss)).lower(KERNEL, X).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(dense_dot_general) >= temporary(lax.dot_general) + X.nbytes


def test_checkpoint_policies_know_the_product(capsys):
    """As many products are saved as of `lax.dot_general`."""

    def num_saved(product):
        def layers(x):
            for _ in range(3):
                x = jnp.tanh(product(x, KERNEL, numbers(x, 1)))
            return jnp.sum(x)

        policy = jax.checkpoint_policies.dots_saveable
        print_saved_residuals(jax.checkpoint(layers, policy=policy), X)
        return len(capsys.readouterr().out.splitlines())

    assert num_saved(dense_dot_general) == num_saved(lax.dot_general) >= 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_of_the_output(dtype):
    """That of the operands, in value and gradient."""
    x, kernel = jnp.ones([64, 512], dtype), jnp.ones([512, 64], dtype) / 512

    def value(kernel):
        return dense_dot_general(x, kernel, numbers(x, 1))

    out, pull = jax.vjp(value, kernel)
    assert out.dtype == dtype
    assert pull(out)[0].dtype == dtype
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0)


def test_other_settings_are_passed_on():
    """A wider output is what was asked for."""
    x, kernel = jnp.ones([64, 512], jnp.bfloat16), jnp.ones([512, 64], jnp.bfloat16)
    out = dense_dot_general(
        x, kernel, numbers(x, 1), preferred_element_type=jnp.float32
    )
    assert out.dtype == jnp.float32


def test_layers_of_flax_take_it():
    """And compute what they compute without it."""
    x = normal([4, 16, 512], 0).astype(jnp.float32)
    for make in (
        lambda **kw: nnx.Linear(512, 64, rngs=nnx.Rngs(0), **kw),
        lambda **kw: nnx.LinearGeneral(512, (4, 16), rngs=nnx.Rngs(0), **kw),
    ):
        expected, actual = make()(x), make(dot_general=dense_dot_general)(x)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dimensions",
    [(((0,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((1,), (0,)), ((0,), (1,)))],
)
def test_other_contractions_are_refused(dimensions):
    with pytest.raises(ValueError, match="`dimension_numbers` must contract the last"):
        dense_dot_general(jnp.ones([8, 8]), jnp.ones([8, 8]), dimensions)
