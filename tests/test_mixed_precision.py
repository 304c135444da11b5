"""Networks that compute in half precision, with float32 parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import METHODS
from tests.problems import (
    LABELS,
    QUICK,
    ROUTES,
    TASKS,
    first,
    make_batches,
    make_params,
)

HALVES = [jnp.bfloat16, jnp.float16]
NAMES = [*ROUTES, "nash_mtl"]  # and one of degree 0
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), make_params())
X, Y, _ = [jnp.asarray(leaf, jnp.float32) for leaf in first(make_batches())]
halves = pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: dtype.__name__)


def make_oracle(dtype):
    """The toy problem in `dtype` up to the predictions, and a factor of the losses."""

    def encode(params, factor):
        weight, bias = (params["encoder"][name].astype(dtype) for name in ("w", "b"))
        return jnp.tanh(X.astype(dtype) @ weight + bias)

    def make_loss(index, task):
        def loss(params, z, factor):
            head = jax.tree.map(lambda leaf: leaf.astype(dtype), params["heads"][task])
            predicted = (z @ head["w"] + head["b"]).astype(jnp.float32)
            return factor * jnp.mean((predicted - Y[:, index]) ** 2)

        return loss

    losses = {task: make_loss(index, task) for index, task in enumerate(TASKS)}
    return mtlopt.task_grad(losses, LABELS, encode=encode)


@functools.cache
def compiled(dtype):
    """First updates of the methods, one program."""
    oracle = make_oracle(dtype)
    transforms = {name: METHODS[name].make(3, labels=LABELS) for name in NAMES}

    def run(params, factor):
        grads = oracle(params, factor)
        # What a weighting reads has no factor.
        grads = dataclasses.replace(grads, losses=grads.losses / factor)
        return {
            name: tx.update(grads, tx.init(params), params)[0]
            for name, tx in transforms.items()
        }

    return jax.jit(run, compiler_options=QUICK)


def updates(dtype, factor=1.0):
    return jax.device_get(compiled(dtype)(PARAMS, jnp.float32(factor)))


def error(actual, expected):
    """Of shared leaves and of heads, relative to the update's length."""

    def part(name):
        left, right = (
            np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree[name])])
            for tree in (actual, expected)
        )
        return np.linalg.norm(left - right) / np.linalg.norm(right)

    return max(part("encoder"), part("heads"))


@halves
def test_what_methods_compute_with_is_float32(dtype):
    """Losses, scales, and Gramians in both spaces, although the latent is not."""

    def look(params):
        grads = make_oracle(dtype)(params, 1.0)
        gramians = [
            grads.rows().gramian(),
            grads.in_latent_space().rows().gramian(),
        ]
        return grads.z, (grads.losses, grads.loss_scales, gramians)

    z, others = jax.eval_shape(look, PARAMS)
    assert z.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(others)} == {jnp.dtype("float32")}


@pytest.mark.slow
@halves
def test_updates_are_like_those_of_a_float32_network(dtype):
    """In the dtype of the parameters, and as near as the network's rounding."""
    expected, found = updates(jnp.float32), updates(dtype)
    for name, update in found.items():
        assert {leaf.dtype for leaf in jax.tree.leaves(update)} == {np.dtype("float32")}
        assert error(update, expected[name]) < 4 * jnp.finfo(dtype).eps, name


@pytest.mark.slow
def test_a_loss_scale_keeps_small_gradients_and_comes_out_by_the_degree():
    """Float16: heads are multiplied by it, shared leaves by its power."""
    small, scale = 1e-6, 2.0**14
    expected = updates(jnp.float32, small)
    lost, found = updates(jnp.float16, small), updates(jnp.float16, small * scale)
    for name, update in found.items():
        degree = METHODS[name].degree
        if degree is None:
            continue
        factors = {"encoder": scale**degree, "heads": scale}
        unscaled = {
            part: jax.tree.map(lambda leaf, f=factor: leaf / f, update[part])
            for part, factor in factors.items()
        }
        assert error(unscaled, expected[name]) < 8 * jnp.finfo(jnp.float16).eps, name
        assert error(lost[name], expected[name]) > 0.01, name
