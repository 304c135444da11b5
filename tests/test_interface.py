"""The battery over `METHODS`: what every method owes Optax, and what it claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import METHODS
from tests.marks import slow
from tests.problems import (
    LABELS,
    QUICK,
    ROUTES,
    STEPS,
    TASKS,
    assert_close,
    first,
    in_parts,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
    matrix_oracle,
    methods_of,
)

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]
NUM_TASKS, SIZE = 4, 6

methods = pytest.mark.parametrize("name", METHODS)
methods_of_three = pytest.mark.parametrize("name", methods_of(3))


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def abstract(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


# What Optax asks of a transform. Traced only: nothing is compiled.


def typed(dtype):
    """Names of the methods that are tried in this precision."""
    few = dtype in DTYPES[1:3]
    return [name for name in methods_of(3) if name in ROUTES or not few]


@functools.cache
def traced(dtype):
    """Shapes of params, and by name of states, updates, and states after loops."""
    methods = {name: METHODS[name].make(3, labels=LABELS) for name in typed(dtype)}
    with jax.enable_x64(dtype == jnp.float64):
        params = cast(make_params(), dtype)
        args = cast(first(make_batches()), dtype)
        oracle = make_oracle()

        @jax.jit  # traced once, and used four times
        def update(states):
            grads = oracle(params, *args)
            found = {
                name: tx.update(grads, states[name], params, unknown_argument=3)
                for name, tx in methods.items()
            }
            return [{name: pair[i] for name, pair in found.items()} for i in (0, 1)]

        def loop(states):
            body = lambda states, _: (update(states)[1], None)  # noqa: E731
            states, _ = jax.lax.scan(body, states, length=2)
            return jax.lax.cond(True, lambda s: update(s)[1], lambda s: s, states)

        init = {n: jax.eval_shape(tx.init, params) for n, tx in methods.items()}
        return params, init, *jax.eval_shape(update, init), jax.eval_shape(loop, init)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in methods_of(3)
        for dtype in DTYPES
        if name in typed(dtype)
    ],
)
def test_types(name, dtype):
    """Updates are like the params; the state keeps its types, in scan and cond."""
    params, *found = traced(dtype)
    init, updates, state, looped = (trees[name] for trees in found)
    assert abstract(state) == abstract(init)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    for update_leaf, leaf in zip(
        jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    ):
        assert (update_leaf.shape, update_leaf.dtype) == (leaf.shape, dtype)
    assert abstract(looped) == abstract(init)


@methods_of_three
def test_state_leaves_do_not_share_buffers(name):
    """Else donating the state fails; and the params are not part of it."""
    params = cast(make_params(), jnp.float32)
    first_state, second = (
        METHODS[name].make(3, labels=LABELS).init(params) for _ in range(2)
    )
    leaves = [
        leaf.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves((first_state, second, params))
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    assert len(set(leaves)) == len(leaves)


@methods_of_three
def test_state_works_with_tree_utilities(name):
    """tree_map_params, and monitoring by optax.tree.get."""
    tx = optax.chain(METHODS[name].make(3, labels=LABELS), optax.adam(0.1))
    params = cast(make_params(), jnp.float32)
    state = tx.init(params)
    doubled = optax.tree_map_params(tx, lambda leaf: leaf + 1, state)
    moments = optax.tree.get(doubled[1], "mu")
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(moments))
    weights = [
        value for _, value in optax.tree.get_all_with_path(state[0], "task_weights")
    ]
    assert weights or name == "sum_tasks"
    assert all(value.shape == (3,) for value in weights)


few_and_others = pytest.mark.parametrize("few", [True, slow(False)])


@pytest.mark.slow
@few_and_others
def test_one_program_for_all_steps_with_donation(few):
    """Params and state are donated; the second step compiles nothing."""
    for names in in_parts(name for name in methods_of(3) if (name in ROUTES) == few):
        assert_one_program(names)


def assert_one_program(names):
    oracle, adam = make_oracle(), optax.adam(1e-2)
    methods = {name: METHODS[name].make(3, labels=LABELS) for name in names}

    @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=QUICK)
    def step(params, state, args):
        """Along the sum of all updates."""
        grads, (states, moments) = oracle(params, *args), state
        out = {n: tx.update(grads, states[n], params) for n, tx in methods.items()}
        total = jax.tree.map(lambda *leaves: sum(leaves), *(u for u, _ in out.values()))
        updates, moments = adam.update(total, moments)
        state = {name: state for name, (_, state) in out.items()}, moments
        return optax.apply_updates(params, updates), state

    params = cast(make_params(), jnp.float32)
    state = {n: tx.init(params) for n, tx in methods.items()}, adam.init(params)
    for i in range(3):
        args = cast([leaf[i] for leaf in make_batches()], jnp.float32)
        params, state = step(params, state, args)
    assert step._cache_size() == 1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


# Numbers, on Jacobians that are given: a program takes all of them.

# They weigh every entry by itself, or gradients averaged over the steps.
NO_WEIGHTS_OF_GRADIENTS = {"graddrop", "trimmed_mean", "moco"}


def linear_problem(names, encoder, rows, losses, present):
    """Methods at latent rows that are given, of a linear encoder, step by step.

    Returns:
      Updates `[steps, size]` and task weights `[steps, tasks]`, by name.
    """

    def head(params, z, task, encoder, rows, losses):
        return jnp.vdot(rows[task], z) + losses[task]

    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, NUM_TASKS),
        "shared",
        encode=lambda w, encoder, *_: encoder @ w,
    )
    methods = {name: METHODS[name].make(NUM_TASKS) for name in names}
    params = jnp.zeros(SIZE, rows.dtype)

    def step(states, batch):
        grads = oracle(params, encoder, *batch, present=present)
        found = {n: tx.update(grads, states[n], params) for n, tx in methods.items()}
        updates, states = ({n: pair[i] for n, pair in found.items()} for i in (0, 1))
        weights = {
            name: mtlopt.task_weights(state)
            for name, state in states.items()
            if name != "sum_tasks" and name not in NO_WEIGHTS_OF_GRADIENTS
        }
        return states, (updates, weights)

    init = {name: tx.init(params) for name, tx in methods.items()}
    return jax.lax.scan(step, init, (rows, losses))[1]


# Numbers that bfloat16 holds exactly.
ROWS = np.random.default_rng(0).normal(size=(NUM_TASKS, SIZE))
ROWS = ROWS.astype(jnp.bfloat16).astype(np.float32)
LOSSES = np.array([1.0, 2.0, 0.5, 4.0], np.float32)
EQUAL_ROW = np.array([3.0, -4.0, 12.0, 0.0, 0.0, 0.0]) / 13


@functools.cache
def problems_by_name():
    """The arguments of `linear_problem`: with equal rows by the number of tasks."""
    everyone, eye = np.ones(NUM_TASKS, bool), np.eye(SIZE)
    rows, losses = (np.stack([leaf] * STEPS) for leaf in (ROWS, LOSSES))
    found = {"generic": (eye, rows, losses, everyone)}
    found["nobody"] = (eye, rows, losses, ~everyone)
    equal = np.tile(EQUAL_ROW, (STEPS, NUM_TASKS, 1)), np.ones((STEPS, NUM_TASKS))
    for count in (1, 2, 4):
        found[count] = (eye, *equal, np.arange(NUM_TASKS) < count)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(STEPS, NUM_TASKS, SIZE))
    losses = rng.random((STEPS, NUM_TASKS)) + 0.5
    found["steps"] = (rng.normal(size=(SIZE, SIZE)), rows, losses, everyone)
    return found


@functools.cache
def solved():
    """Updates and task weights of every method, by name of the problem; float64."""
    problems = problems_by_name()
    stacked = [np.stack(leaves) for leaves in zip(*problems.values(), strict=True)]
    stacked = [leaf if leaf.dtype == bool else np.float64(leaf) for leaf in stacked]
    found = {}, {}
    with jax.enable_x64(True):
        for names in in_parts(METHODS):
            run = jax.jit(jax.vmap(functools.partial(linear_problem, names)))
            for both, part in zip(found, jax.device_get(run(*stacked)), strict=True):
                both.update(part)
    return {
        name: jax.tree.map(lambda leaf, i=i: leaf[i], found)
        for i, name in enumerate(problems)
    }


def first_update(problem, name):
    return solved()[problem][0][name][0]


def make_updates(names):
    """A function of one problem, `(rows, losses)`, to updates by name."""
    transforms = {name: METHODS[name].make(NUM_TASKS) for name in names}
    oracle = matrix_oracle(NUM_TASKS)

    def updates(rows, losses):
        params = jnp.zeros(rows.shape[1:], rows.dtype)
        grads = oracle(params, rows, losses)
        return {
            name: tx.update(grads, tx.init(params), params)[0]
            for name, tx in transforms.items()
        }

    return updates


# Some of the others draw other numbers in single precision.
DOUBLE = [
    name
    for name, method in METHODS.items()
    if name not in ROUTES and "deterministic" not in method.properties
]


@functools.cache
def updates_without_vmap(few, dtype):
    names = DOUBLE
    if dtype != np.float64:
        names = [name for name in METHODS if (name in ROUTES) == few]
    found = {}
    with jax.enable_x64(dtype == np.float64):
        for part in in_parts(names):
            run = jax.jit(make_updates(part), compiler_options=QUICK)
            given = jnp.asarray(ROWS, dtype), jnp.asarray(LOSSES, dtype)
            found |= jax.device_get(run(*given))
    return found


def error(actual, expected, rows):
    """Relative to the gradients' size, so that cancellation counts as rounding."""
    size = np.max(np.linalg.norm(rows, axis=1)) or 1.0
    return np.linalg.norm(actual - expected) / size


