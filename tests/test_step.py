"""Training steps: the loops that they replace, with and without model state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState

import mtlopt
from tests.problems import QUICK, assert_close

TASKS, STEPS, RATE = ("a", "b"), 4, 0.1
LABELS = {"trunk": "shared", "a": "a", "b": "b"}
X = jax.random.normal(jax.random.key(0), (STEPS, 8, 3))


def jitted(function, **options):
    return jax.jit(function, compiler_options=QUICK, **options)


def make_params():
    """Of jax, and new ones every time, so that they can be donated."""
    return {
        "trunk": jnp.array([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.1]], float),
        "a": jnp.array([1.0, -2.0], float),
        "b": jnp.array([0.5, 3.0], float),
    }


def make_state():
    heads = {
        task: {"mean": jnp.ones((), float), "key": jax.random.key(i)}
        for i, task in enumerate(TASKS)
    }
    trunk = {"mean": jnp.zeros(2, float), "count": jnp.zeros((), int)}
    return {"trunk": trunk, **heads}


def encode(params, x, state):
    """A layer that centres by the batch, and remembers running means."""
    z = x @ params["trunk"]
    mean, old = jnp.mean(z, axis=0), state["trunk"]
    own = {"mean": 0.9 * old["mean"] + 0.1 * mean, "count": old["count"] + 1}
    return jnp.tanh(z - mean), {**state, "trunk": own}


def make_loss(task, sign):
    """A head that drops features: the next step's by the key that this one leaves."""

    def loss(params, z, x, state):
        key, now = jax.random.split(state[task]["key"])
        out = (z * jax.random.bernoulli(now, 0.8, z.shape)) @ params[task]
        own = {"mean": 0.9 * state[task]["mean"] + 0.1 * jnp.mean(out), "key": key}
        return jnp.mean((out - sign * x[:, 0] - 0.5) ** 2), {**state, task: own}

    return loss


LOSSES = {"a": make_loss("a", 1), "b": make_loss("b", -1)}
ORACLE = mtlopt.task_grad(LOSSES, LABELS, encode=encode, has_state=True)


def forward(params, x, state, tasks=TASKS):
    """Losses of a forward pass, and the state that it leaves."""
    z, state = encode(params, x, state)
    losses = {}
    for task in tasks:
        losses[task], state = LOSSES[task](params, z, x, state)
    return losses, state


@functools.partial(jitted, static_argnums=3)
def descent(params, x, state, tasks=TASKS):
    """Gradient of the summed losses of some tasks; their losses, and the state."""

    def total(params):
        losses, new = forward(params, x, state, tasks)
        return sum(losses.values()), (losses, new)

    gradient, (losses, state) = jax.grad(total, has_aux=True)(params)
    return gradient, losses, state


def moved(params, gradient, names=("trunk", *TASKS)):
    """One step of gradient descent for some of the leaves."""
    return {**params, **{name: params[name] - RATE * gradient[name] for name in names}}


def start(tx):
    params = make_params()
    return mtlopt.Run(params, tx.init(params), make_state())


jitted_forward = jitted(forward)


