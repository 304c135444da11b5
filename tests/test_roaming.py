"""Maximum Roaming: the plan of the masks, and networks that train under them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt.models import MultiTaskMLP
from tests.models.networks import abstract, random_params, split
from tests.problems import QUICK

NUM_TASKS, NUM_STEPS = 3, 20
WIDTHS = {"conv": 7, "dense": (4, 10)}  # any pytree
USED = {"conv": 3, "dense": (2, 4)}  # 0.4 of them, rounded up
INTERVALS = {"conv": 4, "dense": (6, 2)}  # 20 steps over 5, 3 and 7 phases
ROAMING = mtlopt.maximum_roaming(NUM_TASKS, WIDTHS, 0.4, NUM_STEPS)
LAYERS = {"dense1": 6, "dense2": 6}
SMALL = mtlopt.maximum_roaming(2, LAYERS, 0.5, num_steps=4)


def jitted(function):
    return jax.jit(function, compiler_options=QUICK)


INIT, UPDATE = jitted(ROAMING.init), jitted(ROAMING.update)


def continued(state, steps, update=UPDATE):
    """The states after each of some more steps."""
    states = []
    for _ in range(steps):
        state = update(state)
        states.append(state)
    return states


@functools.cache
def plan():
    """All states from the first on, one more than there are steps."""
    first = INIT(jax.random.key(0))
    return [first, *continued(first, NUM_STEPS)]


def over_time(trees):
    """Per layer `[states, tasks, units]`, with the layer's constants."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    return zip(
        *map(jax.tree.leaves, (stacked, WIDTHS, USED, INTERVALS)),
        strict=True,
    )


def assert_equal(actual, expected):
    def data(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(data(a), data(b)), actual, expected
    )


# The plan.


def test_sharing_ratio_is_constant():
    """Every task uses `ceil(p S)` units of every layer at all times."""
    for masks, _, used, _ in over_time([state.masks for state in plan()]):
        assert masks.dtype == bool
        np.testing.assert_array_equal(masks.sum(axis=-1), used)


def test_one_unit_moves_at_each_interval():
    """One is released, one never used is taken, by every task; else nothing moves."""
    for masks, size, used, interval in over_time([state.masks for state in plan()]):
        for step in range(1, NUM_STEPS + 1):
            before, now = masks[step - 1], masks[step]
            swaps = step % interval == 0 and step // interval <= size - used
            np.testing.assert_array_equal((before & ~now).sum(axis=1), swaps)
            np.testing.assert_array_equal((now & ~before).sum(axis=1), swaps)
            assert not (now & ~before & masks[:step].any(axis=0)).any()


def test_every_task_visits_every_unit():
    """At the last swap and not before; `visited` is what the masks ever held."""
    visited = jax.tree.leaves(plan()[0].visited)
    assert not any(leaf.all() for leaf in visited)
    pairs = zip(
        over_time([state.masks for state in plan()]),
        over_time([state.visited for state in plan()]),
        strict=True,
    )
    for (masks, size, used, interval), (visited, *_) in pairs:
        np.testing.assert_array_equal(visited, np.logical_or.accumulate(masks))
        last = (size - used) * interval
        assert visited[last].all()
        assert (visited[last - 1].sum(axis=1) == size - 1).all()


def test_every_task_trains_every_unit_for_an_interval():
    """Within `num_steps`, those taken last included."""
    for masks, *_, interval in over_time([state.masks for state in plan()[:-1]]):
        assert masks.sum(axis=0).min() >= interval


def test_given_interval():
    """The paper's plan: done in three swaps, however many steps there are."""
    for interval, swaps in ((None, [3, 6, 9]), (2, [2, 4, 6])):
        roaming = mtlopt.maximum_roaming(2, LAYERS, 0.5, 12, interval=interval)
        states = [roaming.init(0)]
        states += continued(states[0], 12, roaming.update)
        masks = np.stack([state.masks["dense1"] for state in states])
        moved = (masks[1:] != masks[:-1]).any(axis=(1, 2))
        np.testing.assert_array_equal(1 + np.flatnonzero(moved), swaps)