@methods_of_three
def test_deterministic_methods_carry_no_key(name):
    state = METHODS[name].make(3).init(np.zeros(2))
    keys = [
        leaf
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    assert (not keys) == ("deterministic" in METHODS[name].properties)


@methods
@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_length_on_equal_gradients(name, num_tasks):
    """T equal unit gradients g give `method.equal(T) g`; other tasks are absent."""
    if num_tasks < METHODS[name].min_tasks:
        pytest.skip("needs more tasks")
    update = first_update(num_tasks, name)
    expected = METHODS[name].equal(num_tasks) * EQUAL_ROW
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7)


@methods
def test_nobody_present_moves_nothing(name):
    assert not np.any(first_update("nobody", name))


@pytest.mark.parametrize(
    "name",
    [name if name in ROUTES else slow(name) for name in METHODS],
)
def test_jit_equals_vmap(name):
    """Without `vmap` a `cond` is one; and no task is absent."""
    dtype = np.float64 if name in DOUBLE else np.float32
    single = updates_without_vmap(name in ROUTES, dtype)[name]
    assert error(single, first_update("generic", name), ROWS) < 1e-5


@pytest.mark.parametrize("name", ROUTES)
def test_eager_equals_jit(name):
    """Operation by operation, for those that stand for all; it compiles each alone."""
    update = make_updates([name])(ROWS, LOSSES)[name]
    assert error(update, first_update("generic", name), ROWS) < 1e-5


