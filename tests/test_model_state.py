"""Model state: the new one is what each function alone would leave."""

import ast
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt

PARAMS = {
    "trunk": jnp.array([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.1]]),
    "a": jnp.array([1.0, -2.0]),
    "b": jnp.array([0.5, 3.0]),
}
LABELS = {"trunk": "shared", "a": "a", "b": "b"}
STATE = {
    "trunk": {"mean": jnp.zeros(2), "count": jnp.array(0)},
    "a": {"mean": jnp.ones(())},
    "b": {"mean": jnp.ones(()), "key": jax.random.key(0)},
}
BATCH = jnp.array([[1.0, 2.0, 0.5], [-1.0, 0.5, 2.0], [0.3, 0.2, 1.0], [2.0, 1.0, 0.1]])


def normalise(z, mean):
    """Centres by the batch, and moves the running mean."""
    batch_mean = jnp.mean(z, axis=0)
    return z - batch_mean, 0.9 * mean + 0.1 * batch_mean


def encode(params, x, state):
    own = state["trunk"]
    z, mean = normalise(x @ params["trunk"], own["mean"])
    return jnp.tanh(z), {**state, "trunk": {"mean": mean, "count": own["count"] + 1}}


def head(task):
    def loss(params, z, x, state):
        out, mean = normalise(z @ params[task], state[task]["mean"])
        own = {**state[task], "mean": mean}
        return jnp.mean((out - x[:, 0]) ** 2), {**state, task: own}

    return loss


LOSSES = {"a": head("a"), "b": head("b")}


def one_after_the_other(params, x, state, tasks=("a", "b")):
    """The state after a forward pass, and the losses."""
    z, state = encode(params, x, state)
    losses = []
    for task in tasks:
        loss, state = LOSSES[task](params, z, x, state)
        losses.append(loss)
    return losses, state


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


ORACLE = mtlopt.task_grad(LOSSES, LABELS, encode=encode, has_state=True)


@pytest.mark.slow
def test_every_call_moves_it_once():
    losses, expected = one_after_the_other(PARAMS, BATCH, STATE)
    losses = jnp.stack(losses)

    @jax.jit
    def calls(params, x, state):
        grads = ORACLE(params, x, state)
        z, _ = encode(params, x, state)
        return (
            (grads.losses, grads.total(), grads.state),
            ORACLE.task("b", params, x, state),
            ORACLE.task([0.0, 2.0], params, x, state),
            ORACLE.block("shared", params, x, state),
            ORACLE.block("task", params, x, state),
            ORACLE.heads(params, z, x, state),
            ORACLE.losses(params, x, state),
            grads.losses_at(params),
        )

    found, task, weights, shared, heads, on_z, of_all, again = calls(
        PARAMS, BATCH, STATE
    )

    def total(params):
        return sum(one_after_the_other(params, BATCH, STATE)[0])

    assert_equal(found, (losses, jax.grad(total)(PARAMS), expected))
    _, of_b = one_after_the_other(PARAMS, BATCH, STATE, "b")
    assert_equal(task.state, of_b)
    assert_equal(weights.state, of_b)  # the other task does not move
    for grad in (shared, heads):
        assert_equal(grad.state, expected)
    assert_equal(on_z.state, {**expected, "trunk": STATE["trunk"]})
    for values in (of_all, again, on_z.losses):
        assert_equal(values, losses)


@pytest.mark.parametrize("known", [True, False])
def test_absent_heads_stand_still(known):
    """Also if their loss is not a number."""
    nan = head("b")
    oracle = mtlopt.task_grad(
        {"a": head("a"), "b": lambda params, z, x, s: nan(params, z, x * jnp.nan, s)},
        LABELS,
        encode=encode,
        has_state=True,
    )
    present = np.array([True, False])
    if known:
        run = jax.jit(lambda *args: oracle(*args, present=present).state)
        found = run(PARAMS, BATCH, STATE)
    else:
        run = jax.jit(lambda present, *args: oracle(*args, present=present).state)
        found = run(jnp.array(present), PARAMS, BATCH, STATE)
    assert_equal(found, one_after_the_other(PARAMS, BATCH, STATE, "a")[1])


