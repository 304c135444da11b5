"""Individual steps: IUS, IO and groups against loops written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.marks import cpu_only
from tests.problems import (
    LABELS,
    LOSSES,
    QUICK,
    TASKS,
    assert_close,
    encode,
    gradient_of,
    losses_of,
    make_batches,
    make_forty_heads,
    make_oracle,
    make_params,
    temporary_bytes,
)

STEPS = 3
BATCHES = make_batches(steps=STEPS)
INNERS = {"sgd": optax.sgd(0.05), "adam": optax.adam(0.05)}


def batch(step):
    return [leaf[step] for leaf in BATCHES]


def start(tx, params=None):
    params = make_params() if params is None else params
    return mtlopt.Run(params, tx.init(params))


@functools.cache
def optimizers(name, turns=3, share_state=False):
    """Of a name in `INNERS`; the same object for the same arguments."""
    inner = INNERS[name]
    return mtlopt.individual_optimizers(inner, turns, LABELS, share_state=share_state)


@functools.cache
def compiled(tx, make_oracle=make_oracle, **options):
    step = mtlopt.individual_step(make_oracle(), tx, **options)
    return jax.jit(step, compiler_options=QUICK)


def train(tx, make_oracle=make_oracle, params=None, **options):
    """Params, state of the optimizer and losses after some individual steps."""
    keywords = {
        name: options.pop(name) for name in ("groups", "present") & options.keys()
    }
    step = compiled(tx, make_oracle, **options)
    run, losses = start(tx, params), []
    for i in range(STEPS):
        if {"shuffle", "draws"} & options.keys():
            keywords["key"] = jax.random.key(i)
        run, output = step(run, *batch(i), **keywords)
        losses.append(output.losses)
    return run.params, run.opt_state, losses


@functools.cache
def gradients():
    tasks = {task: jax.jit(functools.partial(gradient_of, task)) for task in TASKS}
    return tasks | {
        "sum": jax.jit(jax.grad(lambda p, *args: jnp.sum(losses_of(p, *args))))
    }


@functools.cache
def by_one(name):
    """`(params, state)` after one step of an optimizer in `INNERS`."""

    @jax.jit
    def step(gradient, state, params):
        updates, state = INNERS[name].update(gradient, state)
        return optax.apply_updates(params, updates), state

    return step


def by_hand(name, orders, share_state):
    """Task after task, with optimizers for the trunk and one for each head."""
    params, inner, step = make_params(), INNERS[name], by_one(name)
    trunk = {task: inner.init(params["encoder"]) for task in TASKS}
    heads = {task: inner.init(params["heads"][task]) for task in TASKS}
    for i, order in enumerate(orders):
        for task in order:
            gradient = gradients()[task](params, *batch(i))
            owner = TASKS[0] if share_state else task
            encoder, trunk[owner] = step(
                gradient["encoder"], trunk[owner], params["encoder"]
            )
            head, heads[task] = step(
                gradient["heads"][task], heads[task], params["heads"][task]
            )
            params = {"encoder": encoder, "heads": {**params["heads"], task: head}}
    return params, trunk, heads


@pytest.mark.parametrize("name", INNERS)
@pytest.mark.parametrize("share_state", [True, False], ids=["IUS", "IO"])
def test_equals_sequential_steps(name, share_state, float64):
    """Equations 4, 6 and 7: every task moves what the one before left."""
    params, state, _ = train(optimizers(name, share_state=share_state))
    expected, trunk, heads = by_hand(name, [TASKS] * STEPS, share_state)
    assert_close(params, expected, 1e-12)
    if name == "adam":
        for index, task in enumerate(TASKS):
            own = heads[task][0].mu
            found = state.heads.inner_states[task][0].mu["heads"][task]
            assert_close(found, own, 1e-12)
            if not share_state:
                mu = state.shared.states[0].mu["encoder"]
                one = jax.tree.map(lambda leaf, index=index: leaf[index], mu)
                assert_close(one, trunk[task][0].mu, 1e-12)


def test_ius_and_io_differ_with_memory_only(float64):
    """With SGD they are equal; with Adam they are not."""
    both = {
        name: [
            train(optimizers(name, share_state=shared))[0] for shared in (True, False)
        ]
        for name in INNERS
    }
    assert_close(*both["sgd"], 1e-12)
    left, right = (run["encoder"]["w"] for run in both["adam"])
    assert np.max(np.abs(left - right)) > 1e-3


@pytest.mark.parametrize("name", INNERS)
def test_one_group_is_the_summed_loss(name, float64):
    """Equation 8 with one group: a plain step, for trunk and heads."""
    tx = optimizers(name, turns=1)
    found, _, losses = train(tx, num_groups=1, groups=np.zeros(3, np.int32))
    params, all_losses = make_params(), jax.jit(losses_of)
    state = INNERS[name].init(params)
    for i in range(STEPS):
        np.testing.assert_allclose(losses[i], all_losses(params, *batch(i)), rtol=1e-12)
        gradient = gradients()["sum"](params, *batch(i))
        params, state = by_one(name)(gradient, state, params)
    assert_close(found, params, 1e-12)


def test_as_many_groups_as_tasks_are_individual_steps(float64):
    tx = optimizers("adam")
    grouped = train(tx, num_groups=3, groups=np.arange(3))
    assert_close(grouped[0], train(tx)[0], 1e-12)


def test_two_groups_by_hand(float64):
    """Equation 8: {a, c} move together, then b."""
    found, *_ = train(
        optimizers("adam", turns=2), num_groups=2, groups=np.array([0, 1, 0])
    )
    params = make_params()
    labels = {"encoder": "encoder", "heads": {task: task for task in TASKS}}
    each = mtlopt.per_label(INNERS["adam"], labels)
    states = [each.init(params)] * 2  # of the groups; a head is in one of them only

    @jax.jit
    def move(parts, state, params, active):
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        updates, state = each.update(total, state, params, active=active)
        return optax.apply_updates(params, updates), state

    for i in range(STEPS):
        for group, members in enumerate((("a", "c"), ("b",))):
            parts = [gradients()[task](params, *batch(i)) for task in members]
            active = {task: task in members for task in TASKS}
            params, states[group] = move(parts, states[group], params, active)
    assert_close(found, params, 1e-12)


def test_shuffled_order_is_that_of_the_key(float64):
    """The scan over a drawn order equals the loop in that order."""
    tx = optimizers("adam")
    found, *_ = train(tx, shuffle=True)
    orders = [
        [TASKS[k] for k in jax.random.permutation(jax.random.key(i), jnp.arange(3))]
        for i in range(STEPS)
    ]
    assert len({tuple(order) for order in orders}) > 1
    assert_close(found, by_hand("adam", orders, False)[0], 1e-12)


def test_drawn_tasks_are_those_of_the_key(float64):
    """With replacement: a state moves as often as its task is drawn."""
    tx = optimizers("adam")
    found, state, losses = train(tx, draws=4)
    drawn = [
        np.asarray(jax.random.randint(jax.random.key(i), (4,), 0, 3))
        for i in range(STEPS)
    ]
    orders = [[TASKS[k] for k in order] for order in drawn]
    expected, trunk, _ = by_hand("adam", orders, False)
    assert_close(found, expected, 1e-12)
    times = [sum(order.count(task) for order in orders) for task in TASKS]
    np.testing.assert_array_equal(state.shared.states[0].count, times)
    for index, task in enumerate(TASKS):
        mu = jax.tree.map(
            lambda leaf, index=index: leaf[index], state.shared.states[0].mu["encoder"]
        )
        assert_close(mu, trunk[task][0].mu, 1e-12)
    # A task that is never drawn has no loss, and the others have their own.
    missed = [np.bincount(order, minlength=3) == 0 for order in drawn]
    assert np.any(missed)
    np.testing.assert_array_equal(np.isnan(losses), missed)


def test_a_drawn_tasks_loss_is_the_mean_before_its_turns(float64):
    params = {"trunk": jnp.array(1.0), "a": jnp.array(2.0), "b": jnp.array(3.0)}
    labels = {"trunk": "shared", "a": "a", "b": "b"}
    oracle = mtlopt.task_grad(
        {k: lambda p, z, k=k: p[k] * z for k in "ab"},
        labels,
        encode=lambda p: p["trunk"],
    )
    tx = mtlopt.individual_optimizers(optax.sgd(0.1), 2, labels)
    step = mtlopt.individual_step(oracle, tx, draws=5)
    key = jax.random.key(1)
    _, output = jax.jit(step)(start(tx, params), key=key)
    z, heads, seen = 1.0, [2.0, 3.0], [[], []]
    for k in np.asarray(jax.random.randint(key, (5,), 0, 2)):
        seen[k].append(heads[k] * z)
        z, heads[k] = z - 0.1 * heads[k], heads[k] - 0.1 * z
    assert min(len(losses) for losses in seen) > 1
    np.testing.assert_allclose(output.losses, [np.mean(one) for one in seen])
    assert output.losses.shape == (2,)
    # Absent tasks take no step, drawn or not, and have loss 0.
    present = np.array([True, False])
    run, output = jax.jit(step)(start(tx, params), key=key, present=present)
    assert output.losses[1] == 0
    assert run.params["b"] == 3.0
    assert run.params["a"] != 2.0


def stacked_params():
    params = make_params()
    heads = jax.tree.map(lambda *leaves: np.stack(leaves), *params["heads"].values())
    return {"encoder": params["encoder"], "heads": heads}


@functools.cache
def stacked_optimizers(name, turns=3):
    labels = {"encoder": "shared", "heads": "stacked"}
    return mtlopt.individual_optimizers(INNERS[name], turns, labels)


def stacked_oracle():
    def head(params, z, task, x, y, mask):
        out = z @ params["heads"]["w"] + params["heads"]["b"]
        return jnp.mean((out - jnp.asarray(y)[:, task]) ** 2)

    return mtlopt.task_grad(
        mtlopt.stacked(head, 3),
        {"encoder": "shared", "heads": "stacked"},
        encode=lambda params, x, y, mask: jnp.tanh(
            x @ params["encoder"]["w"] + params["encoder"]["b"]
        ),
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_stacked_heads_equal_separate_heads(grouped, float64):
    """One scan over traced tasks, and the unrolled program."""
    options = {"num_groups": 2, "groups": np.array([1, 0, 1])} if grouped else {}
    turns = 2 if grouped else 3
    tx = stacked_optimizers("adam", turns)
    found, *_ = train(tx, stacked_oracle, stacked_params(), **options)
    expected, *_ = train(optimizers("adam", turns), **options)
    heads = jax.tree.map(lambda *leaves: np.stack(leaves), *expected["heads"].values())
    assert_close(found, {"encoder": expected["encoder"], "heads": heads}, 1e-12)


@cpu_only
def test_a_turn_does_not_copy_the_states_of_all_tasks():
    """Neither of Adam's moments, [tasks, features, width] for the encoder's weight."""
    params = stacked_params()
    tx = stacked_optimizers("adam")
    step = jax.jit(mtlopt.individual_step(stacked_oracle(), tx))
    text = step.lower(start(tx, params), *batch(0)).compile().as_text()
    loop, _ = text.split("ENTRY")
    shape = ",".join(map(str, (3, *params["encoder"]["w"].shape)))
    stacks = [line for line in loop.splitlines() if f"= f32[{shape}]" in line]
    assert stacks
    assert not [line for line in stacks if " copy(" in line]


def test_absent_tasks_take_no_turn(float64):
    """As if the task did not exist; its head and states keep their bits."""
    tx = optimizers("adam")
    found, state, _ = train(tx, present=np.array([True, False, True]))
    expected, *_ = by_hand("adam", [("a", "c")] * STEPS, False)
    assert_close(found, expected, 1e-12)
    np.testing.assert_array_equal(state.shared.states[0].count, [STEPS, 0, STEPS])


@pytest.mark.parametrize("make", ["separate", "stacked"])
def test_absent_tasks_have_no_part_in_their_group(make, float64):
    """As if the group had no such member, whatever its labels are, NaN included."""
    if make == "separate":
        oracle, params, optimizer = make_oracle, make_params(), optimizers
    else:
        oracle, params, optimizer = stacked_oracle, stacked_params(), stacked_optimizers
    tx = optimizer("adam", turns=2)
    step = compiled(tx, oracle, num_groups=2)
    x, y, mask = batch(0)
    spoilt, present = jnp.asarray(y).at[:, 1].set(jnp.nan), np.array([1, 0, 1], bool)
    found = [
        step(
            start(tx, params),
            *(x, labels_of_batch, mask),
            groups=np.array([0, 0, 1]),
            present=present,
        )
        for labels_of_batch in (y, spoilt)
    ]
    (run, output), (other, of_spoilt) = found
    assert_close(other.params, run.params, 0)
    np.testing.assert_array_equal(of_spoilt.losses, output.losses)
    # Alone in its group, the first task takes the same step.
    alone = optimizer("adam")
    single = compiled(alone, oracle)
    expected, _ = single(start(alone, params), x, y, mask, present=present)
    assert_close(run.params, expected.params, 1e-12)


def test_a_task_known_to_be_absent_is_not_run(float64):
    """Its function would raise; the others move as under a traced mask."""

    def refuse(*args):
        raise AssertionError("the loss of an absent task must not be traced")

    tx = optimizers("adam")
    oracle = mtlopt.task_grad(LOSSES | {"b": refuse}, LABELS, encode=encode)
    step = mtlopt.individual_step(oracle, tx)
    known = {"a": True, "b": False, "c": True}
    found, output = jax.jit(
        functools.partial(step, present=known), compiler_options=QUICK
    )(start(tx), *batch(0))
    present = np.array([True, False, True])
    expected, traced = compiled(tx)(start(tx), *batch(0), present=present)
    assert_close(found, expected)
    assert_close(output.losses, traced.losses)


@pytest.mark.parametrize(
    "present", [[True, False, True], (True, False, True), list(np.array([1, 0, 1]) > 0)]
)
def test_present_in_any_form(present, float64):
    """Sequences mean what they mean to the oracle; counts are refused there too."""
    tx = optimizers("sgd")
    found, *_ = train(tx, present=present)
    expected, *_ = train(tx, present=np.array([True, False, True]))
    assert_close(found, expected, 1e-12)
    with pytest.raises(TypeError, match=r"`present` must be bool.*pass x > 0"):
        train(tx, present=[2, 0, 7])


def test_random_groups():
    """Sizes differ by one at most, every task is dealt, and keys matter."""
    for num_tasks, num_groups in ((7, 3), (40, 8), (5, 5), (4, 1)):
        groups = mtlopt.random_groups(0, num_tasks, num_groups)
        sizes = np.bincount(groups, minlength=num_groups)
        assert groups.shape == (num_tasks,)
        assert len(sizes) == num_groups
        assert sizes.max() - sizes.min() <= 1
    draws = {tuple(np.asarray(mtlopt.random_groups(k, 8, 4))) for k in range(4)}
    assert len(draws) == 4


@pytest.mark.slow
def test_vmapped_seeds_have_groups_of_their_own(float64):
    """Groups are traced: each seed deals its own."""
    tx = optimizers("adam", turns=2)
    step = mtlopt.individual_step(make_oracle(), tx, num_groups=2)

    def run(step, params, groups):
        return step(start(tx, params), *batch(0), groups=groups)[0].params

    seeds = [make_params(seed) for seed in range(2)]
    groups = jnp.array([[0, 1, 1], [1, 0, 0]])
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *seeds)
    vmapped = jax.vmap(functools.partial(run, step))
    found = jax.jit(vmapped, compiler_options=QUICK)(together, groups)
    for i, params in enumerate(seeds):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        expected = run(compiled(tx, num_groups=2), params, groups[i])
        assert_close(one, expected, 1e-12)


def test_aux_has_an_axis_of_turns():
    """What every turn's functions returned beside, in order."""
    oracle = mtlopt.task_grad(
        {
            "a": lambda p, z: (p["a"] * z, None),
            "b": lambda p, z: (p["b"] * z, None),
        },
        {"trunk": "shared", "a": "a", "b": "b"},
        encode=lambda p: (p["trunk"], p["trunk"]),
        has_aux=True,
    )
    params = {"trunk": jnp.array(1.0), "a": jnp.array(2.0), "b": jnp.array(3.0)}
    tx = mtlopt.individual_optimizers(
        optax.sgd(0.1), 2, {"trunk": "shared", "a": "a", "b": "b"}
    )
    _, out = mtlopt.individual_step(oracle, tx)(start(tx, params))
    np.testing.assert_allclose([aux.encode for aux in out.aux], [1.0, 0.8], rtol=1e-6)
    shuffled = mtlopt.individual_step(oracle, tx, shuffle=True)
    _, out = shuffled(start(tx, params), key=jax.random.key(0))
    assert out.aux.encode[0] == 1.0
    assert out.aux.encode.shape == (2,)