def plain(tree):
    """Keys replaced by their data."""

    def data(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(data, tree)


def same_bits(left, right):
    left, right = plain(left), plain(right)
    assert jax.tree.structure(left) == jax.tree.structure(right)
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


# A weighting that learns, a random aggregator, and an optimizer for each label.
CHAIN = optax.chain(
    mtlopt.weight_by_uncertainty(2),
    mtlopt.graddrop(2, key=0),
    mtlopt.per_label(optax.adam(RATE), LABELS),
)
SEARCHES = {
    "backtracking": mtlopt.backtracking(mtlopt.mgda(2)),
    "fast_backtracking": mtlopt.fast_backtracking(mtlopt.mgda(2)),
}


@functools.cache
def compiled(tx, **options):
    return jitted(mtlopt.train_step(ORACLE, tx), **options)


def test_is_gradient_descent(float64):
    """Without any method: parameters, losses and state of the summed loss."""
    tx = optax.chain(mtlopt.sum_tasks(2), optax.sgd(RATE))
    run, step = start(tx), compiled(tx)
    params, state = make_params(), make_state()
    for x in X:
        run, output = step(run, x)
        gradient, losses, state = descent(params, x, state)
        params = moved(params, gradient)
        assert_close(run.params, params, 1e-12)
        assert_close(plain(run.state), plain(state), 1e-12)
        np.testing.assert_allclose(output.losses, list(losses.values()), rtol=1e-12)
    assert output.aux is None


def test_a_train_state_of_flax_takes_the_whole_chain(float64):
    """It looks in the gradients for a key of leaves that it would overwrite."""
    tx = optax.chain(mtlopt.sum_tasks(2), optax.sgd(RATE))
    params, state = make_params(), make_state()
    train_state = TrainState.create(apply_fn=None, params=params, tx=tx)

    @jitted
    def step(train_state, x, state):
        grads = ORACLE(train_state.params, x, state)
        return train_state.apply_gradients(grads=grads), grads.state

    train_state, new = step(train_state, X[0], state)
    gradient, _, expected = descent(params, X[0], state)
    assert_close(train_state.params, moved(params, gradient), 1e-12)
    assert_close(plain(new), plain(expected), 1e-12)


def test_equals_the_loop_to_the_bit():
    @jitted
    def by_hand(run, x):
        grads = ORACLE(run.params, x, run.state)
        updates, opt_state = CHAIN.update(
            grads, run.opt_state, run.params, active=grads.active
        )
        params = optax.apply_updates(run.params, updates)
        return mtlopt.Run(params, opt_state, grads.state), grads.losses

    run = expected = start(CHAIN)
    for x in X:
        run, output = compiled(CHAIN)(run, x)
        expected, losses = by_hand(expected, x)
        assert same_bits(run, expected)
        np.testing.assert_array_equal(output.losses, losses)
    assert compiled(CHAIN)._cache_size() == 1


@pytest.mark.parametrize("name", SEARCHES)
def test_a_line_search_lowers_all_losses_of_its_batch(name):
    """And its trials move no state: that is the one of a single forward pass."""
    run, step = start(SEARCHES[name]), compiled(SEARCHES[name])
    for x in X:
        after, output = step(run, x)
        lower, _ = jitted_forward(after.params, x, run.state)
        losses, state = jitted_forward(run.params, x, run.state)
        assert_close(output.losses, np.array([*losses.values()]), 1e-6)
        assert np.all(np.array([*lower.values()]) < output.losses)
        assert_close(plain(after.state), plain(state), 1e-6)
        run = after
    assert step._cache_size() == 1


def test_further_arguments_reach_the_optimizer(float64):
    """FAMO's logits after a step by `z (d - <z, d>)`, from equal weights `z`."""
    tx = optax.chain(
        mtlopt.weight_by_famo(2, optimizer=optax.sgd(1.0)),
        mtlopt.sum_tasks(2),
        optax.sgd(RATE),
    )
    run, step = start(tx), compiled(tx)
    after = np.full(2, np.nan)  # nothing is learned at the first update
    for i in range(2):
        x, state = X[i], run.state
        run, output = step(run, x, losses_after=after)
        if i == 0:
            after = np.array([*jitted_forward(run.params, x, state)[0].values()])
            fall = np.log(output.losses) - np.log(after)
    expected = -0.5 * (fall - np.mean(fall))
    np.testing.assert_allclose(run.opt_state[0].logits, expected, rtol=1e-9)
    assert np.abs(expected).max() > 1e-3


def test_misspelt_arguments_are_named():
    """Transforms ignore what they do not know, so a step looks for likely mistakes."""
    turns = mtlopt.individual_optimizers(optax.sgd(0.1), 2, LABELS)
    step = mtlopt.individual_step(ORACLE, turns)
    with pytest.raises(TypeError, match=r"argument 'group'\. Did you mean `groups`"):
        step(start(turns), X[0], group={"a": 0, "b": 1})
    step = mtlopt.train_step(ORACLE, CHAIN)
    with pytest.raises(TypeError, match=r"argument 'presents'\. Did you .*`present`"):
        step(start(CHAIN), X[0], presents=None)
    with pytest.raises(TypeError, match=r"argument 'trace'\. Did you mean `traces`"):
        step(start(CHAIN), X[0], trace=None)


def test_is_the_body_of_a_scan():
    step = mtlopt.train_step(ORACLE, CHAIN)
    found, outputs = jitted(lambda run: jax.lax.scan(step, run, X))(start(CHAIN))
    run = start(CHAIN)
    for i, x in enumerate(X):
        run, output = compiled(CHAIN)(run, x)
        np.testing.assert_allclose(outputs.losses[i], output.losses, rtol=1e-5)
    assert_close(plain(found), plain(run), 1e-5)


def test_donated():
    """All that is read of the run is written over, and nothing else changes."""
    step = jitted(mtlopt.train_step(ORACLE, CHAIN), donate_argnums=0)
    expected, run = start(CHAIN), jax.tree.map(jnp.copy, start(CHAIN))
    for x in X:
        before = run
        run, _ = step(run, x)
        expected, _ = compiled(CHAIN)(expected, x)
        read = before.params, before.opt_state[2], before.state
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(read))
        assert same_bits(run, expected)


