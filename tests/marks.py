"""Marks of tests that hold on one platform alone."""

import jax
import pytest

cpu_only = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="of the programs that XLA makes for a CPU"
)