def test_bad_arguments():
    oracle, params = make_oracle(), make_params()
    tx = mtlopt.individual_optimizers(optax.sgd(0.1), 3, LABELS)
    run = start(tx, params)
    state = run.opt_state
    with pytest.raises(ValueError, match=r"`task` must be the index.*got None"):
        tx.update(params, state, params)
    with pytest.raises(ValueError, match=r"`task` must be.*between 0 and 2, got 3"):
        tx.update(params, state, params, task=3)
    with pytest.raises(ValueError, match="`num_groups` must be an int from 1 to 3"):
        mtlopt.individual_step(oracle, tx, 4)
    with pytest.raises(ValueError, match="`num_groups` must be an int from 1 to 3"):
        mtlopt.random_groups(0, 3, 0)
    with pytest.raises(ValueError, match="`groups` must be passed"):
        mtlopt.individual_step(oracle, tx, 2)(run, *batch(0))
    with pytest.raises(ValueError, match="`key` must be passed"):
        mtlopt.individual_step(oracle, tx, shuffle=True)(run, *batch(0))
    with pytest.raises(ValueError, match=r"`key` must be passed to a step .* `draws`"):
        mtlopt.individual_step(oracle, tx, draws=2)(run, *batch(0))
    with pytest.raises(ValueError, match="`draws` must be a positive int, got 0"):
        mtlopt.individual_step(oracle, tx, draws=0)
    with pytest.raises(ValueError, match="`shuffle` must be False with `draws`"):
        mtlopt.individual_step(oracle, tx, draws=2, shuffle=True)
    with pytest.raises(TypeError, match=r"mtlopt\.individual_step in place of train_"):
        mtlopt.train_step(oracle, tx)(run, *batch(0))
    step = mtlopt.individual_step(oracle, tx)
    with pytest.raises(ValueError, match="`groups` needs a step built with"):
        step(run, *batch(0), groups=jnp.zeros(3, int))
    two = start(mtlopt.individual_optimizers(optax.sgd(0.1), 2, LABELS))
    step = mtlopt.individual_step(oracle, tx, 2)
    with pytest.raises(ValueError, match="`groups` must have one entry per task"):
        step(two, *batch(0), groups=jnp.zeros(2, int))
    with pytest.raises(ValueError, match="`groups` must be between 0 and 1, got 2"):
        step(two, *batch(0), groups=np.array([1, 1, 2]))
    _, output = jax.jit(step)(two, *batch(0), groups=jnp.array([1, 0, 2]))
    np.testing.assert_array_equal(np.isnan(output.losses), [False, False, True])
    with pytest.raises(ValueError, match="`present` must have one entry per task"):
        step(two, *batch(0), groups=np.array([1, 1, 0]), present=[True])
    for task in (np.int64(3), True):
        with pytest.raises(ValueError, match=r"`task` must be.*between 0 and 2, got"):
            tx.update(params, state, params, task=task)