def test_first_masks():
    """All units are in use if the tasks can; below, no two tasks share one."""
    cases = [
        (2, 5, 0.5, 3),  # rounded to the nearest, two tasks could not cover five
        (3, 10, 1 / 3, 4),
        (3, 100, 0.07, 7),  # 7.000000000000001 in floating point
    ]

    @jitted
    @jax.vmap
    def draw(key):
        return [
            mtlopt.maximum_roaming(num_tasks, units, ratio, 200).init(key).masks
            for num_tasks, units, ratio, _ in cases
        ]

    drawn = draw(jax.random.split(jax.random.key(0), 5))
    for (num_tasks, units, _, used), masks in zip(cases, drawn, strict=True):
        assert masks.shape == (5, num_tasks, units)
        np.testing.assert_array_equal(masks.sum(axis=2), used)
        users = np.asarray(masks).sum(axis=1)
        if num_tasks * used >= units:
            assert users.min() >= 1
        else:
            assert users.max() == 1


@functools.cache
def small_plans():
    """Keys, and for each the states of `SMALL` at all steps."""

    def run(key):
        body = lambda state, _: (SMALL.update(state), state)  # noqa: E731
        return jax.lax.scan(body, SMALL.init(key), length=4)[1]

    keys = jax.random.split(jax.random.key(0), 2000)
    return keys, jitted(jax.vmap(run))(keys)


def test_no_unit_is_favoured():
    """At each time every task uses each unit with probability `p`, over the keys."""
    masks = np.asarray(small_plans()[1].masks["dense1"])  # [keys, steps, tasks, units]
    deviation = 0.5 / np.sqrt(len(masks))
    np.testing.assert_allclose(masks.mean(axis=0), 0.5, atol=5 * deviation)


def test_tasks_swap_independently():
    """At first the two tasks have three units each and none in common.

    Each takes one of the other's. That it is still in use there, not the one of three
    just released, has probability 2 / 3.
    """
    masks = np.asarray(small_plans()[1].masks["dense1"])
    common = masks.all(axis=2).sum(axis=-1)
    assert not common[:, 0].any()
    shares = np.bincount(common[:, 1]) / len(masks)
    np.testing.assert_allclose(shares, [1 / 9, 4 / 9, 4 / 9], atol=0.05)


def test_successive_swaps_are_independent():
    """The one of three units that was taken last is released next in a third of all."""
    masks = np.asarray(small_plans()[1].masks["dense1"])
    taken = masks[:, 1] & ~masks[:, 0]
    left = (taken & ~masks[:, 2]).any(axis=-1)
    np.testing.assert_allclose(left.mean(axis=0), 1 / 3, atol=0.05)


def test_keys():
    """Two keys differ in the first masks and in the swaps; an int is its key."""
    assert_equal(SMALL.init(0), SMALL.init(jax.random.key(0)))
    other = INIT(jax.random.key(1))
    swapped = continued(plan()[0]._replace(key=other.key), NUM_STEPS)
    for left, right in ((plan()[0], other), (plan()[-1], swapped[-1])):
        layers = zip(*map(jax.tree.leaves, (left.masks, right.masks)), strict=True)
        assert any((a != b).any() for a, b in layers)


def test_vmapped_seeds_and_scan_equal_eager_steps():
    """One program for all seeds and steps, bit for bit that of single runs."""
    keys, together = small_plans()
    for i in range(2):
        first = SMALL.init(keys[i])
        for step, eager in enumerate([first, *continued(first, 3, SMALL.update)]):
            at = (i, step)
            assert_equal(jax.tree.map(lambda leaf, at=at: leaf[at], together), eager)


def test_resumed_state_continues_identically(tmp_path):
    """Its leaves, written to a file half way, are all that the rest needs."""
    half = plan()[9]
    leaves = [half._replace(key=jax.random.key_data(half.key))]
    np.savez(tmp_path / "state.npz", *jax.tree.leaves(leaves))
    with np.load(tmp_path / "state.npz") as file:
        leaves = [jnp.asarray(file[name]) for name in file.files]
    resumed = jax.tree.unflatten(jax.tree.structure(half), leaves)
    resumed = resumed._replace(key=jax.random.wrap_key_data(resumed.key))
    assert_equal(continued(resumed, NUM_STEPS - 9), plan()[10:])


