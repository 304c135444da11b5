"""Leaves of `z` that no shared leaf moves have no part in the latent's rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from tests.problems import QUICK, assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3))
PARAMS = {
    "w": RNG.normal(size=(3, 4)),
    "heads": RNG.normal(size=(2, 4)),
    "skips": RNG.normal(size=(2, 3)),
}
LABELS = {"w": "shared", "heads": "stacked", "skips": "stacked"}
SEPARATE = {"w": "shared", "a": "a", "b": "b"}


def passed_on(params, x):
    """A latent with leaves that are not differentiated, among them a scan's carry."""
    h = jnp.tanh(x @ params["w"])

    def layer(carry, _):
        return (jnp.sin(carry[0]), carry[1]), None

    (deep, raw), _ = jax.lax.scan(layer, (h, 0.1 * x), length=2)
    ids = jnp.arange(len(x))
    return {"deep": deep, "ids": ids, "raw": raw, "stop": jax.lax.stop_gradient(h)}


def alone(params, x):
    """The one leaf of it that the encoder moves."""
    return passed_on(params, x)["deep"]


def rest(params, x):
    fixed = jax.lax.stop_gradient(passed_on(params, x))
    return fixed["raw"], fixed["stop"], fixed["ids"]


def value(head, skip, task, deep, raw, stop, ids):
    error = deep @ head - (1 + 9 * task) * raw @ skip - stop @ head - ids
    return jnp.mean((1 + 3 * task) * jnp.sin(error) + error**2 / 100)


def stacked_head(params, z, task, x):
    fixed = z["raw"], z["stop"], z["ids"]
    return value(params["heads"], params["skips"], task, z["deep"], *fixed)


def reference_head(params, z, task, x, raw, stop, ids):
    return value(params["heads"], params["skips"], task, z, raw, stop, ids)


def separate(head):
    """The same heads as one function per task, on the same stacked leaves' slices."""

    def of(name, task):
        def loss(params, *args):
            return head(params[name], *args[:1], task, *args[1:])

        return loss

    return {"a": of("a", 0), "b": of("b", 1)}


def separate_params(params):
    heads = [
        jax.tree.map(
            lambda leaf, i=i: leaf[i], {k: params[k] for k in params if k != "w"}
        )
        for i in range(2)
    ]
    return {"w": params["w"], "a": heads[0], "b": heads[1]}


def numbers(oracle, params, *args):
    """What methods, line searches and users read of the latent."""

    def measure(params):
        grads = oracle(params, *args)
        latent = grads.in_latent_space()
        found = {
            "losses": grads.losses,
            "latent": latent.rows().gramian(),
            "rows": grads.rows().gramian(),
            "total": grads.total(),
            "combined": grads.combine(jnp.array([2.0, -1.0])),
            "heads": oracle.heads(params, grads.z, *args).grad,
        }
        for calibrate in (False, True):
            tx = mtlopt.fast_backtracking(mtlopt.mgda(2), calibrate=calibrate)
            found[f"{calibrate=}"] = tx.update(grads, tx.init(params), params)
        return found

    return jax.jit(measure, compiler_options=QUICK)(params)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["stacked", "separate"])
def test_leaves_that_nothing_moves_do_not_count(streaming, float64):
    """As if they were arguments of the losses."""
    labels, params, options = LABELS, PARAMS, {"streaming": streaming}
    heads = mtlopt.stacked(stacked_head, 2), mtlopt.stacked(reference_head, 2)
    if streaming:
        heads = separate(stacked_head), separate(reference_head)
        labels, params = SEPARATE, separate_params(PARAMS)

    fixed = rest(params, X)
    found = numbers(
        mtlopt.task_grad(heads[0], labels, encode=passed_on, **options), params, X
    )
    oracle = mtlopt.task_grad(
        heads[1], labels, encode=lambda params, x, *_: alone(params, x), **options
    )
    expected = numbers(oracle, params, X, *fixed)
    assert_close(found, expected, 1e-9)
    assert expected["calibrate=False"][1].trial_decrease > 0


