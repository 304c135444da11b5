"""Sharpness-aware gradients: those of a loop by hand, at the worst point nearby."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.problems import (
    BATCH,
    LABELS,
    QUICK,
    TASKS,
    assert_close,
    encode,
    first,
    gradient_of,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
    squared_error,
    stack_heads,
)

RHO = 0.3
PARAMS, ARGS = make_params(), first(make_batches())
quick = functools.partial(jax.jit, compiler_options=QUICK)
ASCENTS = ("task", "sum")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def climb(params, up):
    """The point `RHO` up a gradient."""
    length = sum((leaf**2).sum() for leaf in jax.tree.leaves(up)) ** 0.5
    return jax.tree.map(lambda p, g: p + RHO * g / length, params, up)


def loop(gradient, params, ascent, present=(True, True, True)):
    """Gradients of all parameters, one task after the other: `{task: tree}`."""
    plain = {task: gradient(task, params) for task in TASKS}
    there = [plain[task] for task, is_in in zip(TASKS, present, strict=True) if is_in]
    total = jax.tree.map(lambda *leaves: sum(leaves), *there)
    return {
        task: gradient(task, climb(params, plain[task] if ascent == "task" else total))
        for task in TASKS
    }


gradient_at = quick(gradient_of, static_argnums=0)


@functools.cache
def expected(ascent, **kwargs):
    """Rows of the encoder, and gradients of the heads, by hand."""

    def gradient(task, params):
        return jax.device_get(gradient_at(task, params, *ARGS))

    found = loop(gradient, PARAMS, ascent, **kwargs)
    rows = [found[task]["encoder"] for task in TASKS]
    heads = {task: found[task]["heads"][task] for task in TASKS}
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), heads


def rows_and_heads(grads):
    """The rows of the encoder, and the gradients of the heads."""
    return grads.jacobian()["encoder"], grads.updates(
        [jnp.zeros(leaf.shape[1:]) for leaf in jax.tree.leaves(grads.jacobian())]
    )["heads"]


def head_loss(task):
    return lambda params, z, x, y, mask: squared_error(
        params["heads"][task], z, y[:, TASKS.index(task)]
    )


def whole_loss(task):
    return lambda params, *args: head_loss(task)(params, encode(params, *args), *args)


def all_losses(params, *args):
    z = mtlopt.latent(encode(params, *args))
    return [head_loss(task)(params, z, *args) for task in TASKS]


def of_sample(task, index):
    def loss(params, z, sample):
        return squared_error(params["heads"][task], z, sample["y"][index])

    return loss


def stacked_head(params, z, task, x, y, mask):
    return squared_error(params["heads"], z, jnp.asarray(y)[:, task])


SHAPES = {
    "an encoder and heads": make_oracle(),
    "no encoder": mtlopt.task_grad({task: whole_loss(task) for task in TASKS}, LABELS),
    "one function": mtlopt.task_grad(all_losses, LABELS, tasks=TASKS),
}


@functools.cache
def found(shape, ascent):
    """All that is compared, in one program."""
    oracle = mtlopt.sharpness_aware(SHAPES[shape], RHO, ascent=ascent)

    def run(params, args):
        grads = oracle(params, *args)
        return rows_and_heads(grads), grads.losses, grads.total()

    return quick(run)(PARAMS, ARGS)


@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_loop_by_hand(shape, ascent):
    found_rows, losses, total = found(shape, ascent)
    rows, heads = expected(ascent)
    assert_close(found_rows, (rows, heads))
    # Losses are those where the step begins.
    assert_close(losses, losses_of(PARAMS, *ARGS))
    summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), rows)
    assert_close(total, {"encoder": summed, "heads": heads})


@pytest.mark.slow
@pytest.mark.parametrize(("ascent", "limit"), [("task", 1), ("task", 8), ("sum", 8)])
def test_stacked_heads(ascent, limit, monkeypatch):
    monkeypatch.setattr("mtlopt.sharpness.UNROLL_LIMIT", limit)
    oracle = mtlopt.task_grad(
        mtlopt.stacked(stacked_head, len(TASKS)),
        {"encoder": "shared", "heads": "stacked"},
        encode=encode,
    )
    oracle = mtlopt.sharpness_aware(oracle, RHO, ascent=ascent)
    rows, heads = expected(ascent)
    found = quick(lambda p: rows_and_heads(oracle(p, *ARGS)))(stack_heads(PARAMS))
    heads = jax.tree.map(lambda *leaves: np.stack(leaves), *heads.values())
    assert_close(found, (rows, heads))
    if (ascent, limit) == ("task", 1):
        one = quick(lambda p, k: oracle.task(k, p, *ARGS).grad)(stack_heads(PARAMS), 1)
        assert_close(one["encoder"], jax.tree.map(lambda leaf: leaf[1], rows))
        assert_close(one["heads"]["w"][1], heads["w"][1])
        assert not one["heads"]["w"][0].any()


@pytest.mark.slow
@pytest.mark.parametrize("ascent", ASCENTS)
def test_one_task_per_sample(ascent):
    """Samples of three tasks, dealt in turn: each loss is the mean of its own."""
    ids = np.arange(BATCH) % len(TASKS)
    x, y, _ = ARGS
    oracle = mtlopt.task_grad(
        mtlopt.samplewise(
            {task: of_sample(task, i) for i, task in enumerate(TASKS)},
            lambda sample: sample["id"],
        ),
        LABELS,
        encode=lambda params, sample: encode(params, sample["x"][None], None, None)[0],
    )
    oracle = mtlopt.sharpness_aware(oracle, RHO, ascent=ascent)

    def gradient(task, params):
        own = ids == TASKS.index(task)
        return jax.device_get(gradient_at(task, params, x[own], y[own], None))

    batch = {"x": x, "y": y, "id": ids}
    found = quick(lambda params: oracle(params, batch).jacobian()["encoder"])(PARAMS)
    rows = [grad["encoder"] for grad in loop(gradient, PARAMS, ascent).values()]
    assert_close(found, jax.tree.map(lambda *leaves: np.stack(leaves), *rows))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ascent", "known"), [("task", False), ("sum", False), ("sum", True)]
)
def test_absent_tasks_do_not_climb(ascent, known):
    """Neither does the NaN of their loss reach any other."""

    def spoilt(params, z, *args):
        return jnp.nan * squared_error(params["heads"]["b"], z, 1.0)

    losses = {"a": head_loss("a"), "b": spoilt, "c": head_loss("c")}
    oracle = mtlopt.task_grad(losses, LABELS, encode=encode)
    oracle = mtlopt.sharpness_aware(oracle, RHO, ascent=ascent)
    present = [True, False, True] if known else jnp.array([True, False, True])
    found = quick(lambda p: rows_and_heads(oracle(p, *ARGS, present=present)))(PARAMS)
    rows, heads = expected(ascent, present=(True, False, True))
    there = np.array([True, False, True])
    zero = jax.tree.map(lambda leaf: (leaf.T * there).T, rows)
    heads = heads | {"b": jax.tree.map(np.zeros_like, heads["b"])}
    assert_close(found, (zero, heads))


@pytest.mark.slow
@pytest.mark.parametrize("ascent", ASCENTS)
def test_microbatches_climb_together(ascent):
    def on(batch_fn):
        return lambda params, *args: batch_fn(params, *args[:-1], *args[-1])

    losses = {
        task: lambda p, z, batch, task=task: squared_error(
            p["heads"][task], z, batch[1][:, TASKS.index(task)]
        )
        for task in TASKS
    }
    oracle = mtlopt.task_grad(losses, LABELS, encode=on(encode), microbatches=2)
    oracle = mtlopt.sharpness_aware(oracle, RHO, ascent=ascent)
    found = quick(lambda p: rows_and_heads(oracle(p, ARGS)))(PARAMS)
    assert_close(found, expected(ascent))


@pytest.mark.slow
def test_state_moves_once_and_where_the_step_begins():
    def encode_state(params, x, state):
        z = jnp.tanh(x @ params["w"])
        return z, {"mean": 0.9 * state["mean"] + z.mean(axis=0), "n": state["n"] + 1}

    def loss(task, target):
        return lambda params, z, x, state: (
            jnp.mean((z @ params[task] - target) ** 2),
            state,
        )

    plain = mtlopt.task_grad(
        {"a": loss("a", 1.0), "b": loss("b", -1.0)},
        {"w": "shared", "a": "a", "b": "b"},
        encode=encode_state,
        has_state=True,
    )
    params = {"w": jnp.ones((3, 2)), "a": jnp.ones(2), "b": jnp.ones(2)}
    state = {"mean": jnp.zeros(2), "n": jnp.array(0)}
    x = jnp.asarray(ARGS[0][:, :3], jnp.float32)

    def step(oracle):
        tx = optax.chain(mtlopt.mgda(2), optax.sgd(0.1))
        step = quick(mtlopt.train_step(oracle, tx))
        return step(mtlopt.Run(params, tx.init(params), state), x)

    expected, losses = step(plain)
    for ascent in ASCENTS:
        run, output = step(mtlopt.sharpness_aware(plain, 1.0, ascent=ascent))
        np.testing.assert_array_equal(run.state["mean"], expected.state["mean"])
        assert run.state["n"] == 1
        np.testing.assert_array_equal(output.losses, losses.losses)
        assert not np.allclose(run.params["w"], expected.params["w"], atol=1e-5)


@pytest.mark.parametrize("ascent", ASCENTS)
def test_one_task_is_sam_of_optax(ascent):
    params = {"w": PARAMS["encoder"]["w"], "a": np.ones(5)}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    x, y, _ = (jnp.asarray(arg, jnp.float32) for arg in ARGS)

    def loss(params, x):
        return jnp.mean((jnp.tanh(x @ params["w"]) @ params["a"] - y[:, 0]) ** 2)

    outer = optax.adam(0.05)
    oracle = mtlopt.task_grad(
        {"a": lambda p, z, x: jnp.mean((z @ p["a"] - y[:, 0]) ** 2)},
        {"w": "shared", "a": "a"},
        encode=lambda p, x: jnp.tanh(x @ p["w"]),
    )
    tx = optax.chain(mtlopt.sum_tasks(1), outer)
    oracle = mtlopt.sharpness_aware(oracle, 0.1, ascent=ascent)
    step = quick(mtlopt.train_step(oracle, tx))
    up = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    sam = optax.contrib.sam(outer, up, opaque_mode=True)

    @quick
    def sam_step(params, state):
        updates, state = sam.update(
            jax.grad(loss)(params, x),
            state,
            params,
            grad_fn=lambda params, _: jax.grad(loss)(params, x),
        )
        return optax.apply_updates(params, updates), state

    run = mtlopt.Run(params, tx.init(params))
    moved, state = params, sam.init(params)
    for _ in range(5):
        run, _ = step(run, x)
        moved, state = sam_step(moved, state)
    assert_close(run.params, moved, rtol=1e-6)


@pytest.mark.slow
def test_latent_space_at_the_point_of_the_sum():
    """The method is that in latent space, of a plain oracle at the moved parameters."""
    plain, method = make_oracle(), mtlopt.in_latent_space(mtlopt.mgda(3))
    params = jax.tree.map(jnp.asarray, PARAMS)

    @quick
    def updates(params):
        total = jax.grad(lambda p: losses_of(p, *ARGS).sum())(params)
        moved = climb(params, total)
        sharp = mtlopt.sharpness_aware(plain, RHO, ascent="sum")(params, *ARGS)
        state = method.init(params)
        return (
            method.update(sharp, state, params)[0],
            method.update(plain(moved, *ARGS), state, params)[0],
        )

    assert_close(*updates(params))
    sharp = mtlopt.sharpness_aware(plain)
    with pytest.raises(ValueError, match="use ascent='sum'"):
        jax.eval_shape(
            lambda: method.update(sharp(PARAMS, *ARGS), method.init(PARAMS), PARAMS)
        )


def test_line_searches_compare_losses_where_the_step_begins():
    """Also one on the latent, which is that where the step begins."""
    oracle = mtlopt.sharpness_aware(make_oracle(), 1e-3, ascent="sum")
    tx = mtlopt.fast_backtracking(mtlopt.mgda(3))

    @quick
    def step(params):
        run = mtlopt.Run(params, tx.init(params))
        run, output = mtlopt.train_step(oracle, tx)(run, *ARGS)
        return output.losses, run.params

    before, params = step(PARAMS)
    after = make_oracle().losses(params, *ARGS)
    assert_close(before, losses_of(PARAMS, *ARGS))
    assert (np.asarray(after) < np.asarray(before)).all()


def test_where_nothing_climbs():
    """A gradient of zero moves nothing; a tiny one is as long as any."""
    oracle = mtlopt.sharpness_aware(
        mtlopt.task_grad(
            {"flat": lambda w: jnp.sum(0 * w), "low": lambda w: 1e-30 * jnp.sum(w**2)},
            "shared",
        ),
        0.5,
    )
    rows = quick(lambda w: oracle(w).jacobian())(jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(rows[0], 0)
    np.testing.assert_allclose(rows[1], [3e-30, 0], rtol=1e-5)


def test_errors():
    oracle = make_oracle()
    with pytest.raises(TypeError, match=r"`oracle` must be a mtlopt\.Oracle, got"):
        mtlopt.sharpness_aware(losses_of)
    with pytest.raises(ValueError, match=r"`rho` must be at least 0, got -1"):
        mtlopt.sharpness_aware(oracle, -1)
    with pytest.raises(ValueError, match="`ascent` must be one of 'task', 'sum'"):
        mtlopt.sharpness_aware(oracle, ascent="joint")
    z = encode(PARAMS, *ARGS)
    with pytest.raises(ValueError, match="`heads` has no sharpness-aware form"):
        mtlopt.sharpness_aware(oracle).heads(PARAMS, z, *ARGS)