def test_one_group_needs_the_memory_of_a_summed_loss():
    """By XLA's count: no row per task is kept."""
    params, labels, oracle, x = make_forty_heads()
    tx = mtlopt.individual_optimizers(optax.sgd(0.1), 1, labels)
    turn = mtlopt.individual_step(oracle, tx, 1)
    args = start(tx, params), x

    def grouped(run, x):
        return turn(run, x, groups=jnp.zeros(oracle.num_tasks, int))

    def summed(run, x):
        grad = oracle(run.params, x).total()
        params = jax.tree.map(lambda p, g: p - 0.1 * g, run.params, grad)
        return params, run.opt_state

    assert temporary_bytes(grouped, *args) <= 3 * temporary_bytes(summed, *args)


def test_one_function_of_all_losses_takes_turns_unrolled(float64):
    """As with a function a task: convolutions are slow inside a loop on CPU."""
    params = {"w": jnp.array([1.0, 2.0])}
    oracle = mtlopt.task_grad(
        lambda p, x: jnp.stack([jnp.sum(p["w"] * x), jnp.sum(p["w"] ** 2)]),
        "shared",
        tasks=("a", "b"),
    )
    tx = mtlopt.individual_optimizers(optax.sgd(0.1), 2, "shared")
    step = mtlopt.individual_step(oracle, tx)
    x = jnp.array([1.0, -1.0])
    text = str(jax.make_jaxpr(step)(start(tx, params), x))
    assert "scan" not in text
    between = params["w"] - 0.1 * x
    found, output = step(start(tx, params), x)
    np.testing.assert_allclose(found.params["w"], 0.8 * between, rtol=1e-12)
    np.testing.assert_allclose(output.losses, [-1.0, jnp.sum(between**2)], rtol=1e-12)


