"""Marks of tests: those of one platform, and cases that are left to the slow tests."""

import functools

import pytest

# A string, evaluated in a test's module when the test runs: a program of tests/sharding
# imports a module of tests before it asks for eight devices.
cpu_only = pytest.mark.skipif(
    "jax.default_backend() != 'cpu'", reason="of the programs that XLA makes for a CPU"
)

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
