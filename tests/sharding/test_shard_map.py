"""An oracle inside `jax.shard_map`: traced for eight devices, of which none exists."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

import mtlopt

EVERYWHERE = PartitionSpec()
AXIS, LABELS = "data", {"w": "shared", "a": "a", "b": "b"}
PARAMS = {"w": jnp.ones((3, 2)), "a": jnp.ones(2), "b": jnp.ones(2)}
X = jnp.ones((16, 3))


def over_shards(loss):
    return jax.lax.pmean(loss, AXIS)


def make_oracle(reduce=over_shards, **options):
    def loss(task):
        return lambda params, z, x: reduce(jnp.mean((z @ params[task]) ** 2))

    losses = {task: loss(task) for task in ("a", "b")}
    encode = lambda params, x: jnp.tanh(x @ params["w"])  # noqa: E731
    return mtlopt.task_grad(losses, LABELS, encode=encode, **options)


def trace(function, params=PARAMS, spec=EVERYWHERE, **options):
    """Types of what `function(params, x)` returns, each shard with two rows of x."""
    mapped = jax.shard_map(
        function,
        mesh=AbstractMesh((8,), (AXIS,)),
        in_specs=(spec, PartitionSpec(AXIS)),
        out_specs=spec,
        **options,
    )
    return jax.eval_shape(mapped, params, X)


def update_of(tx, oracle):
    return lambda params, x: tx.update(oracle(params, x), tx.init(params), params)[0]


@pytest.mark.parametrize(
    "tx",
    [
        mtlopt.in_latent_space(mtlopt.pcgrad(2)),
        mtlopt.in_latent_space(mtlopt.mgda(2)),
        mtlopt.in_latent_space(mtlopt.graddrop(2)),
        optax.chain(mtlopt.weight_by_gradnorm(2), mtlopt.sum_tasks(2)),
        mtlopt.backtracking(mtlopt.mgda(2)),
        mtlopt.fast_backtracking(mtlopt.mgda(2)),
    ],
)
def test_methods_on_the_latent_are_refused(tx):
    message = "rows must be whole on every shard, got a part .* axis 'data'"
    with pytest.raises(ValueError, match=message):
        trace(update_of(tx, make_oracle()))


@pytest.mark.parametrize("options", [{"streaming": True}, {"microbatches": 2}])
def test_options_on_the_latent_are_refused(options):
    with pytest.raises(ValueError, match="rows must be whole on every shard"):
        trace(update_of(mtlopt.mgda(2), make_oracle(**options)))


def test_losses_of_one_shard_are_refused():
    """In any space, and in all calls that return gradients."""
    oracle = make_oracle(lambda loss: loss)
    message = r"the losses differ .* mesh axis 'data'.*pmean\(loss, 'data'\)"
    for function in (
        update_of(mtlopt.sum_tasks(2), oracle),
        lambda params, x: oracle.task("a", params, x).grad,
        lambda params, x: oracle.block("shared", params, x).grad,
        lambda params, x: oracle.heads(params, x @ params["w"], x).grad,
    ):
        with pytest.raises(ValueError, match=message):
            trace(function)


def test_shard_map_must_check():
    with pytest.raises(ValueError, match=r"`check_vma` of jax.shard_map must be True"):
        trace(update_of(mtlopt.sum_tasks(2), make_oracle()), check_vma=False)


def test_parameter_space_and_other_problems_are_traced():
    """Types of the updates are those of the parameters: the same on all shards."""
    gradnorm = mtlopt.weight_by_gradnorm(2, layer="w")
    for tx in (
        mtlopt.mgda(2),
        mtlopt.in_latent_space(mtlopt.sum_tasks(2)),  # without inner products
        optax.chain(gradnorm, mtlopt.sum_tasks(2)),
    ):
        found = trace(update_of(tx, make_oracle()))
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, PARAMS)


def test_a_problem_on_each_shard():
    """Parameters of its own make its losses and its latent its own affair."""
    own = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), PARAMS)
    update = update_of(
        mtlopt.in_latent_space(mtlopt.pcgrad(2)), make_oracle(lambda loss: loss)
    )

    def on_shard(params, x):
        found = update(jax.tree.map(lambda leaf: leaf[0], params), x)
        return jax.tree.map(lambda leaf: leaf[None], found)

    found = trace(on_shard, own, PartitionSpec(AXIS))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, own)
