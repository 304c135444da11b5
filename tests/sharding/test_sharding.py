"""Several devices and several processes: the same updates as one device."""

import json
import math
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import mtlopt
from tests.marks import slow
from tests.problems import ROUTES
from tests.sharding import comparison, network

ROOT = Path(__file__).parents[2]
LIMIT = 600  # seconds, after which a process that hangs is a failure
RTOL = 1e-5  # float32, sums in another order

# One for each way of reading gradients, and those whose states are rows.
FEW = [name for name in mtlopt.METHODS if name in {*ROUTES, "moco", "excess_mtl"}]
methods = pytest.mark.parametrize(
    "name",
    [name if name in FEW else slow(name) for name in mtlopt.METHODS],
)


def start(module, *args):
    command = [sys.executable, "-m", f"tests.sharding.{module}", *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(processes):
    """What the processes print; if one fails or hangs, all are killed."""
    end = time.monotonic() + LIMIT
    try:
        printed = []
        for process in processes:
            out, err = process.communicate(timeout=max(1, end - time.monotonic()))
            assert process.returncode == 0, err
            printed.append(json.loads(out.splitlines()[-1]))
        return printed
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


# Programs for eight devices take half a minute to compile.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What eight devices and what two processes found."""
    reference = tmp_path_factory.mktemp("sharding") / "updates.pickle"
    every = comparison.all_methods()
    expected = comparison.one_device({name: every[name] for name in FEW})
    reference.write_bytes(pickle.dumps(expected))
    address = free_address()
    eight = start("on_eight_devices", reference, "few")
    two = [start("on_two_processes", reference, address, index) for index in range(2)]
    eight_found, *two_found = results([eight, *two])
    return {**eight_found, "processes": two_found}


@pytest.fixture(scope="module")
def others_found(tmp_path_factory):
    """What eight devices found for the other methods."""
    reference = tmp_path_factory.mktemp("sharding") / "others.pickle"
    every = comparison.all_methods()
    others = {name: method for name, method in every.items() if name not in FEW}
    reference.write_bytes(pickle.dumps(comparison.one_device(others)))
    (eight_found,) = results([start("on_eight_devices", reference, "others")])
    return eight_found


@pytest.fixture
def found_of(request, name):
    """What eight devices found, of a method."""
    return request.getfixturevalue("found" if name in FEW else "others_found")


@methods
@pytest.mark.parametrize("placement", ["data", "fully"])
def test_eight_devices_equal_one(found_of, placement, name):
    """Batch in eight parts; parameters replicated, or sharded too."""
    assert found_of[placement]["errors"][name] <= RTOL


@pytest.mark.parametrize("name", ROUTES)
def test_two_processes_equal_one(found, name):
    """Each process holds half of the batch and half of the encoder."""
    for process in found["processes"]:
        assert process["devices"] == [1, 2]
        assert process["errors"][name] <= RTOL


def encoder_shapes():
    return [leaf.shape for leaf in network.make_params()["encoder"].values()]


@methods
def test_no_method_gathers(found_of, name):
    """With sharded parameters, no operation of a method gathers anything.

    Neither one row, which has the shape of a leaf, nor all of them. This does not hold
    the rows of a QR decomposition against ConFIG: here they are sums over the devices'
    batches, which XLA makes whole at once where whole ones are read.
    """
    gathered = found_of["fully"]["all-gather"]
    assert [one for one in gathered if f"/{name}/" in one[1]] == []


def test_forward_pass_gathers_each_leaf_once(found):
    """All that is gathered, so that the test above has not missed a name."""
    gathered = Counter(tuple(shape) for shape, _ in found["fully"]["all-gather"])
    assert gathered == Counter(encoder_shapes())


def test_gramians_are_sums_over_devices(found):
    tasks = len(network.TASKS)
    summed = [shape for shape, _ in found["fully"]["all-reduce"]]
    assert [tasks, tasks] in summed


def test_replicated_parameters_need_no_gather(found):
    assert found["data"]["all-gather"] == []


@pytest.mark.parametrize("kind", ["microbatches", "samples", "shard_map"])
def test_other_options_equal_one_device(found, kind):
    errors = found[kind]["errors"]
    assert errors
    assert max(errors.values()) <= RTOL


@pytest.mark.parametrize("kind", ["microbatches", "samples"])
def test_batches_are_not_gathered(found, kind):
    """Each microbatch lies on all devices; samples of a task lie anywhere."""
    assert found[kind]["all-gather"] == []


def test_kept_rows_are_sharded_like_the_parameters(found):
    """States of MoCo and ExcessMTL: an eighth of each on a device."""
    states = found["fully"]["row states"]
    assert len(states) == 2 * len(encoder_shapes())
    for whole, part in states:
        assert 8 * math.prod(part) == math.prod(whole)


def test_frozen_leaf(found):
    """It keeps its sharding and has no state; the rest is as on one device."""
    frozen = found["frozen"]
    assert max(frozen["errors"].values()) <= RTOL
    moving = [list(shape) for shape in encoder_shapes() if len(shape) == 2]
    rows = [[len(network.TASKS), *shape] for shape in moving]
    assert [whole for whole, _ in frozen["row states"]] == 2 * moving + rows
    specs = {leaf: str(spec) for leaf, spec in network.ENCODER_SPECS.items()}
    assert frozen["explicit"] == {"mgda": specs, "moco": specs}


@methods
def test_explicit_axes_keep_the_parameters_specs(found, name):
    """JAX's sharding-in-types: no contraction is ambiguous."""
    specs = {leaf: str(spec) for leaf, spec in network.ENCODER_SPECS.items()}
    assert found["explicit"][name] == specs
