"""Operations of all kinds of rows: one Jacobian, whatever exists of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from tests.problems import (
    first,
    make_batches,
    make_forty_heads,
    make_oracle,
    make_params,
)

OPTIONS = {
    "unmade": {},
    "made": {},
    "kept": {},
    "streamed": {"streaming": True},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_operations_agree_with_the_jacobian(kind, float64):
    """<g_i, d>, J^T w and J J^T w, for scaled losses and an absent task."""
    params, args = make_params(), first(make_batches())
    oracle = make_oracle(**OPTIONS[kind])
    weights = jnp.array([0.3, -1.2, 0.5])

    @jax.jit
    def found(params):
        grads = oracle(params, *args, present=[True, True, False])
        grads = grads.scale_by(jnp.array([2.0, 0.5, 3.0]))
        rows = grads.keep_rows().rows() if kind == "kept" else grads.rows()
        if kind == "made":
            rows.norms()
        direction = jax.tree.leaves(params["encoder"])
        return (
            rows.combine(weights),
            rows.mix(weights),
            rows.along(direction),
            rows.product(weights),
        )

    rows = jax.jit(make_oracle().__call__)(params, *args).jacobian()["encoder"]
    matrix = np.concatenate([leaf.reshape(3, -1) for leaf in jax.tree.leaves(rows)], 1)
    matrix *= np.array([[2.0], [0.5], [0.0]])
    vector = np.concatenate(
        [leaf.ravel() for leaf in jax.tree.leaves(params["encoder"])]
    )
    combined, mixed, along, product = found(params)
    for leaves in (combined, mixed):
        flat = np.concatenate([leaf.ravel() for leaf in leaves])
        np.testing.assert_allclose(flat, weights @ matrix, rtol=1e-12)
    np.testing.assert_allclose(along, matrix @ vector, rtol=1e-12)
    np.testing.assert_allclose(product, matrix @ (matrix.T @ weights), rtol=1e-12)


def test_product_of_latent_rows(float64):
    """It is that of the latent Gramian, which several microbatches only sum."""
    params, x = {"w": jnp.ones((3, 2))}, jnp.arange(12.0).reshape(4, 3)
    weights = jnp.array([0.3, -1.2])
    expected = None
    for microbatches in (1, 2):
        oracle = mtlopt.task_grad(
            {
                "a": lambda params, z, x: jnp.mean(z[:, 0] ** 2),
                "b": lambda params, z, x: jnp.mean(jnp.sin(z[:, 1] - z[:, 0])),
            },
            "shared",
            encode=lambda params, x: x @ params["w"],
            microbatches=microbatches,
        )
        rows = oracle(params, x).in_latent_space().rows()
        expected = rows.gramian() @ weights if expected is None else expected
        np.testing.assert_allclose(rows.product(weights), expected, rtol=1e-12)


def test_a_product_is_a_pullback_and_a_pushforward():
    """In operations of XLA at forty tasks: no row is made."""
    params, _, oracle, x = make_forty_heads()
    flops = {}
    for name, read in {
        "plain": lambda grads: grads.total(),
        "product": lambda grads: grads.rows().product(jnp.ones(40)),
        "gramian": lambda grads: grads.rows().gramian(),
    }.items():
        step = jax.jit(lambda params, read=read: read(oracle(params, x)))
        flops[name] = step.lower(params).compile().cost_analysis()["flops"]
    assert flops["product"] < 2.2 * flops["plain"]
