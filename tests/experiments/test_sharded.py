"""The experiment on several devices: what a step communicates, and the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.bench import sharded
from experiments.lab.errors import UsageError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEVICES, SMALL = 4, 1024  # bytes of losses and of small matrices


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of a short run in a process of its own, where four devices are simulated."""
    out = tmp_path_factory.mktemp("sharded") / "out"
    options = f"--devices {DEVICES} --steps 3 --methods sum_tasks,mgda_ub,aligned_mtl"
    command = [sys.executable, "-m", "experiments", "bench.sharded", *options.split()]
    done = subprocess.run(
        [*command, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Aligned-MTL (θ-aligned)" in (out / "report.md").read_text()
    return json.loads((out / "results.json").read_text())


def size(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_losses_are_those_of_one_device(results):
    for runs in results["methods"].values():
        assert set(runs) == set(sharded.PLACEMENTS)
        assert all(run["distance"] <= 1e-5 for run in runs.values())


@pytest.mark.parametrize(
    ("method", "gradients"), [("sum_tasks", 1), ("mgda_ub", 1), ("aligned_mtl", 2)]
)
def test_each_gradient_is_summed_once(results, method, gradients):
    """One of the trunk for methods on losses or in latent space, else one a task."""
    params = sharded.init_params()
    heads = [params[task] for task in sharded.TASKS]
    least = gradients * size(params["trunk"]) + size(heads)
    runs = results["methods"][method]
    assert sum(runs["one device"]["communicated"].values()) == 0
    for placement in sharded.PLACEMENTS[1:]:
        summed = runs[placement]["communicated"]["all-reduce"]
        assert least <= summed <= least + SMALL


def test_only_sharded_parameters_are_gathered(results):
    """Each leaf once, whatever the method; a device holds its part of them.

    XLA may gather a head, which is small, a second time.
    """
    params = sharded.init_params()
    whole, heads = size(params), size([params[task] for task in sharded.TASKS])
    for runs in results["methods"].values():
        assert runs["data-parallel"]["communicated"]["all-gather"] == 0
        gathered = runs["fully sharded"]["communicated"]["all-gather"]
        assert whole <= gathered <= whole + heads
        held = [runs[name]["held"] for name in sharded.PLACEMENTS]
        assert 3 * whole <= held[0] == held[1] <= 3 * whole + SMALL  # Adam: two moments
        assert 3 * whole <= DEVICES * held[2] <= 3 * whole + DEVICES * SMALL


def test_asynchronous_collectives_count_once():
    text = """
      %s = (f32[4,2]{1,0}, f32[8,2]{1,0}) all-gather-start(%x), dimensions={0}
      %d = f32[8,2]{1,0} all-gather-done(%s)
      %r = s32[] all-reduce(%y), to_apply=%add
    """
    found = {"all-reduce": 4, "all-gather": 64, "reduce-scatter": 0}
    assert sharded.communicated(text) == found


def test_devices_are_settled_once():
    count = jax.device_count()
    sharded.simulate(count)
    with pytest.raises(UsageError, match=f"--devices must be {count} in a process"):
        sharded.simulate(count + 1)