def test_a_seed_may_be_traced(float64):
    tx = optimizers("adam")
    step = compiled(tx, shuffle=True)
    found, _ = step(start(tx), *batch(0), key=3)
    expected, _ = step(start(tx), *batch(0), key=jax.random.key(3))
    assert_close(found, expected, 0)


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_optimizer_for_another_problem(shuffle):
    """Too many or few states, none at all, or labels that are not the oracle's."""
    oracle = make_oracle()
    step = mtlopt.individual_step(oracle, optax.adam(0.1), shuffle=shuffle)
    key = 0 if shuffle else None
    with pytest.raises(ValueError, match="must have one `individual_optimizers` in it"):
        step(start(optax.adam(0.1)), *batch(0), key=key)
    for number in (1, 4):
        tx = mtlopt.individual_optimizers(optax.adam(0.1), number, LABELS)
        step = mtlopt.individual_step(oracle, tx, shuffle=shuffle)
        with pytest.raises(ValueError, match=f"for 3 tasks or groups.*got {number}"):
            step(start(tx), *batch(0), key=key)
    wrong = LABELS | {"heads": {"a": "shared", "b": "b", "c": "c"}}
    tx = mtlopt.individual_optimizers(optax.adam(0.1), 3, wrong)
    step = mtlopt.individual_step(oracle, tx, shuffle=shuffle)
    with pytest.raises(ValueError, match=r"label of `heads/a.*must be 'a'.*'shared'"):
        step(start(tx), *batch(0), key=key)