def test_gramian_is_that_of_jax_grad(float64):
    """By plain differentiation of the losses with respect to the one moving leaf."""
    oracle = mtlopt.task_grad(mtlopt.stacked(stacked_head, 2), LABELS, encode=passed_on)
    z = passed_on(PARAMS, X)

    @jax.jit
    def rows(deep):
        return jax.jacrev(losses)(deep).reshape(2, -1)

    def losses(deep):
        return jnp.stack(
            [
                value(head, skip, i, deep, z["raw"], z["stop"], z["ids"])
                for i, (head, skip) in enumerate(
                    zip(PARAMS["heads"], PARAMS["skips"], strict=True)
                )
            ]
        )

    jacobian = np.asarray(rows(z["deep"]))
    gramian = jax.jit(lambda p: oracle(p, X).in_latent_space().rows().gramian())
    np.testing.assert_allclose(gramian(PARAMS), jacobian @ jacobian.T, rtol=1e-9)


def test_seeds_under_vmap(float64):
    oracle = mtlopt.task_grad(mtlopt.stacked(stacked_head, 2), LABELS, encode=passed_on)
    tx = mtlopt.in_latent_space(mtlopt.mgda(2))

    def update(params):
        return tx.update(oracle(params, X), tx.init(params), params)

    alone = jax.jit(update, compiler_options=QUICK)
    seeds = jax.tree.map(lambda leaf: np.stack([leaf, leaf[::-1]]), PARAMS)
    found = jax.jit(jax.vmap(update), compiler_options=QUICK)(seeds)
    for i in range(2):
        one = alone(jax.tree.map(lambda leaf, i=i: leaf[i], seeds))
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], found), one, 1e-9)


def test_a_latent_that_nothing_moves_is_an_error():
    """Else the shared leaf would stay, and a method would weigh rows of nothing."""
    oracle = mtlopt.task_grad(
        {"a": lambda p, z: p["a"] * z, "b": lambda p, z: p["b"] * z},
        SEPARATE,
        encode=lambda p: jax.lax.stop_gradient(p["w"]),
    )
    with pytest.raises(ValueError, match=r"depends on a leaf .*, so `w` would"):
        oracle({"w": 1.0, "a": 1.0, "b": 1.0})


# Microbatches: which leaves are pieces of the batch.


def pad(params, x):
    """To 16 rows, whatever the size of the batch."""
    h = jnp.tanh(x @ params["w"])
    return jnp.zeros((16, 4), h.dtype).at[: len(x)].set(h)


def token_for_each(params, x):
    """A leaf whose shape alone depends on the batch."""
    return jnp.broadcast_to(jnp.sin(params["w"][0]), (len(x), 4)) * jnp.ones((1, 4))


def all_kinds(params, x):
    jax.debug.callback(lambda _: None, x)  # reads the batch, gives nothing
    return {
        "padded": pad(params, x),
        "token": token_for_each(params, x),
        "raw": x,
        "weight": params["w"],
    }


def kinds_head(params, z, task, x):
    h = z["padded"][: len(x)] + z["token"] + z["raw"] @ z["weight"]
    return jnp.mean(jnp.sin((1 + task) * h @ params["heads"]))


def test_parts_of_every_kind_of_leaf(float64):
    """Padded and repeated leaves hold pieces of the batch, a weight is one for all."""
    params = {"w": PARAMS["w"], "heads": PARAMS["heads"]}

    def run(parts):
        oracle = mtlopt.task_grad(
            mtlopt.stacked(kinds_head, 2),
            {"w": "shared", "heads": "stacked"},
            encode=all_kinds,
            microbatches=parts,
        )

        def measure(params, x):
            grads = oracle(params, x).in_latent_space()
            tx = mtlopt.in_latent_space(mtlopt.aligned_mtl(2))
            updates, _ = tx.update(grads, tx.init(params), params)
            return grads.rows().gramian(), updates

        return jax.jit(measure, compiler_options=QUICK)(params, X)

    assert_close(run(3), run(1), 1e-9)
