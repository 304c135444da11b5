"""Every method differentiates through its updates, in both modes, or says why not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt import METHODS
from tests.linalg.derivatives import assert_equal, assert_transposed, derivatives
from tests.linalg.matrices import KINDS, random_rows, structured
from tests.problems import matrix_oracle, remembers

# Their derivative is that of decompositions.
# One with a rule of its own, and one that reads the losses; the others are slow.
FIRST = ("mgda", "stch")


def gradients(name, rows, losses, present):
    if METHODS[name].latent:
        oracle = matrix_oracle(len(rows))
        return oracle(jnp.zeros(rows.shape[1:]), rows, losses, present=present)
    rows = jnp.where(present[:, None], rows, 0)
    return mtlopt.TaskGrads.from_rows(rows, losses=losses, present=present)


def make_updates(name, num_tasks):
    """A method that remembers takes two steps: the first changes its state too."""
    method = METHODS[name].make(num_tasks)

    def updates(rows, losses, present):
        params, found = jnp.zeros(rows.shape[1:]), []
        state = method.init(params)
        for step in (1.0, 1.3) if remembers(state) else (1.3,):
            after = losses * step ** jnp.arange(num_tasks)
            grads = gradients(name, rows * step + 0.1, after, present)
            update, state = method.update(grads, state, params)
            found.append(update)
        return jnp.stack(found)

    return updates


def marks(name, num_tasks):
    if name not in FIRST or num_tasks > 2:
        yield pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "num_tasks"),
    [
        pytest.param(name, num_tasks, marks=list(marks(name, num_tasks)))
        for name in METHODS
        for num_tasks in (2, 5)
        if METHODS[name].min_tasks <= num_tasks
    ],
)
def test_updates(name, num_tasks, float64):
    """With respect to rows and losses, equal to central differences, in a batch.

    Generic rows; an absent task; and, where nothing is NaN, rows that depend on each
    other, rows of zeros, and rows that cancel.
    """
    rng, count = np.random.default_rng(3), 4
    rows = [random_rows(seed, num_tasks) + 0.2 * seed for seed in range(count)]
    rows = np.stack(rows + [structured(kind, num_tasks) for kind in KINDS])
    losses = rng.uniform(0.5, 2, rows.shape[:2])
    changes = rng.normal(size=rows.shape), rng.normal(size=losses.shape)
    present = np.ones(losses.shape, bool)
    present[3, 0] = False

    def updates(rows, losses):
        each = jax.vmap(make_updates(name, num_tasks))
        found = each(rows, losses, jnp.asarray(present))
        return found[:count], found[count:]

    moved, expected, pulled, weights = derivatives(updates, [rows, losses], changes)
    assert all(np.all(np.isfinite(leaf)) for leaf in (*moved, *pulled))
    assert_equal(moved[:1], expected[:1], 1e-5)
    pulled, changes = ([leaf[:count] for leaf in each] for each in (pulled, changes))
    assert_transposed(moved[:1], weights[:1], pulled, changes)
