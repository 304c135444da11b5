"""Absent tasks: a method acts as if the problem did not have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import mtlopt
from mtlopt import METHODS
from mtlopt.rows.members import Members
from mtlopt.slopes import slopes
from tests.marks import slow
from tests.problems import (
    LABELS,
    LOSSES,
    QUICK,
    ROUTES,
    TASKS,
    assert_close,
    encode,
    first,
    make_batches,
    make_oracle,
    make_params,
    make_run,
    methods_of,
    updates_of,
)

PARAMS, BATCHES = make_params(), make_batches()
PRESENT = np.array([True, False, True])


def spoilt(batches):
    """The labels of task b are NaN, and so are its loss and all its gradients."""
    x, y, mask = batches
    y = y.copy()
    y[..., 1] = np.nan
    return x, y, mask


def names_of(few, num_tasks=2):
    """One method of each route, or the others."""
    return tuple(name for name in methods_of(num_tasks) if (name in ROUTES) == few)


@functools.cache
def program(few):
    """For any mask."""
    return make_run(make_oracle(), names_of(few, 3))


@functools.cache
def masked(few):
    return program(few)(PARAMS, spoilt(BATCHES), PRESENT)[0]


@functools.cache
def without(*, few):
    """The problem of tasks a and c alone."""
    kept = ("a", "c")
    oracle = mtlopt.task_grad(
        {task: LOSSES[task] for task in kept},
        {"encoder": "shared", **{f"heads/{task}": task for task in kept}},
        encode=encode,
    )
    heads = {task: PARAMS["heads"][task] for task in kept}
    params = PARAMS | {"heads": heads}
    return updates_of(oracle, params, BATCHES, names=names_of(few))


@pytest.mark.parametrize(
    "name",
    [name if name in ROUTES else slow(name) for name in methods_of(2)],
)
def test_absent_task_is_left_out(name):
    """A(J with row b masked) = A(J without row b), also where b is NaN."""
    few = name in ROUTES
    expected, found = without(few=few)[name], masked(few)[name]
    assert_close(found["encoder"], expected["encoder"])
    assert_close({t: found["heads"][t] for t in "ac"}, expected["heads"])
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found["heads"]["b"]))


@pytest.mark.parametrize("name", ["mgda", "mean_tasks"])
def test_absent_is_not_zero(name):
    """A zero gradient stops MGDA and shortens the mean; an absent one does not."""
    rows = np.random.default_rng(0).normal(size=(3, 4))
    rows[1] = 0
    method = METHODS[name].make(3)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def update(present):
        grads = mtlopt.TaskGrads.from_rows(jnp.asarray(rows), present=present)
        return method.update(grads, method.init(jnp.zeros(4)))[0]

    zero, left_out = update(np.ones(3, bool)), update(PRESENT)
    assert np.linalg.norm(left_out) > 1.4 * np.linalg.norm(zero)


def whole(loss):
    """A task's loss without a common latent."""
    return lambda params, *args: loss(params, encode(params, *args), *args)


def oracle_of(option, losses):
    """Oracles for every route that handles absent rows on its own."""
    if option == "independent":
        return mtlopt.task_grad({t: whole(losses[t]) for t in TASKS}, LABELS)
    if option == "vector":
        return mtlopt.task_grad(
            lambda *args: [whole(losses[task])(*args) for task in TASKS],
            LABELS,
            tasks=TASKS,
        )
    if option == "microbatches":
        return mtlopt.task_grad(
            {
                task: lambda params, z, batch, loss=loss: loss(params, z, *batch)
                for task, loss in losses.items()
            },
            LABELS,
            encode=lambda params, batch: encode(params, *batch),
            microbatches=2,
        )
    options = {
        "latent": {},
        "streaming": {"streaming": True},
        "vmap": {"batching": "vmap"},
    }[option]
    return mtlopt.task_grad(losses, LABELS, encode=encode, **options)


def options_run(option, losses, present, names=("sum_tasks", "aligned_mtl")):
    names = list(names)
    names += [] if option in ("independent", "vector") else ["aligned_mtl_ub"]
    batches = (spoilt(BATCHES),) if option == "microbatches" else spoilt(BATCHES)
    oracle = oracle_of(option, losses)
    return updates_of(oracle, PARAMS, batches, present=present, names=names)


@pytest.mark.parametrize(
    "option", ["streaming", slow("vmap"), "independent", slow("microbatches")]
)
def test_absent_nan_task_is_left_out_on_every_route(option):
    for name, found in options_run(option, LOSSES, PRESENT).items():
        assert_close(found, masked(True)[name])


def refuse(*args):
    raise AssertionError("the loss of an absent task must not be traced")


UNREAD = LOSSES | {"b": refuse}


@pytest.mark.parametrize(
    ("option", "losses"),
    [
        slow("latent", UNREAD),
        ("streaming", UNREAD),
        ("independent", UNREAD),
        slow("microbatches", UNREAD),
        ("vector", LOSSES),  # one function, whose scalar for b is NaN
    ],
)
def test_a_task_known_to_be_absent_is_not_run(option, losses):
    """Python bools give the updates of a mask, and b's loss is never called."""
    names = ("sum_tasks", "aligned_mtl")
    if option == "latent":
        names = [name for name in ROUTES if name in methods_of(2)]
    known = dict(zip(TASKS, PRESENT.tolist(), strict=True))
    for name, found in options_run(option, losses, known, names).items():
        assert_close(found, masked(True)[name])


