"""Multi-task backtracking: the search itself, in parameter and in latent space."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt.linalg.min_norm import min_norm_point
from tests.problems import (
    QUICK,
    assert_close,
    first,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
)

SEARCHES = {"BLS": mtlopt.backtracking, "FBLS": mtlopt.fast_backtracking}
both = pytest.mark.parametrize("name", SEARCHES)
DIRECTION = mtlopt.mgda(3)


def step_of(tx, oracle):
    """A jitted step: `(params, state, *args) -> (params, state, losses)`."""

    def step(params, state, *args, present=None):
        grads = oracle(params, *args, present=present)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads.losses

    return jax.jit(step, compiler_options=QUICK)


def first_update(tx, oracle, params):
    """`(updates, state)` of one program."""

    def update(params):
        return tx.update(oracle(params), tx.init(params), params)

    return jax.jit(update, compiler_options=QUICK)(params)


def trace(tx, oracle, params, *args):
    """The same without a program: for what is refused."""

    def update(params):
        return tx.update(oracle(params, *args), tx.init(params), params)

    jax.eval_shape(update, params)


def least_decrease(state):
    """Of the accepted trial: of FBLS on the latent, of BLS by the step itself."""
    is_fast = isinstance(state, mtlopt.FastLineSearchState)
    return state.trial_decrease if is_fast else state.decrease


# Against searches written by hand.


def test_one_task_is_a_plain_armijo_search(float64):
    """Rosenbrock by gradient descent with backtracking, step by step."""

    def loss(x):
        return (1 - x[0]) ** 2 + 20 * (x[1] - x[0] ** 2) ** 2

    tx = mtlopt.backtracking(mtlopt.sum_tasks(1), beta=0.3, shrink=0.7, upper=2.0)
    step = step_of(tx, mtlopt.task_grad({"a": loss}, "shared"))
    x = by_hand = np.array([-1.0, 1.5])
    state = tx.init(x)
    slope = jax.jit(jax.grad(loss))
    for _ in range(20):
        gradient, size, trials = np.asarray(slope(by_hand)), 2.0, 1
        while loss(by_hand - size * gradient) > loss(by_hand) - size * 0.3 * np.sum(
            gradient**2
        ):
            size, trials = size * 0.7, trials + 1
        x, state, _ = step(x, state)
        by_hand = by_hand - size * gradient
        np.testing.assert_allclose(state.step_size, size, rtol=1e-12)
        assert state.trials == trials
        np.testing.assert_allclose(x, by_hand, rtol=1e-10)


def identity_problem():
    """Losses of a latent that is the parameter, with a head each."""
    rng = np.random.default_rng(0)
    matrices, centres = rng.normal(size=(3, 6, 4)), rng.normal(size=(3, 6))

    def make_loss(k):
        def loss(params, z):
            residual = matrices[k] @ z + params["heads"][str(k)] - centres[k]
            return jnp.mean(residual**2) + 0.1 * jnp.mean(jnp.sin(3 * residual))

        return loss

    params = {
        "w": rng.normal(size=4),
        "heads": {str(k): rng.normal(size=6) for k in range(3)},
    }
    labels = {"w": "shared", "heads": {str(k): str(k) for k in range(3)}}
    oracle = mtlopt.task_grad(
        {str(k): make_loss(k) for k in range(3)}, labels, encode=lambda p: p["w"]
    )
    return oracle, params


def test_identity_encoder_makes_both_searches_one(float64):
    oracle, start = identity_problem()
    runs = {}
    for name, search in SEARCHES.items():
        tx = search(DIRECTION)
        step, params, state = step_of(tx, oracle), start, tx.init(start)
        for _ in range(10):
            params, state, _ = step(params, state)
        runs[name] = params, tuple(state)  # of two types, with the same numbers
    assert_close(runs["FBLS"], runs["BLS"], 1e-9)


@pytest.mark.parametrize("armijo", ["BLS", "full", "heads", "latent"])
def test_accepted_trial_meets_its_inequality_and_the_one_before_does_not(
    armijo, float64
):
    """Equations 4, 6, 7 and 8, evaluated by hand, for every task."""
    beta, shrink = 0.2, 0.5
    options = {"beta": beta, "shrink": shrink, "upper": 64.0}
    if armijo == "BLS":
        tx = mtlopt.backtracking(DIRECTION, **options)
    else:
        tx = mtlopt.fast_backtracking(DIRECTION, armijo=armijo, **options)
    oracle, params = make_oracle(), make_params()
    args = first(make_batches())

    @functools.partial(jax.jit, compiler_options=QUICK)
    def search(params, args):
        """The state, losses, the decrease asked for, and the losses of two trials."""
        grads = oracle(params, *args)
        _, state = tx.update(grads, tx.init(params), params)
        view = grads if armijo == "BLS" else grads.in_latent_space()
        rows = view.rows()
        weights = mtlopt.mgda_weights(rows.gramian())
        shared = rows.gramian() @ weights  # <g_t, d>
        head = grads.updates([0 * leaf for leaf in grads.rows().combine(weights)])
        own = jnp.stack(
            [
                sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(head["heads"][task]))
                for task in "abc"
            ]
        )

        def after(size):
            if armijo == "BLS":
                direction = grads.updates(rows.combine(weights))
                moved = jax.tree.map(lambda p, d: p - size * d, params, direction)
                return losses_of(moved, *args)
            moved = jax.tree.map(lambda p, d: p - size * d, params, head)
            (latent,) = rows.leaves()
            return grads.losses_at(
                moved, grads.z - size * jnp.tensordot(weights, latent, 1)
            )

        wanted = {"heads": own, "latent": shared}.get(armijo, shared + own)
        trials = after(state.step_size), after(state.step_size / shrink)
        return state, grads.losses, wanted, trials

    found = jax.device_get(search(params, args))
    state, losses, wanted, (accepted, before) = found
    size = state.step_size
    assert np.all(accepted <= losses - size * beta * wanted)
    assert size < 64
    assert np.any(before > losses - size / shrink * beta * wanted)
    assert state.trials == 1 + round(np.log2(64 / size))
    np.testing.assert_allclose(
        least_decrease(state), np.min(losses - accepted), rtol=1e-9
    )


@both
def test_evaluations_are_counted(name):
    """Heads run for the gradients, before the step and in trials.

    FBLS's encoder runs once forward and once backward.
    """
    count = {"forward": 0, "backward": 0, "heads": 0}

    def ticking(x, what):
        """`x`, counted whenever it is computed; pure, so deleted where unread."""

        def tick(x):
            count[what] += 1
            return np.zeros_like(x)

        x_0 = jax.lax.stop_gradient(x[0])
        return x + jax.pure_callback(tick, jax.ShapeDtypeStruct((), x.dtype), x_0)

    @jax.custom_vjp
    def watched(x):
        return ticking(x, "forward")

    watched.defvjp(
        lambda x: (watched(x), None),
        lambda _, cotangent: (ticking(cotangent, "backward"),),
    )

    def head(params, z):
        return jnp.sum((ticking(z, "heads") - params["a"]) ** 2)

    oracle = mtlopt.task_grad(
        {"a": head, "b": lambda params, z: jnp.sum((z + params["b"]) ** 2)},
        {"w": "shared", "a": "a", "b": "b"},
        # The slopes of BLS need the transpose of the pullback, which a callback lacks.
        encode=lambda params: (watched if name == "FBLS" else abs)(3 * params["w"]),
    )
    params = {"w": np.ones(2), "a": np.array(2.0), "b": np.array(3.0)}
    params = jax.tree.map(np.float32, params)
    tx = SEARCHES[name](mtlopt.mgda(2), upper=32.0)
    state = tx.init(params)
    _, state, _ = jax.block_until_ready(step_of(tx, oracle)(params, state))
    assert state.trials > 3
    assert count["heads"] == state.trials + 2
    if name == "FBLS":
        assert count["forward"] == 1
        assert count["backward"] == 1


# Convergence.


def plane_losses(kind):
    if kind == "convex":
        return {
            "a": lambda w: jnp.sum((w - 1.0) ** 2 * jnp.array([1.0, 3.0])),
            "b": lambda w: jnp.sum((w + 1.0) ** 2 * jnp.array([4.0, 1.0])),
            "c": lambda w: jnp.sum((w - jnp.array([1.0, -2.0])) ** 2),
        }
    # Fonseca and Fleming: not convex; the Pareto set is a segment.
    return {
        "a": lambda w: 1 - jnp.exp(-jnp.sum((w - 2**-0.5) ** 2)),
        "b": lambda w: 1 - jnp.exp(-jnp.sum((w + 2**-0.5) ** 2)),
    }


@functools.cache
def descent(name, kind, **options):
    """A program: from start and encoder's matrix to gap and losses `[500, tasks]`.

    The gap to a stationary point is the length of the shortest convex combination of
    the gradients of everything.
    """
    losses = plane_losses(kind)
    search = SEARCHES[name](mtlopt.mgda(len(losses)), **options)
    if name == "BLS":
        plain = mtlopt.task_grad(losses, "shared")
        oracle = lambda params, _: plain(params)  # noqa: E731
    else:
        oracle = mtlopt.task_grad(
            {task: lambda p, z, _, loss=loss: loss(z) for task, loss in losses.items()},
            "shared",
            encode=lambda w, matrix: matrix @ w,
        )

    @jax.jit
    def run(start, matrix):
        def body(carry, _):
            params, state = carry
            grads = oracle(params, matrix)
            updates, state = search.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), grads.losses

        carry = (start, search.init(start))
        (params, _), values = jax.lax.scan(body, carry, length=500)
        gramian = oracle(params, matrix).rows().gramian()
        return min_norm_point(gramian).norm, values

    return run


START = np.array([2.5, -1.5])
ENCODERS = {
    "BLS": None,
    "identity": np.eye(2),
    "orthogonal": np.array([[0.6, -0.8], [0.8, 0.6]]),
    "double": 2 * np.eye(2),
    "tenfold": 10 * np.eye(2),
}


@pytest.mark.parametrize("kind", ["convex", "nonconvex"])
@pytest.mark.parametrize("how", ENCODERS)
def test_converges_to_a_stationary_point_and_never_rises(kind, how, float64):
    """Gap <= 1e-6, and every task's loss falls monotonically.

    FBLS as published for encoders that do not stretch; calibrated for those that do.
    """
    stretch = {"double": 2, "tenfold": 10}.get(how, 1)
    options = {"calibrate": True} if stretch > 1 else {}
    run = descent("BLS" if how == "BLS" else "FBLS", kind, **options)
    start = (START if kind == "convex" else 0.4 * START) / stretch
    gap, losses = run(start, ENCODERS[how])
    assert gap <= 1e-6
    assert np.all(np.diff(losses, axis=0) <= 1e-12)


@pytest.mark.parametrize("stretch", [2, 10])
def test_a_stretching_encoder_diverges_as_published(stretch, float64):
    """Equation 5 ignores J J^T: every test passes and yet the losses grow."""
    run = descent("FBLS", "convex")
    losses = np.asarray(run(START / stretch, stretch * np.eye(2))[1])[:20]
    assert not np.all(np.diff(losses, axis=0) <= 0)
    assert stretch == 2 or losses[-1].max() > 1e3 * losses[0].max()


# What goes wrong.


@both
def test_bad_trials_shrink_the_step(name):
    """NaN and infinite losses of a trial are not accepted."""

    def head(params, z):
        inside = jnp.sqrt(1.5 - jnp.abs(z))  # NaN outside of |z| <= 1.5
        return jnp.where(z < -1.2, -jnp.inf, z) - 1e-3 * inside

    oracle = mtlopt.task_grad({"a": head}, "shared", encode=lambda p: p)
    params = np.float32(1.0)
    tx = SEARCHES[name](mtlopt.mgda(1), upper=16.0)
    after, state, _ = step_of(tx, oracle)(params, tx.init(params))
    assert -1.2 <= after < 1.0
    assert state.trials > 3
    assert not state.hit_floor


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_descent_direction_ends_at_the_floor(name, dtype):
    """The sum of conflicting gradients raises one loss: flagged, moved by the floor."""
    with jax.enable_x64(dtype == np.float64):
        oracle = mtlopt.task_grad(
            {"a": lambda p, z: 9 * jnp.sum(z), "b": lambda p, z: -jnp.sum(z**3)},
            "shared",
            encode=lambda p: p,
        )
        params = np.ones(2, dtype)
        tx = SEARCHES[name](mtlopt.sum_tasks(2), floor=1e-3)
        updates, state = first_update(tx, oracle, params)
        assert state.hit_floor
        np.testing.assert_allclose(state.step_size, 1e-3, rtol=1e-6)
        np.testing.assert_allclose(updates, -1e-3 * np.array([6.0, 6.0]), rtol=1e-5)
        assert least_decrease(state) == 0


@both
def test_floor_after_failed_trials(name):
    """A loss that is nowhere lower: trials down to the floor."""
    oracle = mtlopt.task_grad(
        {"a": lambda p, z: z + 100 * jnp.abs(z - 1.0)}, "shared", encode=lambda p: p
    )
    params = np.float32(1.0)
    tx = SEARCHES[name](mtlopt.mgda(1), floor=0.1, shrink=0.5)
    _, state = first_update(tx, oracle, params)
    assert state.hit_floor
    assert state.trials == 4  # 1, 1/2, 1/4, 1/8
    np.testing.assert_allclose(state.step_size, 0.1, rtol=1e-6)
    nan = mtlopt.task_grad(
        {"a": lambda p, z: z + jnp.where(z < 1, jnp.nan, 0.0)},
        "shared",
        encode=lambda p: p,
    )
    updates, state = first_update(tx, nan, params)
    assert state.hit_floor
    assert state.trials == 4  # 1, 1/2, 1/4, 1/8
    np.testing.assert_allclose(updates, -0.1)


# As an Optax transform.


@functools.cache
def compiled(name):
    return step_of(SEARCHES[name](DIRECTION), make_oracle())


@both
def test_absent_tasks_do_not_count(name, float64):
    """Their loss may rise, or be NaN; their head stands still."""
    params = make_params()
    args = [np.array(leaf) for leaf in first(make_batches())]
    args[1][:, 1] = np.nan
    tx = SEARCHES[name](DIRECTION)
    present = np.array([True, False, True])
    after, state, losses = compiled(name)(
        params, tx.init(params), *args, present=present
    )
    assert np.isnan(losses[1])
    assert not state.hit_floor
    assert least_decrease(state) > 0
    assert_close(after["heads"]["b"], params["heads"]["b"], 0)
    new = np.array(jax.jit(losses_of)(after, *args))
    if name == "BLS":
        assert np.all((new < np.array(losses))[[0, 2]])


@pytest.mark.slow
@both
def test_vmap_and_scan(name, float64):
    """Seeds at once, steps in a loop, each as alone."""
    batches = make_batches()
    tx, oracle = SEARCHES[name](DIRECTION), make_oracle()

    def run(params):
        def body(carry, args):
            params, state = carry
            grads = oracle(params, *args)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), state.trials

        return jax.lax.scan(body, (params, tx.init(params)), batches)

    seeds = [make_params(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *seeds)
    together_run = jax.jit(jax.vmap(run), compiler_options=QUICK)
    (together, _), trials = jax.device_get(together_run(stacked))
    assert len(np.unique(trials)) > 1
    for index, params in enumerate(seeds):
        state = tx.init(params)
        for i in range(len(batches[0])):
            args = [leaf[i] for leaf in batches]
            params, state, _ = compiled(name)(params, state, *args)
            assert state.trials == trials[index, i]
        one = jax.tree.map(lambda leaf, index=index: leaf[index], together)
        assert_close(one, params, 1e-9)


@both
def test_schedule_of_the_upper_bound(name):
    """The first trial halves every two steps, and is accepted on a gentle slope."""
    oracle = mtlopt.task_grad({"a": lambda p, z: z}, "shared", encode=lambda p: p)
    upper = optax.exponential_decay(1.0, 2, 0.5, staircase=True)
    tx = SEARCHES[name](mtlopt.mgda(1), upper=upper)
    params, sizes = np.float32(0.0), []
    step, state = step_of(tx, oracle), tx.init(params)
    for _ in range(6):
        params, state, _ = step(params, state)
        sizes.append(float(state.step_size))
    assert sizes == [1, 1, 0.5, 0.5, 0.25, 0.25]


@both
def test_warm_start(name):
    """From one trial above the last step size: two trials a step instead of ten."""
    oracle = mtlopt.task_grad(
        {"a": lambda p, z: 500 * z**2}, "shared", encode=lambda p: p
    )
    trials = {}
    for warm in (False, True):
        tx = SEARCHES[name](mtlopt.mgda(1), warm_start=warm)
        params = np.float32(3.0)
        step, state = step_of(tx, oracle), tx.init(params)
        found = []
        for _ in range(4):
            params, state, _ = step(params, state)
            found.append(int(state.trials))
        trials[warm] = found
    assert trials[False][0] == trials[True][0] >= 10
    assert min(trials[False]) >= 10
    assert max(trials[True][1:]) <= 2


@both
def test_weightings_may_come_before(name, float64):
    """Scaled losses move their heads by as much more."""
    oracle, params = identity_problem()
    weights = np.array([1.0, 0.5, 0.25])
    inside = SEARCHES[name](optax.chain(mtlopt.weight_by_fixed(weights), DIRECTION))
    outside = optax.chain(mtlopt.weight_by_fixed(weights), SEARCHES[name](DIRECTION))

    def updates(params):
        grads = oracle(params)
        return [
            tx.update(grads, tx.init(params), params)[0] for tx in (inside, outside)
        ]

    assert_close(*jax.jit(updates, compiler_options=QUICK)(params), 1e-10)


def test_aux_and_stacked_heads_and_integers_in_the_latent(float64):
    """The latent is any pytree; trials see the aux that the gradients saw."""

    def head(params, z, task, x):
        chosen = z["z"] @ params["heads"] + z["shift"]
        return jnp.mean((chosen - jnp.asarray(x)[:, task]) ** 2), {"seen": chosen}

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, 2),
        {"w": "shared", "heads": "stacked"},
        encode=lambda p, x: (
            {"z": jnp.tanh(x @ p["w"]), "shift": jnp.array(1)},
            {"mean": jnp.mean(x)},
        ),
        has_aux=True,
    )
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)), "heads": rng.normal(size=(2, 4))}
    x = rng.normal(size=(5, 3))
    for search in SEARCHES.values():
        tx = search(mtlopt.mgda(2))

        def step(params):
            grads = oracle(params, x)
            updates, state = tx.update(grads, tx.init(params), params)
            after = oracle.losses(optax.apply_updates(params, updates), x)
            return grads.aux.encode["mean"], state, grads.losses, after

        mean, state, before, after = jax.jit(step, compiler_options=QUICK)(params)
        np.testing.assert_allclose(mean, np.mean(x), rtol=1e-15)
        assert not state.hit_floor
        if search is mtlopt.backtracking:
            assert np.all(after < before)


# Bad input.


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.0}, "`beta` must be between 0 and 1, got 1.0"),
        ({"shrink": 0.0}, "`shrink` must be between 0 and 1, got 0.0"),
        ({"upper": 0}, "`upper` must be positive, got 0"),
        ({"floor": -1.0}, "`floor` must be positive, got -1.0"),
        ({"upper": 0.1, "floor": 0.2}, "`floor` must be at most `upper`, 0.1, got 0.2"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        SEARCHES[name](DIRECTION, **options)


@both
def test_bad_use(name):
    tx = SEARCHES[name](mtlopt.mgda(2))
    params = np.zeros(2)
    bare = mtlopt.TaskGrads.from_rows(np.eye(2))
    with pytest.raises(ValueError, match=r"`updates` must come from mtlopt.task_grad"):
        tx.update(bare, tx.init(params), params)
    with pytest.raises(ValueError, match="`params` must be passed"):
        tx.update(bare, tx.init(params))
    with pytest.raises(TypeError, match=r"`updates` must be a mtlopt.TaskGrads"):
        tx.update(params, tx.init(params), params)


@both
def test_bad_direction(name):
    """No transform, no aggregator in it, or one that is not built yet."""
    params, oracle = make_params(), make_oracle()
    with pytest.raises(TypeError, match=r"`direction` must be a gradient transf.*mgda"):
        SEARCHES[name](mtlopt.mgda)
    tx = SEARCHES[name](mtlopt.weight_by_dwa(3))
    with pytest.raises(TypeError, match=r"`direction` must be an aggr.*a TaskGrads"):
        trace(tx, oracle, params, *first(make_batches()))


@both
def test_never_above_the_upper_bound(name):
    """Also where a schedule takes it below the floor."""
    oracle = mtlopt.task_grad(
        {"a": lambda p, z: z + jnp.where(z < 1, jnp.nan, 0.0)},
        "shared",
        encode=lambda p: p,
    )
    params = np.float32(1.0)
    tx = SEARCHES[name](mtlopt.mgda(1), upper=lambda count: 0.25**count, floor=0.1)
    state = tx.init(params)
    sizes, step = [], step_of(tx, oracle)
    for _ in range(4):
        _, state, _ = step(params, state)
        sizes.append(float(state.step_size))
    np.testing.assert_allclose(sizes, [0.1, 0.1, 0.0625, 0.015625], rtol=1e-6)


def test_bad_problem_of_fast_backtracking():
    with pytest.raises(ValueError, match="`armijo` must be one of 'full'"):
        mtlopt.fast_backtracking(DIRECTION, armijo="all")
    oracle = mtlopt.task_grad({"a": lambda w: w}, "shared")
    tx = mtlopt.fast_backtracking(mtlopt.mgda(1))
    with pytest.raises(ValueError, match=r"`fast_backtracking` needs.*use `backtrack"):
        trace(tx, oracle, 1.0)
    oracle = mtlopt.task_grad(
        {"a": lambda p, z, x: jnp.sum(z)},
        "shared",
        encode=lambda p, x: p * x,
        microbatches=2,
    )
    with pytest.raises(ValueError, match="`microbatches` must be 1"):
        trace(tx, oracle, 1.0, np.ones(4))
    oracle = mtlopt.task_grad(
        {"a": lambda p, z: jnp.sum(z).astype(jnp.float32)},
        "shared",
        encode=lambda p: p.astype(jnp.bfloat16),
    )
    with pytest.raises(ValueError, match=r"latent must be float32 or wider.*bfloat16"):
        trace(tx, oracle, np.ones(3))
