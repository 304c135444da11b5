"""Settings shared by all tests: strict, and the same everywhere."""

import os

# Before jax is imported: tests assert mathematics on CPU unless told otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
