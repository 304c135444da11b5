"""FBLS whose steps are checked by the losses: no step raises one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.problems import (
    QUICK,
    first,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
)

STEPS, SEEDS = 500, 4
LABELS = {"w": "shared", "a": "a", "b": "b"}
MGDA = mtlopt.mgda(2)


def make_problems(dtype):
    """Parameters, inputs and targets of tanh networks with two heads, all seeds."""
    seeds = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(16, 5)), rng.normal(size=(2, 16))
        params = {
            "w": rng.normal(size=(5, 6)) / np.sqrt(5),
            "a": rng.normal(size=6) / 2,
            "b": rng.normal(size=6) / 2,
        }
        seeds.append((params, x, y))
    return jax.tree.map(lambda *leaves: np.stack(leaves).astype(dtype), *seeds)


def encode(params, x, y):
    return jnp.tanh(x @ params["w"])


ORACLE = mtlopt.task_grad(
    {
        "a": lambda params, z, x, y: jnp.mean((z @ params["a"] - y[0]) ** 2),
        "b": lambda params, z, x, y: jnp.mean((z @ params["b"] - y[1]) ** 2),
    },
    LABELS,
    encode=encode,
)


def train(tx, dtype):
    """All seeds at once: parameters before each step and after the last, and states."""

    def run(params, x, y):
        def step(carry, _):
            before, state = carry
            updates, state = tx.update(ORACLE(before, x, y), state, before)
            after = optax.apply_updates(before, updates)
            return (after, state), (before, state._replace(direction_state=None))

        start = params, tx.init(params)
        (last, _), (course, states) = jax.lax.scan(step, start, length=STEPS)
        course = jax.tree.map(
            lambda leaves, leaf: jnp.concatenate([leaves, leaf[None]]), course, last
        )
        return course, states

    with jax.enable_x64(dtype == np.float64):
        run = jax.jit(jax.vmap(run), compiler_options=QUICK)
        return jax.tree.map(np.asarray, run(*make_problems(dtype)))


@functools.cache
def safeguarded(dtype):
    return train(mtlopt.fast_backtracking(MGDA, safeguard=True), dtype)


def measure(course):
    """Losses `[seeds, steps, tasks]`, by NumPy in float64."""
    _, x, y = make_problems(np.float64)
    course = jax.tree.map(lambda leaf: leaf.astype(np.float64), course)
    z = np.tanh(x[:, None] @ course["w"])
    predicted = np.stack([z @ course[t][..., None] for t in "ab"], axis=2)[..., 0]
    return np.mean((predicted - y[:, None]) ** 2, axis=-1)


def differentiate(params, x, y):
    """Of one point, by plain derivatives of the two losses and two closed forms.

    Returns:
      Slopes of the losses down the encoder's direction and the largest that they can
      be, the direction over the parameters, and the length of the shortest convex
      combination of the gradients of everything.
    """

    def losses(params, z):
        return jnp.stack(
            [jnp.mean((z @ params[t] - y[i]) ** 2) for i, t in enumerate("ab")]
        )

    def whole(params):
        return losses(params, encode(params, x, y))

    def shortest(rows):
        """The point of a segment that is nearest to zero."""
        difference = rows[0] - rows[1]
        share = jnp.vdot(difference, rows[0]) / jnp.vdot(difference, difference)
        return rows[0] - jnp.clip(share, 0, 1) * difference

    full = jax.jacrev(whole)(params)
    heads = {"a": full["a"][0], "b": full["b"][1]}
    z, pull = jax.vjp(lambda w: encode({"w": w}, x, y), params["w"])
    (shared,) = pull(shortest(jax.jacrev(losses, argnums=1)(params, z)))
    along = {"w": shared, **heads}
    slopes = jax.jvp(whole, (params,), (along,))[1]
    rows = jax.vmap(lambda *leaves: jnp.concatenate([a.ravel() for a in leaves]))(
        *jax.tree.leaves(full)
    )
    size = jnp.linalg.norm(rows, axis=1) * optax.tree.norm(along)
    own = {"w": shortest(full["w"]), **heads}
    return slopes, size, own, jnp.linalg.norm(shortest(rows))


@functools.cache
def plain(dtype):
    """Those of every point before a step, in float64."""
    course, _ = safeguarded(dtype)
    _, x, y = make_problems(np.float64)
    with jax.enable_x64(True):
        points = jax.tree.map(lambda leaf: jnp.asarray(leaf[:, :-1], float), course)
        over_steps = jax.vmap(differentiate, in_axes=(0, None, None))
        run = jax.jit(jax.vmap(over_steps), compiler_options=QUICK)
        return jax.tree.map(np.asarray, run(points, x, y))


precisions = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@precisions
def test_no_loss_rises_and_no_step_stands_still(dtype):
    """500 steps of four networks, as long as some direction lowers both losses."""
    course, states = safeguarded(dtype)
    losses = measure(course)
    falls = -np.diff(losses, axis=1)
    rounding = 8 * np.finfo(dtype).eps * losses[:, :-1]
    assert np.all(falls >= -rounding)
    np.testing.assert_allclose(
        states.decrease, falls.min(axis=-1), rtol=0, atol=rounding.max()
    )
    gap = plain(dtype)[3]
    assert np.all(gap > 1e-3)  # so there is one, at every point
    assert np.all(falls.max(axis=-1) > 0)
    assert not np.any(states.hit_floor)


@precisions
def test_it_falls_back_where_the_encoders_direction_raises_a_loss(dtype):
    """`descends` has the signs of plain derivatives, and the step is one of BLS."""
    course, states = safeguarded(dtype)
    slopes, size, own, _ = plain(dtype)
    clear = np.abs(slopes) > 1e-5 * size
    assert np.mean(clear) > 0.99
    np.testing.assert_array_equal(states.descends[clear], (slopes > 0)[clear])
    rising = np.any(~states.descends, axis=-1)
    assert np.mean(rising) > 0.4
    assert np.all(states.fell_back[rising])
    assert np.mean(states.fell_back & ~rising) < 0.1
    for name, direction in own.items():
        moved = -np.diff(course[name], axis=1)[states.fell_back]
        size = states.step_size[states.fell_back]
        size = size.reshape(-1, *[1] * (moved.ndim - 1))
        expected = size * direction[states.fell_back]
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-5)


def test_a_check_fails_only_if_a_loss_has_risen():
    """The step size before the accepted one: it was the trials', or it failed."""
    course, states = safeguarded(np.float64)
    shrunk = (states.checks > 1) & ~states.fell_back
    assert np.mean(shrunk) > 0.05
    before = jax.tree.map(lambda leaf: leaf[:, :-1], course)
    double = jax.tree.map(lambda leaf: leaf[:, :-1] + 2 * np.diff(leaf, axis=1), course)
    assert np.all(np.any(measure(double) > measure(before), axis=-1)[shrunk])
    once = (states.checks == 1) & ~states.fell_back
    assert np.all(states.step_size[once] == 0.5 ** (states.trials[once] - 1))


