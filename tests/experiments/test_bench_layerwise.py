"""The benchmark of layerwise Gramians: its two ways, and TorchJD's settings."""

import json

import jax
import numpy as np
import pytest

from experiments.bench import layerwise
from experiments.bench.layerwise import Result, TorchProgram, correlated, separate
from experiments.bench.torch_steps import SETTINGS
from experiments.bench.workloads import wide_mlp


class FakeProcess:
    """Steps take 5, 4, 3, ... seconds; one by one they are broken."""

    def __init__(self):
        self.questions = []

    def __call__(self, question: str) -> str:
        request = json.loads(question)
        self.questions.append(request)
        if request["setting"] == "chunk 1":
            return json.dumps({"error": "ValueError: broken"})
        return json.dumps({"cpu_seconds": 6.0 - len(self.questions)})


def test_the_least_of_torchjd_s_times_counts():
    process = FakeProcess()
    program = TorchProgram(process, "mgda", "autogram", bare=True)
    for _ in range(3):
        program.turn()
    assert program.best == 3.0
    assert process.questions[0] == {
        "aggregator": "MGDA()",
        "setting": "autogram",
        "bare": True,
        "steps": 1,
    }


def test_a_broken_setting_is_asked_once():
    process = FakeProcess()
    program = TorchProgram(process, "mgda", "chunk 1", bare=False)
    for _ in range(2):
        program.turn()
    assert program.best == "ValueError: broken"
    assert len(process.questions) == 1


def test_the_fastest_setting_is_the_one_compared_with():
    torchjd = {"default": 0.4, "chunk 1": "ValueError: broken", "autogram": 0.5}
    result = Result("stacked", 40, 16, "random", "mgda", 1, 1, 0.1, 1, 1, torchjd)
    times = ["100.0", "400.0", "ValueError: broken", "500.0"]
    assert result.torchjd_cells() == ["40", "16", "mgda", *times, "0.250"]


def test_no_torch_process_has_a_correlated_batch(capsys):
    with pytest.raises(SystemExit):
        layerwise.main(["--correlated", "--torch-python", "python"])
    assert "no --correlated batch" in capsys.readouterr().err


@pytest.mark.slow
def test_measure_has_both_ways_and_torchjd_s():
    workload = wide_mlp(2, 4)
    about = {"heads": "stacked", "num_tasks": 2, "batch_size": 4, "batch": "random"}
    result = layerwise.measure(workload, "mgda", 1, FakeProcess(), **about)
    assert result.layerwise > 0
    assert 0 < result.layerwise_bytes < result.rows_bytes
    assert result.torchjd == dict(
        zip(SETTINGS, [5.0, "ValueError: broken", 3.0], strict=True)
    )


@pytest.mark.slow
def test_separate_heads_are_the_same_problem():
    stacked = wide_mlp(2, 4)
    apart = separate(stacked)
    ours, theirs = (
        jax.jit(workload.oracle)(workload.params, *workload.args)
        for workload in (apart, stacked)
    )
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-5)
    np.testing.assert_allclose(
        ours.rows().gramian(), theirs.rows().gramian(), rtol=1e-4
    )
    total = apart.total(apart.params, *apart.args)
    np.testing.assert_allclose(total, sum(theirs.losses), rtol=1e-5)


@pytest.mark.slow
def test_correlated_tasks_have_nearly_equal_gradients():
    workload = correlated(wide_mlp(3, 8))
    grads = jax.jit(workload.oracle)(workload.params, *workload.args)
    gramian = np.asarray(grads.rows().gramian())
    norms = np.sqrt(np.diag(gramian))
    cosines = gramian / np.outer(norms, norms)
    assert 0.99 < cosines.min() < 0.99999