def of_task(run, task):
    """All that belongs to a task: its head, the optimizer's state and the model's."""
    *_, labels = run.opt_state
    return run.params[task], labels.inner_states[task], run.state[task]


def assert_moves_alone(before, after, there, absent):
    assert same_bits(of_task(before, absent), of_task(after, absent))
    parts = zip(of_task(before, there), of_task(after, there), strict=True)
    assert not any(same_bits(old, new) for old, new in parts)
    assert not same_bits(before.params["trunk"], after.params["trunk"])
    assert after.state["trunk"]["count"] == before.state["trunk"]["count"] + 1


def test_heads_of_absent_tasks_stand_still():
    """Who is absent changes from step to step, in one program."""
    step = jitted(mtlopt.train_step(ORACLE, CHAIN))
    run = start(CHAIN)
    for i, x in enumerate(X):
        after, _ = step(run, x, present=np.arange(2) == i % 2)
        assert_moves_alone(run, after, TASKS[i % 2], TASKS[1 - i % 2])
        run = after
    assert step._cache_size() == 1


def test_heads_of_tasks_known_to_be_absent_stand_still():
    run, step = start(CHAIN), mtlopt.train_step(ORACLE, CHAIN)
    known = functools.partial(step, present={"a": True, "b": False})
    assert_moves_alone(run, jitted(known)(run, X[0])[0], "a", "b")


@pytest.mark.parametrize("with_state", [True, False])
def test_resumes_to_the_bit(with_state, tmp_path):
    """Through a file: a run is the whole checkpoint."""
    if with_state:
        step, init = compiled(CHAIN), functools.partial(start, CHAIN)
    else:
        tx = optax.chain(mtlopt.sum_tasks(2), optax.adam(RATE))
        losses = {
            task: lambda params, z, x, task=task: jnp.mean(
                (z @ params[task] - x[:, 0]) ** 2
            )
            for task in TASKS
        }
        oracle = mtlopt.task_grad(losses, LABELS, encode=lambda p, x: x @ p["trunk"])
        step = jitted(mtlopt.train_step(oracle, tx))

        def init():
            return mtlopt.Run(make_params(), tx.init(make_params()))

    run = init()
    with ocp.StandardCheckpointer() as checkpointer:
        for i, x in enumerate(X):
            if i == 2:
                checkpointer.save(tmp_path / "run", run)
            run, _ = step(run, x)
        checkpointer.wait_until_finished()
        resumed = checkpointer.restore(tmp_path / "run", jax.eval_shape(init))
    assert isinstance(resumed, mtlopt.Run)
    for x in X[2:]:
        resumed, _ = step(resumed, x)
    assert same_bits(resumed, run)


