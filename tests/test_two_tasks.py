"""Two tasks: every method's weights have a closed form, without a loop."""

import re

import jax
import jax.numpy as jnp
import pytest

import mtlopt
from mtlopt import METHODS
from tests.marks import cpu_only
from tests.problems import QUICK

# Those whose weights come from inner products of the rows.
GRAMIAN = (
    "mgda",
    "mgda_l2",
    "edm",
    "epo",
    "pcgrad",
    "upgrad",
    "dualproj",
    "pcd",
    "cagrad",
    "nash_mtl",
    "fairgrad",
    "gradvac",
    "imtl_g",
    "conflict_free",
    "db_mtl",
    "cr_mogm",
    "modo",
    "moco",
    "aligned_mtl",
)
# SDMGrad takes a number of steps that is its own, not a solver's.


FIRST = ("mgda", "upgrad", "nash_mtl", "cagrad", "gradvac")  # the others are slow


def marks(name):
    if name not in FIRST:
        yield pytest.mark.slow


@cpu_only
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=list(marks(name))) for name in GRAMIAN]
)
def test_no_loop_and_no_lapack(name):
    """Neither is in the compiled update, where a loop takes long to compile."""
    method, params = METHODS[name].make(2), jnp.zeros(5)

    def update(rows, losses, state, mask):
        grads = mtlopt.TaskGrads.from_rows(rows, losses=losses, present=mask)
        return method.update(grads, state, params)

    args = jnp.ones((2, 5)), jnp.ones(2), method.init(params), jnp.ones(2, bool)
    program = jax.jit(update).lower(*args).compile(QUICK).as_text()
    assert not re.findall(r"\b(?:while|custom-call)\(", program)
