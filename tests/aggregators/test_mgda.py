"""MGDA with normalised gradients: reference values and conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.aggregators.mgda import mgda, mgda_weights
from tests import reference
from tests.linalg.matrices import padded_gramian, structured

SIZE = reference.MAX_TASKS
NAMES = {"l2": "mgda_l2", "loss": "mgda_loss", "loss+": "mgda_lossplus"}
weigh = jax.jit(mgda_weights, static_argnames="normalisation")
normalisations = pytest.mark.parametrize("normalisation", NAMES)


def padded_losses(losses, dtype=np.float32):
    """Rubbish for the absent tasks."""
    pad = (0, SIZE - len(losses))
    return np.pad(np.asarray(losses, dtype), pad, constant_values=np.nan)


@normalisations
def test_reference_vector(normalisation, dtype):
    """Weights of the divided gradients on the gradients as they are."""

    def weights_of(case, matrix, present):
        losses = padded_losses(reference.losses(case), dtype)
        return weigh(matrix, present, normalisation=normalisation, losses=losses)

    assert not reference.beyond_tolerance(NAMES[normalisation], weights_of, dtype)


@normalisations
@pytest.mark.parametrize("loss_unit", [1e-12, 1.0, 1e12])
def test_optimal_for_the_divided_rows(normalisation, loss_unit):
    """KKT for rows g_i / s_i, with norms and losses up to 1e6 apart, any unit."""
    rng = np.random.default_rng(0)
    rows = structured("aligned", 8) * rng.permutation(np.logspace(0, -6, 8))[:, None]
    losses = rng.permutation(np.logspace(0, 6, 8)) * loss_unit
    norms = np.linalg.norm(rows, axis=1)
    sizes = {"l2": norms, "loss": losses, "loss+": losses * norms}[normalisation]
    weights = weigh(
        *padded_gramian(rows, np.float32, SIZE),
        normalisation=normalisation,
        losses=padded_losses(losses),
    )
    weights = np.asarray(weights, np.float64)[:8]
    divided = rows / sizes[:, None]
    direction = weights @ divided
    size = np.linalg.norm(direction)
    slack = size**2 - divided @ direction
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    assert np.max(slack / np.linalg.norm(divided, axis=1)) <= 1e-4 * size


@normalisations
def test_zero_rows_and_zero_losses(normalisation):
    """A zero row takes all; a loss of zero weighs nothing; no losses are equal ones."""

    def run(rows, losses):
        matrix, present = padded_gramian(np.asarray(rows, float), np.float32, SIZE)
        losses = padded_losses(losses)
        found = weigh(matrix, present, normalisation=normalisation, losses=losses)
        return np.asarray(found)[: len(rows)]

    zero_row = run([[1, 2], [0, 0], [3, 0]], [1, 1, 1])
    np.testing.assert_array_equal(zero_row, [0, 1, 0])
    both = run([[1, 2], [0, 0], [3, 0]], [1, 0, 1])
    np.testing.assert_array_equal(both, [0, 1, 0])
    rows = structured("aligned", 3)
    solved = run(rows, [0, 1, 2])
    if normalisation != "l2":
        assert solved[0] == 0
        np.testing.assert_allclose(solved[1:], run(rows[1:], [1, 2]), rtol=1e-5)
    equal = run(rows, [5, 5, 5])
    np.testing.assert_allclose(run(rows, [0, 0, 0]), equal, rtol=1e-6, atol=1e-6)
    negative = run(rows, [-1, 2, 3])
    np.testing.assert_array_equal(negative, run(rows, [1, 2, 3]))
    assert np.all(np.isnan(run([[1, 2], [np.nan, 0]], [1, 1])))
    if normalisation != "l2":
        assert np.all(np.isnan(run(rows, [1, np.nan, 1])))


def test_aggregator_uses_the_scaled_losses():
    """sum_i w_i s_i g_i, with weights from s_i g_i and s_i L_i."""
    rows = jnp.asarray(structured("aligned", 3), jnp.float32)
    losses, scales = jnp.array([1.0, 2.0, 0.5]), jnp.array([3.0, 1.0, 10.0])
    tx = mgda(3, "loss")

    @jax.jit
    def run(rows, losses, scales):
        grads = mtlopt.TaskGrads.from_rows(rows, losses).scale_by(scales)
        return tx.update(grads, tx.init(jnp.zeros(2)))

    update, state = run(rows, losses, scales)
    scaled = np.asarray(scales[:, None] * rows)
    expected = weigh(
        *padded_gramian(scaled, np.float32, SIZE),
        normalisation="loss",
        losses=padded_losses(scales * losses),
    )[:3]
    np.testing.assert_allclose(state.task_weights, expected, rtol=1e-5)
    np.testing.assert_allclose(update, expected @ scaled, rtol=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`normalisation` must be one of"):
        mgda(2, "norm")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`losses` must be given"):
        mgda_weights(jnp.eye(2), normalisation="loss")
    with pytest.raises(ValueError, match="`losses` must have one entry per task"):
        mgda_weights(jnp.eye(2), normalisation="loss", losses=jnp.ones(3))