def test_microbatches_hand_it_on():
    """In the pullback that evaluates the parts again as well."""
    oracle = mtlopt.task_grad(
        LOSSES, LABELS, encode=encode, has_state=True, microbatches=2
    )

    @jax.jit
    def step(params, x, state):
        grads = oracle(params, x, state)
        tx = mtlopt.in_latent_space(mtlopt.sum_tasks(2))
        return grads.state, tx.update(grads, tx.init(params), params)[0], grads.total()

    state, latent, total = step(PARAMS, BATCH, STATE)
    expected = STATE
    for part in (BATCH[0::2], BATCH[1::2]):
        expected = one_after_the_other(PARAMS, part, expected)[1]
    assert_equal(state, {**expected, "b": {**expected["b"], "key": STATE["b"]["key"]}})
    assert_equal(latent, total)


def test_a_part_without_labels_moves_no_head():
    oracle = mtlopt.task_grad(
        LOSSES,
        LABELS,
        encode=encode,
        has_state=True,
        microbatches=2,
        label_counts=lambda x: {"a": 2, "b": jnp.sum(x[:, 0] < 0)},
    )
    found = jax.jit(oracle)(PARAMS, BATCH, STATE).state
    _, one = one_after_the_other(PARAMS, BATCH[0::2], STATE, "a")
    _, expected = one_after_the_other(PARAMS, BATCH[1::2], one)
    assert_equal(found, expected)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_functions_whose_outputs_are_other_objects(wrap):
    oracle = mtlopt.task_grad(
        {task: wrap(loss) for task, loss in LOSSES.items()},
        LABELS,
        encode=wrap(encode),
        has_state=True,
    )
    found = jax.jit(oracle)(PARAMS, BATCH, STATE).state
    assert_equal(found, one_after_the_other(PARAMS, BATCH, STATE)[1])


def stacked_loss(params, z, task, x, state):
    out, mean = normalise(z @ params["heads"], state["heads"])
    return jnp.mean((out - task * x[:, 0]) ** 2), {**state, "heads": mean}


def stacked_oracle(state_labels):
    return mtlopt.task_grad(
        mtlopt.stacked(stacked_loss, 3),
        {"trunk": "shared", "heads": "stacked"},
        encode=encode,
        has_state=True,
        state_labels=state_labels,
    )


STACKED_PARAMS = {"trunk": PARAMS["trunk"], "heads": jnp.arange(6.0).reshape(3, 2)}
STACKED_STATE = {"trunk": STATE["trunk"], "heads": jnp.arange(3.0)}


def test_stacked_heads_have_an_entry_each():
    oracle = stacked_oracle({"*": "shared", "heads": "stacked"})

    @jax.jit
    def run(task, present):
        args = STACKED_PARAMS, BATCH, STACKED_STATE
        return (
            oracle(*args).state,
            oracle(*args, present=present).state,
            oracle.task(task, *args).state,
        )

    of_all, of_some, of_one = run(1, jnp.array([True, False, True]))
    z, expected = encode(STACKED_PARAMS, BATCH, STACKED_STATE)
    means = jnp.stack(
        [
            normalise(z @ leaf, old)[1]
            for leaf, old in zip(
                STACKED_PARAMS["heads"], STACKED_STATE["heads"], strict=True
            )
        ]
    )
    old = STACKED_STATE["heads"]
    assert_equal(of_all, {**expected, "heads": means})
    assert_equal(of_some, {**expected, "heads": means.at[1].set(old[1])})
    assert_equal(of_one, {**expected, "heads": old.at[1].set(means[1])})


def test_a_stacked_head_writes_its_own_entry_only():
    with pytest.raises(ValueError, match=r"writes the state `heads`.*`state_labels`"):
        jax.eval_shape(stacked_oracle(None), STACKED_PARAMS, BATCH, STACKED_STATE)