def test_first_state_can_be_donated():
    """No two of its leaves share a buffer."""
    leaves = jax.tree.leaves(SMALL.init(0)._replace(key=None))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tasks": 0}, "`num_tasks` must be at least 1, got 0."),
        ({"sharing_ratio": 0}, "`sharing_ratio` must be above 0 and .* got 0"),
        ({"sharing_ratio": 1.1}, "`sharing_ratio` must be above 0 and .* got 1.1"),
        ({"sharing_ratio": float("nan")}, "`sharing_ratio` must be .* got nan"),
        ({"widths": {}}, "`widths` must have at least one layer"),
        ({"widths": {"a": (3, 0)}}, r"`widths\['a'\]\[1\]` must be .* got 0"),
        ({"widths": {"a": 2.0}}, r"`widths\['a'\]` must be a positive int, got 2.0"),
        ({"num_steps": 5}, "`num_steps` must be at least 6 .* got 5"),
        ({"sharing_ratio": 1e-9, "num_steps": 9}, "at least 10 .* got 9"),  # one in use
        ({"interval": 3}, "`interval` must be between 1 and 2 .* 12 steps, got 3"),
        ({"interval": 0}, "`interval` must be between 1 and 2 .* got 0"),
    ],
)
def test_bad_arguments(changes, message):
    good = {
        "num_tasks": 2,
        "widths": {"a": 10, "b": 4},
        "sharing_ratio": 0.5,
        "num_steps": 12,
    }
    mtlopt.maximum_roaming(**good, interval=2)
    with pytest.raises(ValueError, match=message) as error:
        mtlopt.maximum_roaming(**(good | changes))
    assert "\n" not in str(error.value)


def test_bad_states_and_tasks():
    for num_tasks, widths in ((2, WIDTHS), (NUM_TASKS, {"conv": 7})):
        init = mtlopt.maximum_roaming(num_tasks, widths, 1.0, 1).init
        other = jax.eval_shape(init)
        with pytest.raises(ValueError, match="`state` must have masks of shapes"):
            ROAMING.update(other)
    with pytest.raises(ValueError, match="`task` must be between 0 and 2, got 3"):
        mtlopt.task_masks(plan()[0].masks, 3)


# Training.

TASKS = ("a", "b")
HEADS = {"a": (1,), "b": (1,)}
PARAMS, STATS, MERGE = split(
    abstract(functools.partial(MultiTaskMLP, 3, trunk=(6, 6), heads=HEADS))
)
# No unit is dead; and heads that are alike, with opposite targets, make a conflict.
PARAMS = jax.tree.map(lambda leaf: leaf + np.float32(0.3), random_params(PARAMS))
PARAMS["heads"]["b"] = PARAMS["heads"]["a"]
LABELS = {"encoder": "shared", **{f"heads/{task}": task for task in TASKS}}
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def make_loss(index, task):
    def loss(params, x, masks):
        own = None if masks is None else mtlopt.task_masks(masks, index)
        model = MERGE(params, STATS)
        out = model.heads[task](model.encode(x, own))
        return jnp.mean((out[:, 0] - 5 * (-1.0) ** index) ** 2)

    return loss


# Losses without `encode`: every task has a latent of its own.
ORACLE = mtlopt.task_grad(
    {task: make_loss(index, task) for index, task in enumerate(TASKS)}, LABELS
)


def make_masks(*rows):
    """The two tasks' masks of both layers, written as "110000"."""
    masks = [
        np.array([[unit == "1" for unit in row] for row in rows[i::2]]) for i in (0, 1)
    ]
    return dict(zip(LAYERS, masks, strict=True))


APART = make_masks("110010", "100011", "001101", "011100")
MEETING = make_masks("111010", "110011", "011101", "011101")
WHOLE = make_masks("111111", "111111", "111111", "111111")


@functools.cache
def compiled_rows(oracle):
    def rows(params, masks):
        grads = oracle(params, X, masks)
        return grads.losses, grads.jacobian()["encoder"]

    return jitted(rows)


@pytest.mark.parametrize("masks", [APART, MEETING], ids=["apart", "meeting"])
def test_masked_units_get_no_gradient(masks):
    """Exactly zero: kernels into and out of the unit, and its bias; others get one."""
    _, rows = compiled_rows(ORACLE)(PARAMS, masks)
    used1, used2 = np.asarray(masks["dense1"]), np.asarray(masks["dense2"])
    reached = {
        "dense1": (np.broadcast_to(used1[:, None], (2, 3, 6)), used1),
        "dense2": (used1[:, :, None] & used2[:, None, :], used2),
    }
    for layer, (kernel, bias) in reached.items():
        np.testing.assert_array_equal(rows[layer]["kernel"] != 0, kernel)
        np.testing.assert_array_equal(rows[layer]["bias"] != 0, bias)