@few_and_others
def test_bfloat16_is_float32_rounded(few):
    """The Gramian and the solver are float32 whatever the params are."""
    for name, update in updates_without_vmap(few, jnp.bfloat16).items():
        expected = updates_without_vmap(few, np.float32)[name]
        assert update.dtype == jnp.bfloat16
        # Each of the products and the sum is rounded to 8 bits.
        assert error(update.astype(np.float32), expected, ROWS) < 2**-6, name


# The registry.


@methods
def test_make_passes_options_on(name):
    """An unknown one is an error that names the function that lacks it."""
    parts = "|".join(METHODS[name].public)
    with pytest.raises(TypeError, match=rf"({parts})\(\) got an unexpected .*'kinds'"):
        METHODS[name].make(4, kinds="regression")


def test_options_of_methods():
    """The kind of a loss; averages of DB-MTL, whose labels are passed on then."""
    kinds = ["regression", "classification"]
    state = METHODS["uncertainty"].make(2, kind=kinds).init(None)
    np.testing.assert_array_equal(mtlopt.task_weights(state), [0.5, 1.0])
    state = METHODS["db_mtl"].make(2, decay=0.9).init(np.zeros(3))
    assert state[1].average[0].shape == (2, 3)


# EDM is IMTL-G where all its weights are positive, as they are on this problem.
EQUAL_HERE = [{"edm", "imtl_g"}]


