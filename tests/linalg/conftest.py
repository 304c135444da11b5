"""Float precision of the T x T mathematics."""

import jax
import numpy as np
import pytest


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    """Runs a test in both precisions; float64 only inside the test."""
    with jax.enable_x64(request.param == np.float64):
        yield request.param


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield np.float64