def test_one_function_and_who_owns_what():
    oracle = mtlopt.task_grad(
        one_after_the_other,
        LABELS,
        tasks=("a", "b"),
        has_state=True,
        state_labels={"*": "shared", "a": "a", "b": "b"},
    )
    run = jax.jit(lambda *args, present: oracle(*args, present=present).state)
    found = run(PARAMS, BATCH, STATE, present=jnp.array([False, True]))
    assert_equal(found, one_after_the_other(PARAMS, BATCH, STATE, "b")[1])


def counting(params, sample, state):
    return sample @ params["trunk"], {**state, "count": state["count"] + 1}


def of_samples(encode):
    def loss(params, z, sample, state):
        return jnp.vdot(params["a"], z), state

    def other(params, z, sample, state):
        return jnp.vdot(params["b"], z), {**state, "b": state["b"] + 2}

    return mtlopt.task_grad(
        mtlopt.samplewise({"a": loss, "b": other}, lambda x: (x[0] < 0).astype(int)),
        LABELS,
        encode=encode,
        has_state=True,
    )


def test_one_task_per_sample_counts_once():
    """A count, as of drawn masks, is that of the step; keys differ by sample."""
    state = {"count": jnp.array(3), "b": jnp.array(1)}
    found = jax.jit(of_samples(counting))(PARAMS, BATCH, state).state
    assert_equal(found, {"count": jnp.array(4), "b": jnp.array(3)})
    only_a = jax.jit(of_samples(counting))(PARAMS, jnp.abs(BATCH), state).state
    assert_equal(only_a, {"count": jnp.array(4), "b": jnp.array(1)})


def test_one_task_per_sample_has_no_batch_statistics():
    oracle = of_samples(
        lambda params, x, s: (x @ params["trunk"], {**s, "mean": s["mean"] + 1})
    )
    state = {"mean": jnp.zeros(()), "b": jnp.array(1)}
    with pytest.raises(ValueError, match=r"encode writes the state `mean`.*one sample"):
        jax.eval_shape(oracle, PARAMS, BATCH, state)


def test_aux_comes_third():
    def with_aux(function, name):
        return lambda *args: (*function(*args), name)

    oracle = mtlopt.task_grad(
        {task: with_aux(loss, jnp.ones(2)) for task, loss in LOSSES.items()},
        LABELS,
        encode=with_aux(encode, jnp.zeros(3)),
        has_state=True,
        has_aux=True,
    )
    grads = jax.jit(oracle)(PARAMS, BATCH, STATE)
    assert_equal(grads.aux.encode, jnp.zeros(3))
    assert_equal(grads.aux.tasks, {"a": jnp.ones(2), "b": jnp.ones(2)})
    assert_equal(grads.state, one_after_the_other(PARAMS, BATCH, STATE)[1])
    assert ORACLE(PARAMS, BATCH, STATE).aux is None


def test_seeds_side_by_side():
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), STATE)
    found = jax.vmap(lambda state: ORACLE(PARAMS, BATCH, state).state)(states)
    expected = one_after_the_other(PARAMS, BATCH, STATE)[1]
    assert_equal(jax.tree.map(lambda leaf: leaf[1], found), expected)


def returning(change):
    """An encoder that returns other things than it should."""
    return lambda params, x, state: change(*encode(params, x, state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, s: z, r"encode must return \(value, state\), got .*Tracer"),
        (lambda z, s: (z, s, z), r"encode must return \(value, state\), got a tuple"),
        (
            lambda z, s: (z, {"trunk": s["trunk"], "c": 0}),
            "encode must return the whole state that it got, changed or not, but what "
            "it returns lacks `a/mean`, `b/key`, `b/mean` and has in addition `c`",
        ),
        (
            lambda z, s: (z, {**s, "a": {"mean": jnp.ones(3)}}),
            r"encode changes the state `a/mean` from float32\[\] to float32\[3\]",
        ),
        (
            lambda z, s: (z, {**s, "a": {"mean": jnp.array(1)}}),
            r"encode changes the state `a/mean` from float32\[\] to int32\[\]",
        ),
        (
            lambda z, s: (z, {**s, "a": {"mean": s["a"]["mean"] + 1}}),
            "`a/mean` is written by encode and by the loss of task 'a'",
        ),
    ],
)
def test_errors(change, message):
    oracle = mtlopt.task_grad(LOSSES, LABELS, encode=returning(change), has_state=True)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(oracle, PARAMS), BATCH, STATE)