def test_every_two_methods_differ():
    """On generic rows, with conflicts, over four steps."""
    updates, _ = solved()["steps"]
    names = list(updates)
    for i, left in enumerate(names):
        for right in names[:i]:
            if {left, right} not in EQUAL_HERE:
                difference = updates[left] - updates[right]
                assert np.max(np.abs(difference)) > 1e-3, (left, right)


# Public functions that are no part of a method that stands on its own.
HELPERS = {
    "affinity_groups",
    "affinity_step",
    "alternate_blocks",
    "backtracking",
    "block_at",
    "block_step",
    "conflict_rate",
    "cosine_similarity",
    "diagnose",
    "dominance_rate",
    "every",
    "fast_backtracking",
    "front_spread",
    "front_step",
    "hypervolume",
    "individual_optimizers",
    "individual_step",
    "infer_labels",
    "keep_memory",
    "label_params",
    "latent",
    "latent_spread",
    "leave_out",
    "maximum_roaming",
    "non_dominated",
    "ntk_traces",
    "per_label",
    "plot_diagnosis",
    "plot_trade_off",
    "random_groups",
    "samplewise",
    "sharpness_aware",
    "skip_not_finite",
    "stacked",
    "suggestions",
    "task_masks",
    "task_grad",
    "track_distance",
    "train_step",
    "weight_by_annealing",
    "weight_by_fixed",
    "would_rise",
}


def test_every_public_function_is_in_the_registry():
    public = {part for method in METHODS.values() for part in method.public}
    assert public <= set(mtlopt.__all__)
    functions = {
        name for name in mtlopt.__all__ if name[0].islower() and "_weights" not in name
    }
    assert functions == public | HELPERS
    assert not public & HELPERS


def test_public_names_exist_and_are_documented():
    assert len(set(mtlopt.__all__)) == len(mtlopt.__all__)
    for name in mtlopt.__all__:
        assert name == "METHODS" or getattr(mtlopt, name).__doc__, name


@methods
def test_backward_passes_are_as_stated(name):
    """Backward passes of the encoder: products in the program that XLA is given."""
    weight, inputs = np.zeros((64, 64), np.float32), np.zeros((16, 64), np.float32)
    oracle = mtlopt.task_grad(
        mtlopt.stacked(lambda p, z, task, x: jnp.sum(z) * (task + 1.0), 4),
        "shared",
        encode=lambda p, x: jnp.sin(jnp.sin(x @ p)),
        batching="unroll",
    )
    tx = METHODS[name].make(4)

    @jax.jit
    def step(p, x):
        return tx.update(oracle(p, x), tx.init(p), p)[0]

    # One forward pass, and backward passes; with two of them a forward derivative.
    operations = step.lower(weight, inputs).cost_analysis()["flops"]
    products = operations / (2 * 16 * 64 * 64)
    passes = "T" if products > 4.9 else "2" if products > 3.9 else "1"
    assert passes == METHODS[name].backward


def test_seeds_and_steps_of_random_methods():
    """One key, one sequence; each step draws again; two keys differ."""
    rows = np.random.default_rng(0).normal(size=(6, NUM_TASKS, SIZE))
    rows -= 0.9 * rows.mean(axis=1, keepdims=True)  # conflicts among all four
    oracle = matrix_oracle(4)

    def run(key):
        tx = mtlopt.pcgrad(4, key=key)

        def step(state, rows):
            grads = oracle(jnp.zeros(SIZE), rows, jnp.ones(4))
            updates, state = tx.update(grads, state)
            return state, updates

        return jax.lax.scan(step, tx.init(None), jnp.asarray(rows, jnp.float32))[1]

    same, again, other = run(3), run(jax.random.key(3)), run(4)
    assert_close(again, same, 0)
    assert np.max(np.abs(other - same)) > 1e-3


