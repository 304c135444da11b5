"""Vectors of tasks by name, wherever one is taken, and entries that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from tests.problems import (
    LABELS,
    TASKS,
    assert_close,
    first,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
)

PREFERENCES = {
    "aligned_mtl": mtlopt.aligned_mtl,
    "conflict_free": mtlopt.conflict_free,
    "upgrad": mtlopt.upgrad,
    "dualproj": mtlopt.dualproj,
    "mean_tasks": mtlopt.mean_tasks,
    "sdmgrad": lambda n, preference: mtlopt.sdmgrad(n, preference, 3.0),
    "chebyshev": mtlopt.weight_by_chebyshev,
    "stch": lambda n, preference: mtlopt.weight_by_stch(n, preference=preference),
    "cosmos": lambda n, preference: mtlopt.weight_by_cosmos(n, preference=preference),
    "pbi": lambda n, preference: mtlopt.weight_by_pbi(n, preference=preference),
}
OTHERS = {
    "fixed": ("weights", lambda _, weights: mtlopt.weight_by_fixed(weights)),
    "leak": ("leak", lambda n, leak: mtlopt.graddrop(n, leak)),
    "min_losses": (
        "min_losses",
        lambda n, bounds: mtlopt.weight_by_famo(n, min_losses=bounds),
    ),
    **{
        f"reference of {name}": ("reference", make)
        for name, make in {
            "chebyshev": lambda n, z: mtlopt.weight_by_chebyshev(n, reference=z),
            "stch": lambda n, z: mtlopt.weight_by_stch(n, reference=z),
            "pbi": lambda n, z: mtlopt.weight_by_pbi(n, reference=z),
        }.items()
    },
}
ARGUMENTS = {name: ("preference", make) for name, make in PREFERENCES.items()} | OTHERS
NAMES = ("b", "a")  # not in the order of the alphabet


def gradients(tasks=NAMES):
    rows = jnp.array([[2.0, -1.0, 0.0], [1.0, 1.0, 3.0]])
    return mtlopt.TaskGrads.from_rows(rows, [1.0, 1.5], tasks=tasks)


def update_of(tx, grads):
    """The update, or the scales of a weighting, and the state."""
    found, state = tx.update(grads, tx.init(jnp.zeros(3)), jnp.zeros(3))
    return getattr(found, "loss_scales", found), state


@pytest.mark.parametrize("name", ARGUMENTS)
def test_names_are_the_vector_in_the_order_of_the_tasks(name):
    argument, make = ARGUMENTS[name]
    by_vector, by_name = make(2, [0.25, 0.75]), make(2, {"a": 0.75, "b": 0.25})
    expected, found = update_of(by_vector, gradients()), update_of(by_name, gradients())
    assert_close(found[0], expected[0], 1e-6)
    states = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
        for state in (by_name.init(jnp.zeros(3)), by_vector.init(jnp.zeros(3)))
    ]
    assert states[0] == states[1]
    swapped = update_of(make(2, {"a": 0.25, "b": 0.75}), gradients())
    assert not np.allclose(swapped[0], expected[0], rtol=1e-3)
    with pytest.raises(
        ValueError, match=rf"`{argument}` must have the keys \('b', 'c'"
    ):
        update_of(by_name, gradients(("b", "c")))
    with pytest.raises(ValueError, match=f"`{argument}` must have (one|the keys)"):
        update_of(make(2, {"a": 0.25}), gradients())


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ([1.0, -1.0], r"`preference\[1\]` must be finite and at least 0, got -1"),
        (np.array([np.nan, 1.0]), r"`preference\[0\]` must be finite.*got nan"),
        (jnp.array([1.0, jnp.inf]), r"`preference\[1\]` must be finite.*got inf"),
        ({"a": 1.0, "b": -2.0}, r"`preference\['b'\]` must be finite.*got -2"),
        ([0, 0], "`preference` must have a positive entry, got zeros only"),
        ({"a": 0.0, "b": 0.0}, "`preference` must have a positive entry"),
    ],
)
def test_a_preference_that_is_none(name, preference, message):
    with pytest.raises(ValueError, match=message):
        PREFERENCES[name](2, preference)


def test_what_other_vectors_may_hold():
    """Zero and negative weights of losses are meant; nothing else than numbers is."""
    mtlopt.weight_by_fixed({"a": -1.0, "b": 0.0})
    with pytest.raises(ValueError, match=r"`weights\[1\]` must be finite, got nan"):
        mtlopt.weight_by_fixed([1.0, jnp.nan])
    with pytest.raises(
        ValueError, match=r"`leak\['b'\]` must be between 0 and 1, got 2"
    ):
        mtlopt.graddrop(2, {"a": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match=r"`reference\[0\]` must be finite, got inf"):
        mtlopt.weight_by_pbi(2, reference=[np.inf, 0.0])


def test_tracers_pass():
    """Traced values are not looked at, alone, in a mapping, or injected."""

    def update(value, preference):
        return update_of(mtlopt.mean_tasks(2, preference(value)), gradients())[0]

    expected = gradients().combine(jnp.array([-1.0, 1.0]))
    for preference in (
        lambda value: jnp.stack([value, 1.0]),
        lambda value: {"a": 1.0, "b": value},
        lambda value: [value, 1.0],
    ):
        found = jax.jit(update, static_argnums=1)(-1.0, preference)
        assert_close(found, expected, 1e-6)
    tx = optax.inject_hyperparams(mtlopt.mean_tasks, static_args="num_tasks")(
        2, preference=jnp.array([1.0, 2.0])
    )
    assert_close(
        jax.jit(lambda: update_of(tx, gradients())[0])(),
        gradients().combine(jnp.array([1.0, 2.0])),
        1e-6,
    )


def test_pure_functions_take_vectors_only():
    with pytest.raises(
        TypeError, match=r"`preference` must be an array.*got a mapping"
    ):
        mtlopt.upgrad_weights(jnp.eye(2), {"a": 1.0, "b": 1.0})


# The oracle, its gradients, and what else takes a vector of tasks.

PARAMS, ARGS = make_params(), first(make_batches())


def test_weights_of_a_task_by_name(float64):
    oracle = make_oracle()
    found = oracle.task({"c": 2.0, "a": 1.0, "b": 0.0}, PARAMS, *ARGS)
    assert_close(found.grad, oracle.task([1.0, 0.0, 2.0], PARAMS, *ARGS).grad)
    with pytest.raises(
        ValueError, match=r"`task` must have the keys \('a', 'b', 'c'\)"
    ):
        oracle.task({"a": 1.0}, PARAMS, *ARGS)


def test_losses_and_masks_of_rows_by_name():
    grads = mtlopt.TaskGrads.from_rows(
        jnp.eye(2),
        {"a": 3.0, "b": 4.0},
        {"a": True, "b": False},
        tasks=NAMES,
    )
    assert_close(grads.losses, jnp.array([4.0, 3.0]))
    assert grads.present.tolist() == [False, True]


def test_kinds_and_later_losses_by_name():
    kinds = {"a": "classification", "b": "regression"}
    by_name, in_order = (
        update_of(mtlopt.weight_by_uncertainty(2, kind), gradients())
        for kind in (kinds, ["regression", "classification"])
    )
    assert_close(by_name, in_order, 1e-6)
    with pytest.raises(ValueError, match=r"`kind` must have the keys \('b', 'c'\)"):
        update_of(mtlopt.weight_by_uncertainty(2, kinds), gradients(("b", "c")))

    tx = mtlopt.weight_by_famo(2)
    _, state = tx.update(gradients(), tx.init(jnp.zeros(3)))
    after = {"a": 0.5, "b": 2.0}
    by_name, in_order = (
        tx.update(gradients(), state, losses_after=losses)[1]
        for losses in (after, [2.0, 0.5])
    )
    assert_close(by_name, in_order, 1e-6)


def test_groups_and_states_by_name(float64):
    """The same steps as by index."""
    oracle = make_oracle()
    tx = mtlopt.individual_optimizers(optax.sgd(0.1, momentum=0.9), 2, LABELS)
    step = mtlopt.individual_step(oracle, tx, 2)
    by_name, in_order = (
        step(mtlopt.Run(PARAMS, tx.init(PARAMS)), *ARGS, groups=groups)
        for groups in ({"a": 0, "b": 1, "c": 0}, [0, 1, 0])
    )
    assert_close(by_name, in_order)

    tx = mtlopt.individual_optimizers(optax.sgd(0.1, momentum=0.9), 3, LABELS)
    state, partition = tx.init(PARAMS), oracle.partition(PARAMS)
    grad = oracle.task("b", PARAMS, *ARGS).grad
    members = {"a": False, "b": True, "c": False}
    by_name = tx.update(grad, state, PARAMS, task="b", partition=partition)
    active = oracle.active(PARAMS, members)
    assert_close(by_name, tx.update(grad, state, PARAMS, task=1, active=active))
    for keywords, message in (
        ({}, "`partition` must be given with the name of a task, 'b'"),
        ({"task": "d", "partition": partition}, "`task` must be one of 'a', 'b', 'c'"),
    ):
        with pytest.raises(ValueError, match=message):
            tx.update(grad, state, PARAMS, **({"task": "b"} | keywords))


def test_label_counts_by_name(float64):
    def oracle(counts):
        return mtlopt.task_grad(
            {
                task: lambda p, z, x, task=task: jnp.mean(p[task] * z * x)
                for task in NAMES
            },
            {"w": "shared", "a": "a", "b": "b"},
            encode=lambda params, x: params["w"] * x,
            microbatches=2,
            label_counts=counts,
        )

    params, x = {"w": 2.0, "a": 1.0, "b": 3.0}, jnp.array([1.0, 2.0, 3.0, 5.0])
    by_name = oracle(lambda x: {"a": x[0], "b": 2.0})
    in_order = oracle(lambda x: jnp.stack([2.0, x[0]]))
    assert_close(by_name(params, x).total(), in_order(params, x).total())


def test_named():
    """Entries by task, of any pytree with a task axis."""
    oracle = make_oracle()
    losses = losses_of(PARAMS, *ARGS)
    found = oracle.named(losses)
    assert list(found) == list(TASKS)
    assert all(found[task] == losses[i] for i, task in enumerate(TASKS))
    history = {"losses": np.arange(6.0).reshape(2, 3)}
    found = gradients().named({"losses": np.arange(6.0).reshape(2, 3)})
    assert found["a"]["losses"].tolist() == [3, 4, 5]
    found = oracle.named(history, axis=-1)["c"]["losses"]
    assert isinstance(found, np.ndarray)  # as it came, not on a device
    assert found.tolist() == [2, 5]
    with pytest.raises(ValueError, match=r"`values` must have 3 tasks.*\(2, 3\)"):
        oracle.named(history)
    with pytest.raises(ValueError, match=r"`values` must have 3 tasks.*\(\)"):
        oracle.named(1.0)


def test_a_diagnosis_knows_the_names_of_its_tasks():
    """Through jit and scan, so that suggestions need not be told."""

    def look(_, factor):
        rows = jnp.array([[400.0, 0.0], [0.1, 1.0]]) * factor
        return None, mtlopt.diagnose(mtlopt.TaskGrads.from_rows(rows, tasks=NAMES))

    found = jax.jit(lambda: jax.lax.scan(look, None, jnp.ones(2))[1])()
    assert found.tasks == NAMES
    assert (
        "The gradient of b is 398 times as long as the gradient of a"
        in (mtlopt.suggestions(found)[0])
    )