def test_full_sharing_is_no_mask():
    """`p = 1`: losses and gradients."""
    roaming = mtlopt.maximum_roaming(2, LAYERS, 1.0, num_steps=1)
    masks = roaming.update(roaming.init(0)).masks
    assert_equal(masks, WHOLE)
    rows = compiled_rows(ORACLE)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        rows(PARAMS, masks),
        rows(PARAMS, None),
    )


def test_stacked_heads_take_the_mask_of_a_traced_task():
    """One network for all tasks, vmapped, has the gradients of two written out."""

    def head(params, task, x, masks):
        model = MERGE({**PARAMS, "encoder": params["encoder"]}, STATS)
        z = model.encode(x, mtlopt.task_masks(masks, task))
        out = z @ params["heads"]["kernel"] + params["heads"]["bias"]
        return jnp.mean((out[:, 0] - 5 * (-1.0) ** task) ** 2)

    heads = [PARAMS["heads"][task]["dense1"] for task in TASKS]
    heads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *heads)
    params = {"encoder": PARAMS["encoder"], "heads": heads}
    labels = {"encoder": "shared", "heads": "stacked"}
    oracle = mtlopt.task_grad(mtlopt.stacked(head, 2), labels)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        compiled_rows(oracle)(params, MEETING),
        compiled_rows(ORACLE)(PARAMS, MEETING),
    )


def aggregated(aggregator):
    tx = optax.chain(aggregator, optax.sgd(0.1))

    def step(params, opt_state, masks):
        updates, opt_state = tx.update(ORACLE(params, X, masks), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return tx.init, step


def individual(share_state):
    inner = optax.sgd(0.1, momentum=0.9)
    tx = mtlopt.individual_optimizers(inner, 2, LABELS, share_state=share_state)
    step = mtlopt.individual_step(ORACLE, tx)

    def move(params, state, masks):
        run, _ = step(mtlopt.Run(params, state), X, masks)
        return run.params, run.opt_state

    return tx.init, move


METHODS = {
    "sum": aggregated(mtlopt.sum_tasks(2)),
    "pcgrad": aggregated(mtlopt.pcgrad(2)),
    "ius": individual(share_state=True),
    "io": individual(share_state=False),
}


@functools.cache
def compiled_steps():
    def steps(carry, masks):
        return {name: METHODS[name][1](*carry[name], masks) for name in METHODS}

    return jitted(steps)


def train(masks_of_steps):
    """All parameters of every method after these steps, as one vector."""
    carry = {name: (PARAMS, init(PARAMS)) for name, (init, _) in METHODS.items()}
    for masks in masks_of_steps:
        carry = compiled_steps()(carry, masks)
    return {
        name: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
        for name, (params, _) in carry.items()
    }


def distance(left, right):
    return np.max(np.abs(left - right))


def test_tasks_without_common_units_do_not_meet():
    """Whatever combines the tasks then, a step is that of their summed loss.

    Their gradients have no parameter in common, so that nothing conflicts, and a task
    that moves first changes nothing for the next. With common units all three differ.
    So does IUS, which repeats the first task's step by its momentum.
    """
    for masks, meets in ((APART, False), (MEETING, True)):
        found = train([masks])
        for name, differs in (("pcgrad", meets), ("io", meets), ("ius", True)):
            apart = distance(found[name], found["sum"])
            assert apart > 1e-3 if differs else apart < 1e-6, (name, apart)


def test_individual_optimizers_and_aggregators_under_roaming():
    """Each trains through a whole plan, and the masks make a difference to all."""
    states = jax.tree.map(lambda leaf: leaf[0], small_plans()[1])
    assert states.visited["dense2"][-1].all()
    found = train([jax.tree.map(lambda m, i=i: m[i], states.masks) for i in range(4)])
    whole = train([WHOLE] * 4)
    assert distance(found["ius"], found["io"]) > 1e-3
    for name in METHODS:
        assert np.isfinite(found[name]).all()
        assert distance(found[name], whole[name]) > 1e-3