def test_trains_with_ordinary_transforms_behind_it():
    """clip, schedule, Adam and apply_if_finite in one chain; NaN steps are skipped."""
    oracle, params = make_oracle(), cast(make_params(), jnp.float32)
    tx = optax.chain(
        mtlopt.weight_by_uncertainty(3),
        mtlopt.aligned_mtl(3),
        optax.apply_if_finite(
            optax.chain(
                optax.clip_by_global_norm(1.0),
                optax.adam(optax.cosine_decay_schedule(0.1, 40)),
            ),
            max_consecutive_errors=5,
        ),
    )
    args = cast(first(make_batches()), jnp.float32)

    @jax.jit
    def step(params, state, args):
        grads = oracle(params, *args)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads.losses

    state = tx.init(params)
    losses = []
    for _ in range(40):
        params, state, values = step(params, state, args)
        losses.append(float(values.sum()))
    assert losses[-1] < 0.5 * losses[0]
    spoilt = [args[0] * jnp.nan, *args[1:]]
    still, state, _ = step(params, state, spoilt)
    assert_close(still, params, 0)
    assert state[-1].notfinite_count == 1


@pytest.mark.parametrize("name", sorted({*METHODS} - NO_WEIGHTS_OF_GRADIENTS))
def test_task_weights_are_those_of_the_update(name):
    """Shared leaves move by the gradients times `task_weights`, at every step."""
    encoder, latent_rows, *_ = problems_by_name()["steps"]
    updates, weights = solved()["steps"]
    weights = weights.get(name, np.ones((STEPS, NUM_TASKS)))  # the sum keeps none
    expected = np.einsum("stz,zw,st->sw", latent_rows, encoder, weights)
    assert_close(updates[name], expected)


@pytest.fixture(scope="module")
def rows():
    """Gradients of the toy problem's losses, leaves `[steps, tasks, ...]`."""
    with jax.enable_x64(True):
        jacobian = jax.vmap(jax.jacrev(losses_of), in_axes=(None, 0, 0, 0))
        return jax.device_get(jax.jit(jacobian)(make_params(), *make_batches()))


@pytest.mark.parametrize("name", methods_of(3))
def test_heads_get_their_own_gradient(name, plain, plain_states, rows):
    """d L_i / d head_i exactly; times the loss's own scale behind a weighting."""
    scales = np.ones((STEPS, len(TASKS)))
    if any(part.startswith("weight_by") for part in METHODS[name].public):
        # A chain's state; the weighting comes first.
        scales = np.asarray(plain_states[name][0].task_weights)
        assert np.ptp(scales) > 0
    for i, task in enumerate(TASKS):
        expected = jax.tree.map(
            lambda leaf, i=i: np.einsum("s,s...->s...", scales[:, i], leaf[:, i]),
            rows["heads"][task],
        )
        assert_close(plain[name]["heads"][task], expected)


def test_preferences():
    """They may be traced, in one program for many; without one, a method refuses it."""
    taking = [name for name in METHODS if METHODS[name].takes_preference]
    assert {"stch", "epo", "upgrad", "nash_mtl", "aligned_mtl_ub"} <= set(taking)
    rows, losses, params = jnp.ones((3, 4)), jnp.ones(3), jnp.zeros(4)

    def update(preference):
        grads = matrix_oracle(3)(params, rows, losses)
        makers = {name: METHODS[name].make(3, preference=preference) for name in taking}
        states = {name: tx.init(params) for name, tx in makers.items()}
        return {n: tx.update(grads, states[n], params)[0] for n, tx in makers.items()}

    found = jax.eval_shape(jax.vmap(update), jnp.ones((5, 3)))
    assert {leaf.shape for leaf in jax.tree.leaves(found)} == {(5, 4)}
    for name in set(METHODS) - set(taking):
        with pytest.raises(TypeError, match=r"`preference` must not be given") as error:
            METHODS[name].make(4, preference=jnp.ones(4))
        assert METHODS[name].title in str(error.value)
