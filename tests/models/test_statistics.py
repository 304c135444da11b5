"""BatchNorm statistics of heads, which are state of their tasks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import mtlopt
from mtlopt.models import BatchNorm, stack_heads
from mtlopt.models.shared_encoder import SharedEncoder
from tests.models.networks import compiled, normal, random_params, split, stats_of

TASKS = ("a", "b", "c")


class Head(nnx.Module):
    """A dense layer and BatchNorm."""

    def __init__(self, *, rngs):
        self.dense = nnx.Linear(4, 2, rngs=rngs)
        self.norm = BatchNorm(2)

    def __call__(self, z):
        return self.norm(self.dense(z))


class Network(SharedEncoder):
    """Statistics in the encoder, in two heads, and in the third none."""

    def __init__(self, *, rngs):
        self.encoder = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), BatchNorm(4))
        heads = {task: Head(rngs=rngs) for task in TASKS[:2]}
        self.heads = nnx.Dict({**heads, "c": nnx.Linear(4, 2, rngs=rngs)})


PARAMS, STATS, MERGE = split(nnx.eval_shape(lambda: Network(rngs=nnx.Rngs(0))))
PARAMS = random_params(PARAMS)
STATS = jax.tree.map(np.abs, random_params(STATS, seed=20))
X = normal((5, 3))


def encode(model, x):
    return model.encode(x)


def assert_equal(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        actual,
        expected,
    )


def test_statistics_move_once_a_step():
    """Those of the encoder and of each head, as in one forward pass; not of absent."""

    def loss(task):
        return lambda model, z, x: jnp.mean(model.heads[task](z) ** 3)

    oracle = mtlopt.nnx.task_grad(
        {task: loss(task) for task in TASKS},
        {"encoder": "shared", **{f"heads/{task}": task for task in TASKS}},
        encode=encode,
    )
    params, state, oracle, merge = oracle.pure(MERGE(PARAMS, STATS))

    @compiled
    def step(params, state, present):
        grads = oracle(params, X, state, present=present)
        return stats_of(merge(params, grads.state)), grads.jacobian()

    new, rows = step(params, state, jnp.array([True, False, True]))

    @compiled
    def forward(x):
        model = MERGE(PARAMS, STATS)
        return model.encode(x), stats_of(model)

    z, moved = jax.device_get(forward(X))
    assert_equal(new["encoder"], moved["encoder"])
    dense, old = PARAMS["heads"]["a"]["dense"], STATS["heads"]["a"]["norm"]
    out = z @ dense["kernel"] + dense["bias"]
    expected = {
        "mean": 0.9 * old["mean"] + 0.1 * out.mean(0),
        "var": 0.9 * old["var"] + 0.1 * out.var(0),
    }
    assert_equal(new["heads"]["a"]["norm"], expected)
    jax.tree.map(np.testing.assert_array_equal, new["heads"]["b"], STATS["heads"]["b"])
    assert set(new["heads"]) == {"a", "b"}
    for leaf in jax.device_get(jax.tree.leaves(rows["encoder"])):
        assert (leaf[np.array([0, 2])] != 0).any(axis=tuple(range(1, leaf.ndim))).all()


def test_evaluation_mode():
    """Examples do not influence each other's outputs, and a head's statistics stay."""

    @compiled
    def run(z):
        head = MERGE(PARAMS, STATS).heads["a"]
        head.eval()
        return head(z), stats_of(head)

    z = normal((5, 4))
    out, kept = run(z)
    assert_equal(kept, STATS["heads"]["a"])
    changed, _ = run(np.concatenate([z[:1], 0 * z[1:]]))
    np.testing.assert_allclose(changed[0], out[0], rtol=1e-5)


def test_stacked_heads():
    """Under `nnx.vmap` each task's statistics move as those of its own head."""
    model = MERGE(PARAMS, STATS)
    separate = dict(model.heads)
    del model.heads["c"]
    stacked = stack_heads(model).heads["stacked"]
    z = normal((2, 5, 4))
    out = nnx.vmap(lambda head, z: head(z))(stacked, z)
    moved = stats_of(stacked)
    for i, task in enumerate(TASKS[:2]):
        expected = separate[task](z[i])
        own = jax.tree.map(lambda leaf, i=i: leaf[i], moved)
        assert_equal((out[i], own), (expected, stats_of(separate[task])))