def test_aux_is_in_the_output():
    def with_aux(function, aux):
        return lambda *args: (*function(*args), aux)

    oracle = mtlopt.task_grad(
        {task: with_aux(loss, jnp.ones(2)) for task, loss in LOSSES.items()},
        LABELS,
        encode=with_aux(encode, jnp.zeros(3)),
        has_aux=True,
        has_state=True,
    )
    tx = optax.chain(mtlopt.sum_tasks(2), optax.sgd(RATE))
    _, output = jax.eval_shape(mtlopt.train_step(oracle, tx), start(tx), X[0])
    assert output.aux.encode.shape == (3,)
    assert {task: aux.shape for task, aux in output.aux.tasks.items()} == {
        "a": (2,),
        "b": (2,),
    }


BLOCKS = mtlopt.alternate_blocks(optax.sgd(RATE), optax.sgd(RATE), LABELS)
TURNS = mtlopt.individual_optimizers(optax.sgd(RATE), 2, LABELS)
MAKE = {
    "train": (mtlopt.train_step, optax.chain(mtlopt.sum_tasks(2), optax.sgd(RATE))),
    "block": (mtlopt.block_step, BLOCKS),
    "individual": (mtlopt.individual_step, TURNS),
}


@pytest.mark.parametrize("name", MAKE)
def test_state_that_is_missing_or_not_asked_for(name):
    make, tx = MAKE[name]
    run = start(tx)
    with pytest.raises(ValueError, match=r"`run.state` must be the model's.*None"):
        make(ORACLE, tx)(run._replace(state=None), X[0])
    oracle = mtlopt.task_grad({"a": lambda params: params["a"][0]}, "shared")
    with pytest.raises(ValueError, match=r"`run.state` must be None unless"):
        make(oracle, tx)(run)


@pytest.mark.parametrize("name", MAKE)
def test_something_else_where_a_run_is_meant(name):
    make, tx = MAKE[name]
    params = make_params()
    with pytest.raises(TypeError, match=r"`run` must be a mtlopt\.Run, got dict"):
        make(ORACLE, tx)(params, tx.init(params), X[0])


@pytest.mark.parametrize("how", ["count", "phases"])
def test_blocks_carry_the_state(how, float64):
    """Both blocks run all functions: every step moves all of it."""
    run = start(BLOCKS)
    params, state = make_params(), make_state()
    steps = {
        block: jitted(mtlopt.block_step(ORACLE, BLOCKS, block))
        for block in ((None,) if how == "count" else ("shared", "task"))
    }
    for i, x in enumerate(X):
        block = mtlopt.block_at(i)
        run, output = steps[None if how == "count" else block](run, x)
        gradient, losses, state = descent(params, x, state)
        params = moved(params, gradient, ("trunk",) if block == "shared" else TASKS)
        assert_close(run.params, params, 1e-12)
        assert_close(plain(run.state), plain(state), 1e-12)
        np.testing.assert_allclose(output.losses, list(losses.values()), rtol=1e-12)


def in_turn(run, x, turns):
    """Some tasks together in each turn, at what the turn before left."""
    params, _, state = run
    losses = {}
    for tasks in turns:
        gradient, own, state = descent(params, x, state, tasks)
        params, losses = moved(params, gradient, ("trunk", *tasks)), losses | own
    return mtlopt.Run(params, run.opt_state, state), losses


HOW = {"in order": {}, "shuffled": {"shuffle": True}, "grouped": {"num_groups": 2}}


@functools.cache
def turns_of(how):
    return jitted(mtlopt.individual_step(ORACLE, TURNS, **HOW[how]))


@pytest.mark.parametrize("how", HOW)
def test_turns_hand_the_state_on(how, float64):
    """The encoder's moves in every turn, a head's in its own."""
    run = expected = start(TURNS)
    orders = set()
    for i, x in enumerate(X):
        turns, keywords = [("a",), ("b",)], {}
        if how == "shuffled":
            keywords = {"key": jax.random.key(i)}
            order = jax.random.permutation(keywords["key"], jnp.arange(2))
            turns = [turns[k] for k in order]
            orders.add(tuple(order.tolist()))
        elif how == "grouped":
            turns, keywords = turns[::-1], {"groups": np.array([1, 0])}
        run, output = turns_of(how)(run, x, **keywords)
        expected, losses = in_turn(expected, x, turns)
        assert_close(run.params, expected.params, 1e-12)
        assert_close(plain(run.state), plain(expected.state), 1e-12)
        found = ORACLE.named(output.losses)
        assert_close(found, {task: losses[task] for task in TASKS}, 1e-12)
    assert run.state["trunk"]["count"] == STEPS * len(TASKS)
    assert how != "shuffled" or len(orders) == 2