def test_errors_of_arguments():
    with pytest.raises(ValueError, match="`state_labels` must be None"):
        mtlopt.task_grad(LOSSES, LABELS, encode=encode, state_labels="shared")
    with pytest.raises(ValueError, match="the last argument of a call must be the"):
        ORACLE(PARAMS)


def test_labels_are_found_through_it():
    found = mtlopt.infer_labels(
        LOSSES, PARAMS, BATCH, STATE, encode=encode, has_state=True
    )
    assert found == LABELS


def one_function(params, x, state):
    """Both losses, and a count for each task."""
    values = [jnp.sum(params[task] @ params["trunk"].T) for task in ("a", "b")]
    return values, {task: state[task] + 1 for task in ("a", "b")}


COUNTS = {"a": jnp.array(0), "b": jnp.array(0)}


def counting_oracle(labels):
    return mtlopt.task_grad(
        one_function, LABELS, tasks=("a", "b"), has_state=True, state_labels=labels
    )


def test_one_task_of_one_function_moves_its_own_state():
    oracle = counting_oracle({"a": "a", "b": "b"})
    assert_equal(
        oracle.task("a", PARAMS, BATCH, COUNTS).state, {**COUNTS, "a": jnp.array(1)}
    )
    tx = mtlopt.individual_optimizers(optax.sgd(0.1), 2, LABELS)
    run = mtlopt.Run(PARAMS, tx.init(PARAMS), COUNTS)
    step = mtlopt.individual_step(oracle, tx)
    assert_equal(step(run, BATCH)[0].state, {"a": jnp.array(1), "b": jnp.array(1)})
    run, _ = step(run, BATCH, present=jnp.array([True, False]))
    assert_equal(run.state, {"a": jnp.array(1), "b": jnp.array(0)})


def test_owners_of_the_state_of_one_function_are_asked_for():
    """If a task is absent: without labels its state would move."""
    present = jnp.array([True, False])
    oracle = counting_oracle(None)
    with pytest.raises(ValueError, match=r"`state_labels` must say .* state `a`"):
        oracle(PARAMS, BATCH, COUNTS, present=present)
    assert_equal(oracle(PARAMS, BATCH, COUNTS).state, {"a": 1, "b": 1})
    for labels, b in ((("a", "b"), 0), ("shared", 1)):
        grads = counting_oracle(labels)(PARAMS, BATCH, COUNTS, present=present)
        assert_equal(grads.state, {"a": jnp.array(1), "b": jnp.array(b)})


def test_tasks_without_state_may_be_named():
    """If only one head has state, the names of all tasks are right all the same."""
    params = {"a": jnp.ones(()), "b": jnp.ones(())}

    def losses(params, x, state):
        losses = {"a": params["a"] * x, "b": params["b"] * x}
        return losses, {**state, "b": state["b"] + 1}

    oracle = mtlopt.task_grad(
        losses, ["a", "b"], tasks=("a", "b"), has_state=True, state_labels=["a", "b"]
    )
    absent = jnp.array([True, False])
    for state in ({"b": 0}, {"b": 0, "a": {}}):
        assert oracle(params, 1.0, state, present=absent).state == state


