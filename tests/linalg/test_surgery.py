"""PCGrad in task space against a plain loop over gradients."""

import jax
import numpy as np
import pytest

from mtlopt.linalg.surgery import project_conflicts, raise_cosines
from tests.linalg.matrices import KINDS, gramian, padded_gramian, structured

SIZE = 40
project, vaccinate = jax.jit(project_conflicts), jax.jit(raise_cosines)


def plain_loop(rows, order):
    """Algorithm 1 of the paper on the gradients themselves."""
    total = np.zeros(rows.shape[1])
    for task, others in enumerate(order):
        gradient = rows[task].copy()
        for other in others:
            inner = gradient @ rows[other]
            if other != task and inner < 0:
                gradient -= inner / (rows[other] @ rows[other]) * rows[other]
        total += gradient
    return total


def random_orders(seed, num_tasks):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(num_tasks) for _ in range(num_tasks)])


def padded_order(order):
    """The same order with the absent tasks strewn in between."""
    num_tasks = len(order)
    absent = np.tile(np.arange(num_tasks, SIZE), (num_tasks, 1))
    full = np.concatenate([absent[:, ::2], order, absent[:, 1::2]], axis=1)
    return np.concatenate([full, np.tile(np.arange(SIZE), (SIZE - num_tasks, 1))])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8, 40])
def test_equals_plain_loop(kind, num_tasks, dtype):
    for seed in range(3):
        rows = structured(kind, num_tasks, seed)
        order = random_orders(seed, num_tasks)
        matrix, present = padded_gramian(rows, dtype, SIZE)
        weights = np.asarray(project(matrix, padded_order(order), present))
        assert np.all(weights[:num_tasks] >= 1)
        assert np.all(weights[num_tasks:] == 0)
        error = weights[:num_tasks].astype(np.float64) @ rows - plain_loop(rows, order)
        size = np.linalg.norm(rows) * np.sqrt(num_tasks)
        assert np.linalg.norm(error) <= (2e-6 if dtype == np.float32 else 1e-13) * size


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_row_scales_and_units_do_not_matter(scale):
    """Row norms from 1 to 1e-6 times any unit, in float32."""
    rows = structured("random", 8) * np.logspace(0, -6, 8)[:, None]
    rows = rows.astype(np.float32).astype(np.float64)
    order = random_orders(0, 8)
    matrix, present = padded_gramian(rows * scale, np.float32, SIZE)
    weights = np.asarray(project(matrix, padded_order(order), present), np.float64)
    expected = plain_loop(rows, order)
    error = np.linalg.norm(weights[:8] @ rows - expected)
    assert error <= 1e-5 * np.linalg.norm(expected)


def test_a_task_never_meets_itself():
    """Angles 0, 135 and 200 degrees, order 1, 2, 0: the paper, not its ports."""
    angles = np.deg2rad([0, 135, 200])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    order = np.tile([1, 2, 0], (3, 1))
    alone = np.zeros((3, 3), int)
    first = project_conflicts(gramian(rows, np.float32), order)
    np.testing.assert_allclose(first @ rows, plain_loop(rows, order), atol=1e-6)
    # Task 0 meets nobody but itself: it stays as it is, the others lose task 0.
    weights = project_conflicts(gramian(rows, np.float32), alone)
    np.testing.assert_allclose(weights, [1 - np.cos(angles[1:]).sum(), 1, 1], rtol=1e-6)


def test_order_matters():
    rows = structured("random", 8)
    first, second = (
        project_conflicts(gramian(rows, np.float32), random_orders(seed, 8))
        for seed in (0, 1)
    )
    assert np.max(np.abs(first - second)) > 1e-3


def test_permutation_equivariant():
    """Renaming the tasks in the rows and in the order changes nothing."""
    rows, order = structured("random", 8), random_orders(0, 8)
    renamed = np.random.default_rng(1).permutation(8)
    place = np.argsort(renamed)  # task i is now called place[i]
    weights = project_conflicts(gramian(rows, np.float32), order)
    again = project_conflicts(gramian(rows[renamed], np.float32), place[order[renamed]])
    np.testing.assert_allclose(again, weights[renamed], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_stays_visible(bad):
    matrix = np.eye(8, dtype=np.float32)
    matrix[3, 7] = matrix[7, 3] = bad
    order = random_orders(0, 8)
    assert np.all(np.isnan(project_conflicts(matrix, order)))
    present = np.arange(8) != 7
    np.testing.assert_array_equal(project_conflicts(matrix, order, present), present)


def test_jit_vmap_and_eager_agree():
    matrices = np.stack([gramian(structured(k, 8), np.float32) for k in KINDS])
    orders = np.stack([random_orders(seed, 8) for seed in range(len(KINDS))])
    single = [project_conflicts(*pair) for pair in zip(matrices, orders, strict=True)]
    batch = jax.jit(jax.vmap(project_conflicts))(matrices, orders)
    np.testing.assert_allclose(batch, single, rtol=1e-5)


def test_order_shape_is_checked():
    with pytest.raises(ValueError, match="`order` must have shape"):
        project_conflicts(np.eye(3), np.arange(3))


@pytest.mark.parametrize("kind", KINDS)
def test_two_tasks_are_two_of_three(kind, dtype):
    """The closed forms: as with a third task that is absent, in any order."""
    rows = structured(kind, 2) * np.array([[1.0], [1e-3]])
    matrix, targets = gramian(rows, dtype), np.array([[0.1, 0.6], [-0.2, 0.3]], dtype)
    padded, present = np.pad(matrix, (0, 1)), np.arange(3) < 2
    order, longer = (
        np.array([[1, 0], [0, 1]]),
        np.array([[2, 1, 0], [0, 2, 1], [0, 1, 2]]),
    )
    expected = project(padded, longer, present)[:2]
    np.testing.assert_allclose(project(matrix, order), expected, rtol=1e-6)
    found = vaccinate(matrix, targets, order)
    expected = vaccinate(padded, np.pad(targets, (0, 1)), longer, present)
    np.testing.assert_allclose(found.weights, expected.weights[:2], rtol=1e-6)
    np.testing.assert_allclose(found.cosines, expected.cosines[:2, :2], rtol=1e-6)