def test_the_turn_of_an_empty_group_moves_no_state(float64):
    run = start(TURNS)
    found, _ = turns_of("grouped")(run, X[0], groups=np.array([1, 1]))
    expected, _ = in_turn(run, X[0], [TASKS])
    assert_close(found.params, expected.params, 1e-12)
    assert_close(plain(found.state), plain(expected.state), 1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_turns_of_absent_tasks_move_no_state(known, float64):
    """In an unrolled program, and in a scan over a shuffled order."""
    present = {"a": True, "b": False} if known else np.array([True, False])
    step = mtlopt.individual_step(ORACLE, TURNS, shuffle=not known)
    run = start(TURNS)
    if known:
        found, output = jitted(functools.partial(step, present=present))(run, X[0])
    else:
        found, output = jitted(step)(run, X[0], present=present, key=0)
    expected, losses = in_turn(run, X[0], [("a",)])
    assert_close(found.params, expected.params, 1e-12)
    assert_close(plain(found.state), plain(expected.state), 1e-12)
    np.testing.assert_allclose(output.losses, [losses["a"], 0], rtol=1e-12)


def test_turns_of_stacked_heads_move_their_entry(float64):
    """One scan over traced tasks: the state is a part of its carry."""

    def head(params, z, task, x, state):
        out = z @ params["heads"]
        mean = 0.9 * state["heads"] + 0.1 * jnp.mean(out)
        return jnp.mean((out - task * x[:, 0]) ** 2), {**state, "heads": mean}

    labels = {"trunk": "shared", "heads": "stacked"}
    oracle = mtlopt.task_grad(
        mtlopt.stacked(head, 2),
        labels,
        encode=encode,
        has_state=True,
        state_labels={"trunk": "shared", "heads": "stacked"},
    )
    params = make_params()
    params = {
        "trunk": params["trunk"],
        "heads": jnp.stack([params["a"], params["b"]]),
    }
    state = {"trunk": make_state()["trunk"], "heads": jnp.array([1.0, 2.0])}
    tx = mtlopt.individual_optimizers(optax.sgd(RATE), 2, labels)
    run = mtlopt.Run(params, tx.init(params), state)
    step = jitted(mtlopt.individual_step(oracle, tx))

    @functools.partial(jitted, static_argnums=0)
    def turn(task, params, state, x):
        def loss(params):
            z, new = encode(params, x, state)
            own = {"heads": params["heads"][task]}
            value, new = head(own, z, task, x, {**new, "heads": new["heads"][task]})
            return value, {**new, "heads": state["heads"].at[task].set(new["heads"])}

        gradient, state = jax.grad(loss, has_aux=True)(params)
        return moved(params, gradient, ("trunk", "heads")), state

    for x in X[:2]:
        run, _ = step(run, x)
        for task in range(2):
            params, state = turn(task, params, state, x)
        assert_close(run.params, params, 1e-12)
        assert_close(run.state, state, 1e-12)


@pytest.mark.parametrize(
    "chain",
    [
        mtlopt.upgrad(2),
        mtlopt.every(2, mtlopt.upgrad(2)),
        mtlopt.METHODS["dwa"].make(2),
        optax.chain(mtlopt.METHODS["dwa"].make(2)),
        optax.named_chain(("method", mtlopt.mgda(2))),
        mtlopt.skip_not_finite(mtlopt.mgda(2)),
        optax.chain(mtlopt.mgda(2), mtlopt.track_distance("shared")),
        optax.inject_hyperparams(lambda c: mtlopt.cagrad(2, c))(0.5),
    ],
    ids=[
        "aggregator",
        "every",
        "weighted sum",
        "nested",
        "named",
        "skips",
        "distance",
        "injected",
    ],
)
def test_a_chain_without_an_optimizer(chain):
    """It would climb: an update is added."""
    with pytest.raises(TypeError, match="must end with an optimizer"):
        jax.eval_shape(mtlopt.train_step(ORACLE, chain), start(chain), X[0])


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.clip_by_global_norm(1.0),
        optax.chain(optax.clip_by_global_norm(1.0), mtlopt.mgda(2)),
        optax.chain(mtlopt.weight_by_dwa(2), optax.sgd(0.1)),
        mtlopt.weight_by_dwa(2),
    ],
    ids=["adam", "clip", "clip before", "weighting before sgd", "weighting"],
)
def test_a_chain_without_an_aggregator_in_its_place(optimizer):
    """Op by op and under `jit`, whatever the first transform would have done."""
    oracle = mtlopt.task_grad(
        {task: lambda p, z, x, task=task: z @ p[task] for task in TASKS},
        LABELS,
        encode=lambda p, x: x @ p["trunk"],
    )
    step, params = mtlopt.train_step(oracle, optimizer), make_params()
    run = mtlopt.Run(params, optimizer.init(params))
    for make in (lambda step: step, jax.jit):
        with pytest.raises(TypeError, match="`optimizer` must have an aggregator"):
            make(step)(run, X[0, 0])