def test_without_it_losses_rise_that_the_trials_have_lowered():
    """So the test above can fail."""
    course, states = train(mtlopt.fast_backtracking(MGDA), np.float64)
    rises = np.diff(measure(course), axis=1).max(axis=-1)
    assert np.mean(rises > 0) > 0.5
    assert np.max(rises) > 0.2
    assert np.all(states.trial_decrease > 0)


# What goes wrong.


def test_the_update_is_zero_if_no_step_passes():
    """Trials and checks go down to the floor, of both directions; NaN moves nothing."""

    def run(loss):
        oracle = mtlopt.task_grad(loss, "shared", encode=lambda p: p)
        params = jnp.array(1.0)
        tx = mtlopt.fast_backtracking(
            mtlopt.sum_tasks(len(loss)), safeguard=True, floor=0.1
        )
        step = jax.jit(
            lambda params: tx.update(oracle(params), tx.init(params), params)
        )
        updates, state = step(params)
        assert updates == 0
        assert state.step_size == 0
        assert state.decrease == 0
        assert state.hit_floor
        assert state.fell_back
        return state

    state = run({"a": lambda p, z: z + jnp.where(z < 1, jnp.nan, 0.0)})
    assert state.descends.tolist() == [True]
    assert state.checks == state.trials == 2 * 4  # 1, 1/2, 1/4, 1/8
    state = run({"a": lambda p, z: 9 * z, "b": lambda p, z: -(z**3)})
    assert state.descends.tolist() == [True, False]
    assert state.checks == state.trials == 0
    state = run({"a": lambda p, z: jnp.sqrt(z - 1)})  # an infinite gradient
    state = run({"a": lambda p, z: jnp.sqrt(z - 2)})  # NaN
    assert state.descends.tolist() == [False]
    assert state.checks == 0


