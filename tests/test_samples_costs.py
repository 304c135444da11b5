"""What one task per sample costs, by XLA's counts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.rows import leaf_rows
from tests.marks import cpu_only
from tests.problems import temporary_bytes

LABELS = {"encoder": "shared", "heads": "stacked"}
INPUTS, WIDTH, LAYERS = 32, 128, 4  # a quarter of the benchmark's, like the batches


def encode(params, sample):
    z = sample["x"]
    for weight, bias in params["encoder"]:
        z = jax.nn.relu(z @ weight + bias)
    return z


def loss(params, z, task, sample):
    return (z @ params["heads"] - sample["y"]) ** 2


def make_problem(batch_size, num_tasks, **options):
    sizes = [INPUTS] + [WIDTH] * LAYERS
    params = {
        "encoder": [
            (jnp.ones(shape), jnp.ones(shape[1])) for shape in itertools.pairwise(sizes)
        ],
        "heads": jnp.ones((num_tasks, WIDTH)),
    }
    batch = {
        "x": jnp.ones((batch_size, INPUTS)),
        "y": jnp.ones(batch_size),
        "task": jnp.arange(batch_size) % num_tasks,
    }
    form = mtlopt.samplewise(mtlopt.stacked(loss, num_tasks), lambda s: s["task"])
    return mtlopt.task_grad(form, LABELS, encode=encode, **options), params, batch


def plain(params, batch):
    def total(params):
        heads = params["heads"][batch["task"]]
        return jnp.mean((jnp.sum(encode(params, batch) * heads, 1) - batch["y"]) ** 2)

    return jax.grad(total)(params)


def with_gramian(oracle, params, batch):
    grads = oracle(params, batch)
    rows = grads.rows()
    return grads.updates(rows.combine(jnp.diagonal(rows.gramian())))


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.slow
@cpu_only
@pytest.mark.parametrize(
    ("batch_size", "num_tasks", "most"),
    [(64, 2, 1.6), (64, 8, 1.6), (64, 64, 1.6), (128, 16, 2.0)],
)
def test_gramian_and_combination(batch_size, num_tasks, most, monkeypatch):
    """As good as one backward pass, whatever the number of tasks."""
    unrolled = functools.partial(jax.lax.scan, unroll=True)  # XLA counts no turns
    monkeypatch.setattr(jax.lax, "scan", unrolled)
    oracle, *args = make_problem(batch_size, num_tasks)
    found = flops(functools.partial(with_gramian, oracle), *args)
    assert found < most * flops(plain, *args)


@cpu_only
def test_weightings_cost_nothing():
    oracle, *args = make_problem(64, 8)
    found = flops(lambda *args: oracle(*args).combine(jnp.ones(8)), *args)
    assert found < 1.02 * flops(plain, *args)


@pytest.mark.slow
@cpu_only
@pytest.mark.parametrize("streaming", [False, True])
def test_memory(streaming, monkeypatch):
    """No rows of tasks, not even in branches that are seldom taken."""
    monkeypatch.setattr(leaf_rows, "_PART", leaf_rows._PART // 16)
    oracle, params, batch = make_problem(64, 64, streaming=streaming)
    method = mtlopt.aligned_mtl(64)
    state = method.init(params)

    def step(params, batch):
        return method.update(oracle(params, batch), state, params)[0]

    rows = 64 * 4 * sum(np.size(leaf) for leaf in jax.tree.leaves(params["encoder"]))
    assert temporary_bytes(step, params, batch) < rows / 2


@cpu_only
@pytest.mark.parametrize(("num_tasks", "in_pairs"), [(2, False), (8, True)])
def test_which_leaves_are_compared_in_pairs(num_tasks, in_pairs):
    """At 64 samples 2 products in place of one, and of few tasks 1.6 by their sums."""
    oracle, *args = make_problem(64, num_tasks)
    paths, plans = oracle.partition(args[0]).shared_paths, []
    jax.eval_shape(lambda *a: plans.extend(oracle(*a).linear.plan(paths)), *args)
    plan = {leaf.path: leaf for leaf in plans}
    assert plan["encoder/1/0"].sizes == (1, WIDTH, WIDTH)
    assert {plan[f"encoder/1/{i}"].layerwise for i in range(2)} == {in_pairs}