SEARCH = mtlopt.backtracking(mtlopt.mgda(2))


@pytest.mark.parametrize(
    ("optimizer", "is_error"),
    [
        (optax.chain(SEARCH, optax.adam(0.1)), True),
        (optax.chain(mtlopt.weight_by_dwa(2), SEARCH, optax.sgd(0.1)), True),
        (optax.chain(SEARCH, mtlopt.per_label(optax.sgd(0.1), LABELS)), True),
        (optax.chain(SEARCH, optax.scale_by_learning_rate(0.1)), True),
        (optax.named_chain(("search", SEARCH), ("adam", optax.adam(0.1))), True),
        (mtlopt.skip_not_finite(optax.chain(SEARCH, optax.adam(0.1))), True),
        (optax.chain(mtlopt.skip_not_finite(SEARCH), optax.adam(0.1)), True),
        (SEARCH, False),
        (optax.chain(mtlopt.weight_by_dwa(2), SEARCH), False),
        (optax.chain(SEARCH, mtlopt.track_distance(LABELS)), False),
        (optax.named_chain(("search", SEARCH)), False),
    ],
)
def test_an_optimizer_after_a_line_search_is_an_error(optimizer, is_error):
    """The search has chosen the step, and an optimizer would reverse its sign."""
    oracle = mtlopt.task_grad(
        {task: lambda p, z, x, task=task: z @ p[task] for task in TASKS},
        LABELS,
        encode=lambda p, x: x @ p["trunk"],
    )
    params = make_params()
    run = mtlopt.Run(params, optimizer.init(params))
    step = functools.partial(jax.eval_shape, mtlopt.train_step(oracle, optimizer))
    if is_error:
        with pytest.raises(TypeError, match="must end with its line search"):
            step(run, X[0, 0])
    else:
        step(run, X[0, 0])


def test_arguments_in_the_wrong_place_are_named():
    oracle, optimizer = mtlopt.task_grad({"a": jnp.sum}, "shared"), optax.sgd(0.1)
    with pytest.raises(TypeError, match="Pass the oracle first, and then the opt"):
        mtlopt.train_step(optimizer, oracle)
    step = mtlopt.train_step(oracle, optax.chain(mtlopt.mgda(1), optimizer))
    for wrong in (None, optimizer):
        with pytest.raises(TypeError, match=r"`run.opt_state` must be optimizer\.init"):
            step(mtlopt.Run(jnp.ones(2), wrong))
    with pytest.raises(TypeError, match=r"must take 2 arg.* a latent, pass `encode`"):
        mtlopt.task_grad({"a": lambda p, z, x: z}, "shared")(jnp.ones(2), X)