def test_a_stationary_point_passes_the_first_check():
    oracle = mtlopt.task_grad(
        {"a": lambda p, z: (z - 1) ** 2, "b": lambda p, z: (z + 1) ** 2},
        "shared",
        encode=lambda p: p,
    )
    tx, params = mtlopt.fast_backtracking(MGDA, safeguard=True), jnp.array(0.0)
    step = jax.jit(lambda params: tx.update(oracle(params), tx.init(params), params))
    updates, state = step(params)
    assert updates == 0
    assert not state.hit_floor
    assert state.checks == 1


@pytest.mark.parametrize(
    ("direction", "leaf"),
    [
        (mtlopt.moco(3, make_oracle().labels), "shares"),
        (mtlopt.gradvac(3), "targets"),
        (optax.chain(mtlopt.weight_by_gradnorm(3), mtlopt.mgda(3)), "0/"),
    ],
    ids=["moco", "gradvac", "gradnorm"],
)
def test_a_direction_that_remembers_gradients_is_refused(direction, leaf):
    tx = mtlopt.fast_backtracking(direction, safeguard=True)
    params, oracle = make_params(), make_oracle()

    def update(params):
        grads = oracle(params, *first(make_batches()))
        return tx.update(grads, tx.init(params), params)

    message = f"must not remember gradients.*in its state `{leaf}"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(update, params)


def test_a_direction_without_weights_is_refused():
    """Nothing else says how many tasks there are before the first gradients."""
    first_row = optax.stateless(lambda grads, _: grads.combine(jnp.array([1.0, 0])))
    tx = mtlopt.fast_backtracking(first_row, safeguard=True)
    with pytest.raises(ValueError, match="`direction` must keep `task_weights`"):
        tx.init(jnp.zeros(2))


# Whatever else a search takes.


def test_absent_tasks_random_directions_and_weightings(float64):
    """The losses of the present tasks fall, and the head of the others stands still."""
    inner = optax.chain(mtlopt.weight_by_dwa(3), mtlopt.pcgrad(3))
    tx = mtlopt.fast_backtracking(inner, safeguard=True, calibrate=True)
    oracle, before = make_oracle(), make_params()
    args = [np.array(leaf) for leaf in first(make_batches())]
    args[1][:, 1] = np.nan
    present = np.array([True, False, True])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state):
        grads = oracle(params, *args, present=present)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    losses = jax.jit(losses_of)
    params, state = before, jax.jit(tx.init)(before)
    for _ in range(3):
        old = np.asarray(losses(params, *args))[present]
        params, state = step(params, state)
        falls = old - np.asarray(losses(params, *args))[present]
        assert np.all(falls > 0)
        np.testing.assert_allclose(state.decrease, np.min(falls), rtol=1e-9)
        assert state.descends[1]
    jax.tree.map(
        np.testing.assert_array_equal, params["heads"]["b"], before["heads"]["b"]
    )


