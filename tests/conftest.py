"""Settings shared by all tests: strict, and the same everywhere."""

import collections.abc
import functools
import gc
import itertools
import os
import threading

# Tests assert mathematics on CPU unless told otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A GPU rounds the factors of a product to ten bits by default.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# LAPACK is that of SciPy, whose threads wait for each other actively: on small matrices
# they only take time from the other worker.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import pytest
from jax._src.interpreters import mlir

from tests import problems

# Nearly all their time is compilation, which need not optimise.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
FLAGS += "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # newer XLA aborts on a flag that it does not know
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)  # read at the first computation
# JAX makes an MLIR context for each program, which takes longer than to lower a small
# one. Here a hundred programs of a thread share one; it keeps their constants.
if make_context := getattr(mlir, "make_ir_context", None):
    lowered = itertools.count()
    shared = functools.lru_cache(1)(lambda *_: make_context())
    mlir.make_ir_context = lambda: shared(threading.get_ident(), next(lowered) // 100)
# Tracing makes many objects that live on; Python's defaults look at them too often.
gc.set_threshold(500_000, 20, 100)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Tests have no doctests, and their helpers are loaded by who needs them."""
    return [each for each in (yield) if type(each) is pytest.Module]


def pytest_collection_finish():
    """Modules live to the end: the collector need not look at them."""
    gc.freeze()


def pytest_sessionfinish():
    """Nor at the programs of all tests, five times, before it ends."""
    gc.freeze()


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    """Runs a test in both precisions; float64 only inside the test."""
    with jax.enable_x64(request.param == np.float64):
        yield request.param


@pytest.fixture
def float64():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield np.float64


class PlainRun(collections.abc.Mapping):
    """Results by method: those of `ROUTES` and the others are compiled when read."""

    def __init__(self, part):
        self.part = part

    def __getitem__(self, name):
        return problems.plain_run(name in problems.ROUTES)[self.part][name]

    def __iter__(self):
        return iter(problems.methods_of(len(problems.TASKS)))

    def __len__(self):
        return len(list(iter(self)))


@pytest.fixture(scope="session")
def plain():
    """Updates of every method on the toy problem with an encoder and three heads."""
    return PlainRun(0)


@pytest.fixture(scope="session")
def plain_states():
    """States of every method after each of those steps."""
    return PlainRun(1)
