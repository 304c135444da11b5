"""Rows of tasks of which each sample belongs to one, against one gradient a task."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mtlopt
from mtlopt import sample_linearization
from mtlopt.models import LeNet
from mtlopt.rows import leaf_rows, sample_leaves
from mtlopt.rows.leaf_rows import ProductLeaf, RowLeaf
from mtlopt.sample_linearization import SampleLinearization
from tests.marks import slow
from tests.problems import QUICK, assert_close


def dense(rng, *shape):
    return rng.normal(size=shape) / np.sqrt(shape[0])


def mlp(rng, samples):
    """Vectors: dense kernels of which one sample has one position, and biases."""
    params = {
        f"layer{i}": {"w": dense(rng, *shape), "b": rng.normal(size=shape[1])}
        for i, shape in enumerate([(6, 32), (32, 47)])
    }

    def encode(params, x):
        for layer in params.values():
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x

    return params, encode, rng.normal(size=(samples, 6))


def tokens(rng, samples):
    """An embedding, attention and dense kernels on sequences, one of them tied."""
    params = {
        "table": rng.normal(size=(11, 8)),
        "query": dense(rng, 8, 2, 4),
        "key": dense(rng, 8, 2, 4),
        "value": dense(rng, 8, 2, 4),
        "out": dense(rng, 8, 8),
        "tied": dense(rng, 8, 8),
        "scale": rng.normal(size=8),
    }

    def encode(params, words):
        x = params["table"][words]
        query, key, value = (
            jnp.einsum("sm,mhn->hsn", x, params[name])
            for name in ("query", "key", "value")
        )
        scores = jax.nn.softmax(jnp.einsum("hsn,htn->hst", query, key))
        mixed = jnp.einsum("hst,htn->shn", scores, value).reshape(len(words), -1)
        x = x + params["scale"] * jnp.tanh(mixed @ params["out"])
        for _ in range(2):
            x = jnp.tanh(x @ params["tied"])
        return jnp.mean(x, axis=0)

    return params, encode, rng.integers(0, 11, size=(samples, 5))


def lenet(rng, samples):
    """Convolutions of the zoo."""
    model = LeNet(rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def encode(params, image):
        return nnx.merge(graph, params, rest).encode(image[None])[0]

    return params, encode, rng.normal(size=(samples, 28, 28, 1))


NETWORKS = {"mlp": mlp, "tokens": tokens, "lenet": lenet}


@functools.cache
def make_problem(network, num_tasks, samples, dtype, ids=None):
    """Returns an oracle, parameters, a batch and the gradients, one task at a time."""
    rng = np.random.default_rng(num_tasks)
    encoder, encode, x = NETWORKS[network](rng, samples)
    z = jax.eval_shape(encode, encoder, x[0])
    params = {"encoder": encoder, "heads": rng.normal(size=(num_tasks, z.size))}
    if ids is None:
        ids = rng.permutation(np.arange(samples) % num_tasks)
    batch = {"x": x, "y": rng.normal(size=samples), "task": np.array(ids)}

    def cast(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf

    params, batch = jax.tree.map(cast, (params, batch))

    def head(params, z, task, sample):
        return (jnp.vdot(z.ravel(), params["heads"]) - sample["y"]) ** 2

    oracle = mtlopt.task_grad(
        mtlopt.samplewise(mtlopt.stacked(head, num_tasks), lambda s: s["task"]),
        {"encoder": "shared", "heads": "stacked"},
        encode=lambda params, sample: encode(params["encoder"], sample["x"]),
    )

    def losses(encoder):
        z = jax.vmap(functools.partial(encode, encoder))(batch["x"])
        errors = (z.reshape(samples, -1) @ params["heads"].T - batch["y"][:, None]) ** 2
        own = batch["task"][:, None] == np.arange(num_tasks)
        return jnp.sum(jnp.where(own, errors, 0), axis=0) / own.sum(axis=0)

    return (
        oracle,
        params,
        batch,
        jax.jit(jax.jacrev(losses), compiler_options=QUICK)(params["encoder"]),
    )


def products_of(rows):
    flat = np.concatenate(
        [np.float64(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(rows)], 1
    )
    return flat @ flat.T


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def everything(oracle, params, batch, basis, weights):
    grads = oracle(params, batch)
    rows = grads.rows()
    return {
        "gramian": rows.gramian(),
        "rotated": rows.rotated()(basis),
        "scaled": rows.gramian(jnp.arange(1.0, 1 + len(weights))),
        "norms": rows.norms(),
        "combined": grads.updates(rows.combine(weights))["encoder"],
        "pulled": grads.combine(weights)["encoder"],
        "rows": grads.jacobian()["encoder"],
    }


def check(problem, rtol):
    oracle, params, batch, rows = problem
    num_tasks = oracle.num_tasks
    rng = np.random.default_rng(0)
    basis, weights = rng.normal(size=(num_tasks, num_tasks)), rng.normal(size=num_tasks)
    run = jax.jit(functools.partial(everything, oracle), compiler_options=QUICK)
    found = run(params, batch, basis, weights)
    expected = products_of(rows)
    assert relative(found["gramian"], expected) < rtol
    assert relative(found["rotated"], basis.T @ expected @ basis) < rtol
    scales = np.arange(1.0, 1 + num_tasks)
    assert relative(found["scaled"], np.outer(scales, scales) * expected) < rtol
    assert relative(found["norms"], np.sqrt(np.diag(expected))) < rtol
    combined = jax.tree.map(lambda leaf: np.tensordot(weights, leaf, 1), rows)
    for name in ("combined", "pulled"):
        assert_close(found[name], combined, 2 * rtol)
    assert_close(found["rows"], rows, 2 * rtol)


@pytest.mark.parametrize("network", ["mlp", "tokens", slow("lenet")])
def test_rows(network, dtype):
    rtol = {np.float32: 2e-6, np.float64: 1e-13}[dtype]
    check(make_problem(network, 3, 8, dtype), rtol)


@pytest.mark.parametrize("num_tasks", [1, 8])
def test_any_number_of_tasks(num_tasks, float64):
    check(make_problem("mlp", num_tasks, 8, float64), 1e-13)


KINDS = {
    "pairs": (ProductLeaf, True),
    "tasks": (ProductLeaf, False),
    "samples": (RowLeaf, False),
}


def leaf_kinds(problem):
    """By path, in which form gradients are: rows of tasks are not made if streamed."""
    oracle, params, batch, _ = problem
    options = dataclasses.replace(oracle.problem.options, streaming=True)
    streamed = dataclasses.replace(oracle.problem, options=options)
    oracle, made = dataclasses.replace(oracle, problem=streamed), []
    jax.eval_shape(lambda *args: made.append(oracle(*args).rows().made), params, batch)
    paths, leaves = oracle.partition(params).shared_paths, made[0].undone.items()
    return {paths[i].removeprefix("encoder/"): leaf for i, leaf in leaves}


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("network", ["mlp", slow("tokens")])
def test_every_form(network, form, monkeypatch, float64):
    """Each is exact; which one is taken is a question of cost."""
    monkeypatch.setattr(sample_leaves, "_form", lambda *sizes: form)
    limit = 10**4 if form == "samples" else 100
    monkeypatch.setattr(sample_leaves, "_row_limit", lambda groups: limit)
    ids = (2, 0, 0, 2, 1, 0, 0, 0, 0, 0)  # groups of unequal sizes
    problem = make_problem(network, 3, 10, float64, ids)
    kinds = leaf_kinds(problem)
    kernel = kinds["layer1/w" if network == "mlp" else "query"]
    assert (type(kernel), kernel.in_pairs) == KINDS[form]
    if network == "tokens":
        assert isinstance(kinds["scale"], RowLeaf)
    check(problem, 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("passes", [2, 3], ids=["parts", "tasks"])
def test_large_leaves_that_are_no_products(passes, monkeypatch, float64):
    """By passes of parts of the samples, or of all of them for each task."""
    monkeypatch.setattr(sample_linearization, "_FEW_TASKS", passes)
    monkeypatch.setattr(sample_leaves, "_row_limit", lambda groups: 0)
    make, seen = SampleLinearization._task_rows, []

    def spy(linear, latent_grads, places):
        seen.append(len(places))
        return make(linear, latent_grads, places)

    monkeypatch.setattr(SampleLinearization, "_task_rows", spy)
    check(make_problem("tokens", 3, 10, float64), 1e-13)
    assert set(seen) == {3}  # the table, the tied kernel and the scale


@pytest.mark.slow
def test_rows_a_part_at_a_time(monkeypatch, float64):
    """A part of three outputs, of a kernel with 47: the last one is padded."""
    monkeypatch.setattr(leaf_rows, "_PART", 3 * 3 * 32)
    check(make_problem("mlp", 3, 8, float64), 1e-13)