@pytest.mark.parametrize(
    "option", ["latent", "independent", slow("microbatches"), slow("vector")]
)
def test_all_that_methods_read_of_a_task_known_to_be_absent(option, float64):
    """Losses, rows, slopes, trial losses and heads are those of a traced mask."""
    oracle, batch = oracle_of(option, LOSSES), first(BATCHES)
    batch = (batch,) if option == "microbatches" else batch
    update, weights = jax.tree.map(np.ones_like, PARAMS), jnp.array([1.0, 3.0, 2.0])

    def read(present):
        grads = oracle(PARAMS, *batch, present=present)
        assert grads.active.keys() == {"shared", *TASKS}
        if present is PRESENT:
            assert grads.active == {"shared": True, "a": True, "b": False, "c": True}
        out = {
            "losses": grads.losses,
            "losses at": grads.losses_at(update),
            "z": grads.z,
            "jacobian": grads.jacobian()["encoder"],
            "total": grads.total(),
            # The third field, a scale of rounding, may shrink with the losses.
            "slopes": slopes(grads, update)[:2],
        }
        if grads.linear.has_latent:
            latent = grads.in_latent_space()
            out["gramian"] = latent.rows().gramian()
            out["combination"] = latent.combine(weights)
        return out

    known = jax.jit(lambda: read(PRESENT), compiler_options=QUICK)()
    traced = jax.jit(read, compiler_options=QUICK)(jnp.asarray(PRESENT))
    for name in ("losses", "losses at"):
        traced[name] = np.where(PRESENT, traced[name], 0)
    assert_close(known, traced)


@pytest.mark.parametrize("option", ["latent", "independent", "microbatches", "vector"])
def test_nobody_known_to_be_present_moves_nothing(option, float64):
    losses = LOSSES if option == "vector" else dict.fromkeys(TASKS, refuse)
    batch = first(BATCHES)
    batch = (batch,) if option == "microbatches" else batch

    def read():
        grads = oracle_of(option, losses)(PARAMS, *batch, present=[False] * 3)
        return grads.total(), grads.losses, grads.rows().gramian()

    zeros = jax.tree.map(np.zeros_like, PARAMS)
    expected = zeros, np.zeros(3), np.zeros((3, 3))
    assert_close(jax.jit(read, compiler_options=QUICK)(), expected)


def test_zero_rows_have_the_sharding_of_the_others():
    """With JAX's sharding-in-types they could not be stacked otherwise."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = jax.device_put(jnp.ones((2, 4)), PartitionSpec(None, "x"))
        spread = jax.jit(Members((0, 2), 3).spread)(rows)
    np.testing.assert_array_equal(spread, [[1] * 4, [0] * 4, [1] * 4])
    assert spread.sharding.spec == PartitionSpec(None, "x")


@pytest.mark.parametrize("known", [True, False])
def test_stacked_heads(known, float64):
    """The absent task's slice of a stacked leaf gets zeros."""
    params = {"w": np.array([1.0, 2.0]), "heads": np.ones((3, 2))}
    oracle = mtlopt.task_grad(
        mtlopt.stacked(
            lambda p, z, task, y: jnp.vdot(p["heads"], z) * jnp.asarray(y)[task], 3
        ),
        {"w": "shared", "heads": "stacked"},
        encode=lambda p, y: p["w"],
    )

    def read(params, present):
        grads = oracle(params, np.array([1.0, np.nan, 3.0]), present=present)
        return grads.total(), grads.in_latent_space().rows().leaves()

    given = (lambda params, _: read(params, PRESENT)) if known else read
    total, latent = jax.jit(given)(params, PRESENT)
    np.testing.assert_allclose(latent, [[[1, 1], [0, 0], [3, 3]]])
    np.testing.assert_allclose(total["heads"], [[1, 2], [0, 0], [3, 6]])
    np.testing.assert_allclose(total["w"], [4, 4])


def test_nobody_present_moves_nothing():
    """Nor with any other method: that is in `test_interface`."""
    updates, _ = program(True)(PARAMS, BATCHES, np.zeros(3, bool))
    for name, update in updates.items():
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(update)), name


def test_present_may_be_traced(float64):
    """One program for all masks."""
    oracle = make_oracle()
    step = jax.jit(
        lambda present: oracle(PARAMS, *first(BATCHES), present=present).total()
    )
    for task, mask in zip(TASKS, np.eye(3, dtype=bool), strict=True):
        heads = step(mask)["heads"]
        moved = {name for name in TASKS if np.any(heads[name]["w"])}
        assert moved == {task}
    assert step._cache_size() == 1


def test_active_names_what_moves(float64):
    """The mapping that `per_label` takes: only labels that have leaves."""

    def active_of(present):
        return make_oracle()(PARAMS, *first(BATCHES), present=present).active

    def known(present):
        return jax.jit(lambda: active_of(present))()

    assert known(None) is None
    active = known(PRESENT)
    assert {key: bool(value) for key, value in active.items()} == {
        "shared": True,
        "a": True,
        "b": False,
        "c": True,
    }
    nobody = known(np.zeros(3, bool))
    assert not any(nobody.values())

    headless = mtlopt.task_grad(
        {"a": lambda p, z: p["a"] * z, "b": lambda p, z: z},
        {"w": "shared", "a": "a"},
        encode=lambda p: p["w"],
        headless=["b"],
    )
    params = {"w": 1.0, "a": 1.0}
    assert set(headless(params, present=[True, True]).active) == {"shared", "a"}
    stacked = mtlopt.task_grad(
        mtlopt.stacked(lambda p, z, task: jnp.sum(p["heads"] * z), 2),
        {"w": "shared", "heads": "stacked"},
        encode=lambda p: p["w"],
    )
    params = {"w": jnp.ones(()), "heads": jnp.ones((2, 1))}
    active = stacked(params, present=[True, False]).active
    np.testing.assert_array_equal(active["stacked"], [True, False])
