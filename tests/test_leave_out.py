"""Tasks that an aggregator does not see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import METHODS
from tests.problems import (
    LABELS,
    LOSSES,
    QUICK,
    assert_close,
    encode,
    first,
    gradient_of,
    make_batches,
    make_params,
)

NAMES = ("sum_tasks", "mgda", "mgda_ub", "edm", "moco")
PARAMS, BATCH = make_params(), first(make_batches())
WITHOUT = {**LABELS, "heads/c": "frozen"}


def probe(params, z, *args):
    return LOSSES["c"](params, jax.lax.stop_gradient(z), *args)


ORACLE = mtlopt.task_grad({**LOSSES, "c": probe}, LABELS, encode=encode)
# The same network whose probe is no task.
REST = mtlopt.task_grad({t: LOSSES[t] for t in "ab"}, WITHOUT, encode=encode)


def run(oracle, transforms, **options):
    def update(params):
        grads = oracle(params, *BATCH, **options)
        return {
            name: tx.update(grads, tx.init(params), params)[0]
            for name, tx in transforms.items()
        }

    return jax.jit(update, compiler_options=QUICK)(PARAMS)


def make(name, labels, num_tasks):
    return mtlopt.METHODS[name].make(num_tasks, labels=labels)


@pytest.mark.slow
def test_probe_does_not_change_the_others(float64):
    """As without the probe; its head moves by its own gradient, scaled by weightings.

    Wrapped outside of the latent space or inside, and after a weighting.
    """
    left_out = {n: mtlopt.leave_out(make(n, LABELS, 3), ["c"]) for n in NAMES}
    left_out["inside"] = mtlopt.in_latent_space(mtlopt.leave_out(mtlopt.mgda(3), [2]))
    weights = jnp.array([1.0, 2.0, 3.0])
    left_out["weighted"] = optax.chain(
        mtlopt.weight_by_fixed(weights), mtlopt.leave_out(mtlopt.mgda(3), ["c"])
    )
    alone = {name: make(name, WITHOUT, 2) for name in NAMES}
    alone["inside"] = alone["mgda_ub"]
    alone["weighted"] = optax.chain(mtlopt.weight_by_fixed(weights[:2]), mtlopt.mgda(2))
    found, expected = run(ORACLE, left_out), run(REST, alone)
    own = jax.jit(lambda p: gradient_of("c", p, *BATCH))(PARAMS)["heads"]["c"]
    for name, update in found.items():
        head = update["heads"].pop("c")
        factor = 3 if name == "weighted" else 1
        assert_close(head, jax.tree.map(lambda g, f=factor: f * g, own), 1e-9)
        del expected[name]["heads"]["c"]
        assert_close(update, expected[name], 1e-9)
        assert np.any(update["encoder"]["w"])


def test_absent_tasks_stay_absent(float64):
    """A task that is left out and absent does not move; the others are as they were."""
    tx = {"mgda": mtlopt.leave_out(mtlopt.mgda(3), ["c"])}
    present = jnp.array([False, True, False])
    update = run(ORACLE, tx, present=present)["mgda"]
    expected = jax.jit(lambda p: gradient_of("b", p, *BATCH))(PARAMS)
    expected["heads"]["c"] = jax.tree.map(jnp.zeros_like, expected["heads"]["c"])
    assert_close(update, expected, 1e-9)


def test_tasks_that_are_known_to_be_present(float64):
    """The program then knows who is absent; who is left out still trains its head."""
    present = np.array([False, True, True])
    grads = ORACLE(PARAMS, *BATCH, present=present)
    hidden = grads.without_rows(np.array([False, False, True]))
    assert hidden.active == {"shared": True, "a": False, "b": True, "c": True}
    tx = {"mgda": mtlopt.leave_out(mtlopt.mgda(3), ["c"])}
    update = run(ORACLE, tx, present=present)["mgda"]
    expected = jax.jit(lambda p: gradient_of("b", p, *BATCH))(PARAMS)
    own = jax.jit(lambda p: gradient_of("c", p, *BATCH))(PARAMS)
    expected["heads"]["c"] = own["heads"]["c"]
    assert_close(update, expected, 1e-9)


def test_seeds(float64):
    """Under vmap, one wrapper inside of another."""
    inner = mtlopt.leave_out(mtlopt.mgda(4), ["1"])
    tx = mtlopt.leave_out(inner, [np.int64(3)])
    rows = np.random.default_rng(0).normal(size=(2, 4, 5))

    def update(rows):
        grads = mtlopt.TaskGrads.from_rows(rows)
        return tx.update(grads, tx.init(None))[0]

    found = jax.jit(jax.vmap(update), compiler_options=QUICK)(rows)
    for (left, _, right, _), one in zip(rows, found, strict=True):
        apart = right - left
        weight = np.clip(apart @ right / (apart @ apart), 0, 1)
        expected = weight * left + (1 - weight) * right
        np.testing.assert_allclose(one, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("aggregator", "tasks", "error", "message"),
    [
        (mtlopt.mgda, ["a"], TypeError, "`aggregator` must be a gradient transf"),
        (mtlopt.mgda(3), "a", TypeError, r"For one task, write \['a'\]"),
        (mtlopt.mgda(3), [], ValueError, "at least one task"),
        (mtlopt.mgda(3), ["x"], ValueError, "`tasks` must be one of 'a', 'b', 'c'"),
        (mtlopt.mgda(3), [3], ValueError, "between 0 and 2, got 3"),
        (mtlopt.mgda(3), ["a", 1, 2], ValueError, "leave at least one task"),
        (mtlopt.weight_by_dwa(3), ["a"], ValueError, "chained before `leave_out`"),
        (METHODS["db_mtl"].make(3), ["a"], ValueError, "chained before `leave_out`"),
    ],
)
def test_errors(aggregator, tasks, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda: run(ORACLE, {"x": mtlopt.leave_out(aggregator, tasks)}))