@pytest.mark.parametrize(
    ("nest", "path"),
    [
        (lambda a, b: {"stats": {"a": a, "b": b}}, "stats/a"),
        (lambda a, b: {"head_a": a, "head_b": b}, "head_a"),
        (lambda a, b: {"a": a, "heads": {"b": {"count": b}}}, "heads/b"),
        (lambda a, b: {"a": a, "heads": {"b": b}}, "heads/b"),
        (lambda a, b: {"a": {"n": a}, "head_b": {"n": b}}, "head_b"),
    ],
)
def test_names_below_the_root_of_the_state_are_an_error(nest, path):
    """Names that match nothing would make the state of every head shared."""
    params = {"a": jnp.ones(()), "b": jnp.ones(())}

    def losses(params, x, state):
        new = jax.tree.map(lambda count: count + 1, state)
        return {"a": params["a"] * x, "b": params["b"] * x}, new

    def oracle(labels):
        return mtlopt.task_grad(
            losses, ["a", "b"], tasks=("a", "b"), has_state=True, state_labels=labels
        )

    state, present = nest(0, 0), jnp.array([True, False])
    name = path[-1]
    with pytest.raises(ValueError, match=f"the name '{name}' matches no leaf") as info:
        oracle(["a", "b"])(params, 1.0, state, present=present)
    advice = re.search(r"such as ({.*?})", str(info.value))[1]
    assert f"'{path}': '{name}'" in advice
    for labels in (ast.literal_eval(advice), nest("a", "b")):  # both heads are named
        grads = oracle(labels)(params, 1.0, state, present=present)
        assert grads.state == nest(1, 0)


def test_labels_of_the_state_are_checked():
    with pytest.raises(ValueError, match=r"`state_labels` must fit it.* 'c' matches"):
        counting_oracle({"*": "shared", "c": "a"})(PARAMS, BATCH, COUNTS)
    with pytest.raises(ValueError, match=r"`state_labels` must be one of .*'c'"):
        counting_oracle(["a", "c"])
    with pytest.raises(ValueError, match="state `a` must be one of 'shared', 'a', 'b'"):
        counting_oracle({"a": "A", "b": "b"})(PARAMS, BATCH, COUNTS)
    with pytest.raises(ValueError, match=r"state `b` must be one of .*got 'stacked'"):
        counting_oracle({"a": "a", "b": "stacked"})(PARAMS, BATCH, COUNTS)
    oracle = stacked_oracle({"*": "shared", "heads": "stacked"})
    with pytest.raises(ValueError, match=r"`heads` must have a leading task axis of s"):
        oracle(STACKED_PARAMS, BATCH, {**STACKED_STATE, "heads": jnp.zeros(2)})
    oracle = mtlopt.task_grad(
        LOSSES,
        LABELS,
        encode=encode,
        has_state=True,
        state_labels={"*": "shared", "trunk/mean": "b"},
    )
    with pytest.raises(ValueError, match="`trunk/mean` is labelled 'b', but encode w"):
        oracle(PARAMS, BATCH, STATE)


def test_a_state_made_of_the_sample_is_refused():
    oracle = of_samples(
        lambda params, x, s: (
            x @ params["trunk"],
            {**s, "n": s["n"] + (x[0] > 0).astype(int)},
        )
    )
    with pytest.raises(
        ValueError, match="encode computes the state `n` from its arguments"
    ):
        jax.eval_shape(oracle, PARAMS, BATCH, {"n": jnp.array(0), "b": jnp.array(1)})


@pytest.mark.parametrize("skips", ["step", "task"])
def test_a_skipped_step_keeps_the_state(skips):
    """Where one task is left out, what stays finite moves."""
    tx = mtlopt.skip_not_finite(
        optax.chain(mtlopt.sum_tasks(2), optax.sgd(0.1)), per_task=skips == "task"
    )
    nan = head("b")
    oracle = mtlopt.task_grad(
        {"a": head("a"), "b": lambda params, z, x, s: nan(params, z * jnp.nan, x, s)},
        LABELS,
        encode=encode,
        has_state=True,
    )
    run = mtlopt.Run(PARAMS, tx.init(PARAMS), STATE)
    run, _ = jax.jit(mtlopt.train_step(oracle, tx))(run, BATCH)
    expected = STATE
    if skips == "task":
        expected = one_after_the_other(PARAMS, BATCH, STATE, "a")[1]
    assert_equal(run.state, expected)