@pytest.mark.parametrize("name", ["BLS", "safe"])
def test_half_precision_is_rounded_before_it_is_checked(name):
    """Stacked bfloat16 heads: XLA may keep digits in a trial that a step rounds off."""
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(64, n)).astype(np.float32) for n in (8, 2))

    def head(params, z, task):
        return jnp.mean(
            (z @ params["heads"].astype(z.dtype) - jnp.asarray(y)[:, task]) ** 2
        )

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, 2),
        {"w": "shared", "heads": "stacked"},
        encode=lambda p: jnp.tanh(x @ p["w"].astype(x.dtype)),
    )
    params = {
        "w": rng.normal(size=(8, 8)).astype(jnp.bfloat16),
        "heads": rng.normal(size=(2, 8)).astype(jnp.bfloat16),
    }
    options = {"upper": optax.exponential_decay(1.0, 20, 0.5), "warm_start": True}
    tx = {
        "BLS": mtlopt.backtracking(MGDA, **options),
        "safe": mtlopt.fast_backtracking(MGDA, safeguard=True, **options),
    }[name]

    @jax.jit
    def step(params, state):
        updates, state = tx.update(oracle(params), state, params)
        return optax.apply_updates(params, updates), state

    losses = jax.jit(oracle.losses)
    state, before = jax.jit(tx.init)(params), np.array(losses(params))
    for _ in range(40):
        params, state = step(params, state)
        after = np.array(losses(params))
        assert np.all(after <= before + 1e-6)
        np.testing.assert_allclose(state.decrease, np.min(before - after), atol=1e-6)
        before = after


# Costs.


@pytest.mark.slow
def test_costs_in_forward_passes(monkeypatch):
    """XLA's operations of each branch: one more product and pass, or T gradients."""
    num_tasks, width = 4, 256

    def encode(params, x):
        return functools.reduce(lambda z, w: jnp.tanh(z @ w), params["w"], x)

    def head(params, z, task, x):
        return jnp.mean((z @ params["heads"]) ** 2)

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, num_tasks),
        {"w": "shared", "heads": "stacked"},
        encode=encode,
        batching="unroll",  # or XLA counts the loop over tasks once
        layerwise=False,  # T gradients
    )
    params = {
        "w": [np.ones((width, width), np.float32)] * 2,
        "heads": np.ones((num_tasks, width), np.float32),
    }
    x = np.ones((32, width), np.float32)
    forward = 2 * 2 * 32 * width**2

    def passes(tx):
        def step(params, state, x):
            updates, state = tx.update(oracle(params, x), state, params)
            return optax.apply_updates(params, updates), state

        step = jax.jit(step).lower(params, tx.init(params), x)
        flops = step.compile(compiler_options=QUICK).cost_analysis()["flops"]
        return flops / forward

    search = functools.partial(mtlopt.fast_backtracking, mtlopt.mgda(num_tasks))
    # Of two layers, only the second is pulled back through and pushed through.
    plain, product, gradient = 1 + 1.5, 1.5, 1.5
    assert passes(search()) == pytest.approx(plain, abs=0.2)
    cond = jax.lax.cond

    def branch(take):
        """The operations if a search that may fall back takes one branch, or both."""

        def chosen(predicate, usual, other, *args):
            if other.__name__ != "fall_back":  # rows are looked at once
                return usual(*args)
            return take(predicate, usual, other, *args)

        with monkeypatch.context() as patch:
            patch.setattr(jax.lax, "cond", chosen)
            return passes(search(safeguard=True))

    both = branch(cond)
    kept = branch(lambda _, usual, other: usual())
    assert kept == pytest.approx(plain + product + 1, abs=0.3)
    other = branch(lambda _, usual, other: other())
    expected = kept + num_tasks * gradient + product + 1
    assert other == pytest.approx(expected, abs=0.6)
    assert both == pytest.approx(other, abs=0.1)
