"""The table of correlated gradients: its rows, its errors, its cells."""

import numpy as np
import pytest

from experiments.bench.correlated import Error, error_of, make_rows, table

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bundles", [1, 2])
def test_rows_have_the_cosines_that_were_asked_for(bundles):
    rows = make_rows(0, 4, 10_000, 0.01, bundles)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    same = np.arange(4) % bundles == np.arange(4)[:, None] % bundles
    np.testing.assert_allclose(cosines[same & ~np.eye(4, dtype=bool)], 0.99, atol=0.01)
    assert np.all(np.abs(cosines[~same]) < 0.05)


@pytest.mark.parametrize("streaming", [False, True])
def test_errors_are_those_of_float32(streaming):
    error = error_of("aligned_mtl", make_rows(0, 3, 100, 1e-4), streaming)
    assert 1e2 < error.condition < 1e3
    assert 0 < error.direction <= 2 * error.relative < 2e-3


def test_table():
    errors = [Error(5.0, 1e-6, 1e-7), Error(50.0, 1e-4, 2e-5), Error(60.0, 1e-5, 1e-5)]
    text = table({"mgda": errors})
    assert "1e-06 (1e-07), 1" in text
    assert "1e-04 (2e-05), 2" in text