def test_keys_in_arrays_and_a_state_as_long_as_the_batch():
    """Of the parts of a batch neither is cut."""
    oracle = mtlopt.task_grad(
        {"a": lambda p, z, x, s: (jnp.vdot(p["a"], z[0]), s)},
        {"trunk": "shared", "a": "a"},
        encode=lambda p, x, s: (x @ p["trunk"], {**s, "sum": s["sum"] + jnp.sum(x)}),
        has_state=True,
        microbatches=2,
    )
    state = {"sum": jnp.zeros(len(BATCH)), "keys": jax.random.split(jax.random.key(0))}
    params = {name: PARAMS[name] for name in ("trunk", "a")}
    found = jax.jit(oracle)(params, BATCH, state).state
    np.testing.assert_allclose(found["sum"], jnp.sum(BATCH), rtol=1e-6)
    alone = mtlopt.task_grad(
        {"a": lambda p, z, x, s: (jnp.vdot(p["a"], z[0]), s)},
        {"trunk": "shared", "a": "a"},
        encode=lambda p, x, s: (x @ p["trunk"], s + 1),
        has_state=True,
        microbatches=2,
    )
    found = jax.jit(alone)(params, BATCH, jnp.zeros(len(BATCH))).state
    np.testing.assert_array_equal(found, 2)


@pytest.mark.parametrize("copy", [jnp.copy, jax.lax.stop_gradient])
def test_a_copy_is_not_written(copy):
    """By the functions that pass all of the state through it, under `jit`."""

    def through(function):
        return lambda *args: function(*args[:-1], jax.tree.map(copy, args[-1]))

    oracle = mtlopt.task_grad(
        {task: through(loss) for task, loss in LOSSES.items()},
        LABELS,
        encode=through(encode),
        has_state=True,
    )
    found = jax.jit(oracle)(PARAMS, BATCH, STATE).state
    assert_equal(found, one_after_the_other(PARAMS, BATCH, STATE)[1])


def test_one_function_and_a_task_known_to_be_absent():
    """Its loss may read nothing then."""
    oracle = mtlopt.task_grad(
        lambda p, x: [jnp.sum(p["a"] @ p["trunk"].T), jnp.zeros([])],
        LABELS,
        tasks=("a", "b"),
    )
    assert oracle(PARAMS, BATCH, present=[True, False]).losses[1] == 0
    with pytest.raises(ValueError, match="task 'b' reads no leaf that is labelled 'b'"):
        oracle(PARAMS, BATCH)


@pytest.mark.parametrize("steps", ["blocks", "turns"])
def test_skipped_steps_of_alternation_keep_the_state(steps):
    """As the step of a chain does; a turn that is not skipped moves its own."""
    oracle = mtlopt.task_grad(
        {
            "a": head("a"),
            "b": lambda params, z, x, s: head("b")(params, z * jnp.nan, x, s),
        },
        LABELS,
        encode=encode,
        has_state=True,
    )
    if steps == "blocks":
        inner = mtlopt.alternate_blocks(optax.sgd(0.1), optax.sgd(0.1), LABELS)
        make, expected = mtlopt.block_step, STATE
    else:
        inner = mtlopt.individual_optimizers(optax.sgd(0.1), 2, LABELS)
        make = mtlopt.individual_step
        expected = one_after_the_other(PARAMS, BATCH, STATE, "a")[1]
    tx = mtlopt.skip_not_finite(inner)
    run = mtlopt.Run(PARAMS, tx.init(PARAMS), STATE)
    run, _ = jax.jit(make(oracle, tx))(run, BATCH)
    assert_equal(run.state, expected)
