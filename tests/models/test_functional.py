"""BatchNorm statistics of heads, which move once a step as the encoder's do."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import mtlopt
from mtlopt.models import BatchNorm, functional_with_stats, stack_heads
from mtlopt.models.shared_encoder import SharedEncoder
from tests.models.networks import compiled, normal, random_params

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


def abstract(build):
    return functional_with_stats(nnx.eval_shape(build))


NETWORK = abstract(lambda: Network(rngs=nnx.Rngs(0)))
PARAMS = random_params(NETWORK.params)
STATS = jax.tree.map(jnp.abs, random_params(NETWORK.stats, seed=20))
X = normal((5, 3))


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        actual,
        expected,
    )


def test_statistics_move_once_a_step():
    """Those of the encoder and of each head, as in one forward pass."""
    params, stats, encode, heads = PARAMS, STATS, *NETWORK[2:]

    def normed(task):
        def loss(params, z, x, stats):
            out, stats = heads[task](params, stats, z)
            return jnp.mean(out**3), stats

        return loss

    def plain(params, z, x, stats):
        return jnp.mean(heads["c"](params, z) ** 3), {}

    oracle = mtlopt.task_grad(
        {"a": normed("a"), "b": normed("b"), "c": plain},
        {"encoder": "shared", **{f"heads/{task}": task for task in TASKS}},
        encode=lambda params, x, stats: encode(params, stats, x),
        has_aux=True,
    )

    @compiled
    def step(params, stats):
        grads = oracle(params, X, stats)
        return {**grads.aux.encode, "heads": grads.aux.tasks}, grads.jacobian()

    new, rows = step(params, stats)
    z, moved = encode(params, stats, X)
    assert_equal(moved["heads"], stats["heads"])
    assert_equal(new["encoder"], moved["encoder"])
    for task in TASKS[:2]:
        out = z @ params["heads"][task]["dense"]["kernel"]
        out += params["heads"][task]["dense"]["bias"]
        old = stats["heads"][task]["norm"]
        expected = {
            "mean": 0.9 * old["mean"] + 0.1 * out.mean(0),
            "var": 0.9 * old["var"] + 0.1 * out.var(0),
        }
        assert_equal(new["heads"][task]["norm"], expected)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(rows["encoder"]))


def test_evaluation_mode():
    """Examples do not influence each other's outputs, and a head's statistics stay."""
    head = compiled(lambda z: NETWORK.heads["a"](PARAMS, STATS, z, train=False))
    z = normal((5, 4))
    out, kept = head(z)
    assert_equal(kept, STATS["heads"]["a"])
    changed, _ = head(z.at[1:].set(0))
    np.testing.assert_allclose(changed[0], out[0], rtol=1e-5)


def test_stacked_heads():
    """Called with one task's parameters and statistics, they return that task's."""

    def build():
        model = Network(rngs=nnx.Rngs(0))
        del model.heads["c"]
        return stack_heads(model)

    head = abstract(build).heads["stacked"]
    params, stats = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(tree.get, TASKS[:2]))
        for tree in (PARAMS["heads"], STATS["heads"])
    )

    @compiled
    @jax.vmap
    def run(own_params, own_stats, z):
        heads = {"heads": {"stacked": own_params}}
        moved = {**STATS, "heads": {"stacked": own_stats}}
        return head({**PARAMS, **heads}, moved, z)

    z = normal((2, 5, 4))
    out, moved = run(params, stats, z)
    for i, task in enumerate(TASKS[:2]):
        expected = NETWORK.heads[task](PARAMS, STATS, z[i])
        assert_equal((out[i], jax.tree.map(lambda s: s[i], moved)), expected)
