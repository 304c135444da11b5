"""The benchmark of weights measures what it says, with or without PyTorch."""

import importlib
import inspect
import json
import pkgutil
import sys
import time
from importlib.util import find_spec

import jax
import numpy as np
import pytest

import mtlopt.aggregators
from experiments.bench import aggregators, torchjd_weights
from experiments.bench.aggregators import PAIRS, Result, Timing, make_gramians
from experiments.bench.other_process import OtherProcess


def weights_functions():
    """Every method of the library that is weights of a T x T matrix."""
    for module in pkgutil.iter_modules(mtlopt.aggregators.__path__):
        imported = importlib.import_module(f"mtlopt.aggregators.{module.name}")
        function = getattr(imported, f"{module.name}_weights", None)
        parameters = [*inspect.signature(function).parameters] if function else [""]
        if parameters[0] in ("gramian", "products"):
            yield module.name


class FakeTorchjd:
    """Answers as the script would: equal weights, and one time for all calls."""

    def __init__(self, seconds=1.0, fail_after=None):
        self.requests = []
        self.seconds = seconds
        self.fail_after = fail_after

    def __call__(self, question):
        self.requests.append(json.loads(question))
        if len(self.requests) - 1 == self.fail_after:
            return json.dumps({"error": "SolverError: no"})
        if "seconds" in self.requests[-1]:
            return json.dumps({"times": [self.seconds] * 3})
        tasks = len(self.requests[-1]["gramians"][0])
        return json.dumps({"weights": [1 / tasks] * tasks})


@pytest.mark.parametrize("tasks", [2, 8, 32, 64, 128])
def test_gramians_are_in_mild_conflict(tasks):
    """Some pairs conflict and most do not; the rows are independent."""
    gramians = make_gramians(tasks, "float64")
    pairs = gramians[:, *np.triu_indices(tasks, 1)]
    assert 0.2 < np.mean(pairs < 0) < 0.5
    assert np.linalg.cond(gramians).max() < 1e3
    np.testing.assert_array_equal(gramians, make_gramians(tasks, "float64"))
    assert make_gramians(tasks, "float32").dtype == np.float32


def test_every_method_is_timed():
    """No method of the library is forgotten."""
    assert set(weights_functions()) <= set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_functions_fit(name):
    """Each traces, and gives weights and a state like its first: no recompilation."""
    gramian = jax.ShapeDtypeStruct((8, 8), np.float32)
    state = PAIRS[name].init(8)
    weights, after = jax.eval_shape(PAIRS[name].ours, gramian, state)
    assert weights.shape == (8,)
    assert jax.eval_shape(lambda: state) == after


@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
def test_state_moves(name):
    """A second call draws other orders, and GradVac's moves its targets."""
    gramian = make_gramians(8, "float32")[0]
    pair = PAIRS[name]
    compiled = jax.jit(pair.ours)
    first, state = compiled(gramian, pair.init(8))
    second, after = compiled(gramian, state)
    assert not np.array_equal(first, second)
    same = jax.tree.map(np.array_equal, state, after)
    assert not any(jax.tree.leaves(same))


def test_ratio_is_theirs_over_ours():
    """The fake TorchJD gives the mean and takes a second a call."""
    torchjd = FakeTorchjd(seconds=1.0)
    gramians = make_gramians(4, "float32")
    result = aggregators.measure("modo", gramians, torchjd, num_rounds=2)
    assert result.ours is not None
    assert result.torchjd == Timing(1e6, 1e6, 6)
    assert result.ratio == pytest.approx(1e6 / result.ours.median, rel=0.5)
    assert result.ours.minimum <= result.ours.median
    assert result.required == 1
    assert result.cosine is not None
    assert 0 < result.cosine < 1 - 1e-5
    first, *blocks = torchjd.requests
    np.testing.assert_array_equal(np.float32(first["gramians"]), gramians)
    assert (first["weighting"], first["rows"]) == ("MoDoWeighting(rho=0)", False)
    device = {"cpu": "cpu", "gpu": "cuda"}[jax.default_backend()]
    assert (first["dtype"], first["device"]) == ("float32", device)
    assert blocks == [{"seconds": aggregators.BLOCK_SECONDS}] * 2


def test_cosine_of_equal_directions():
    """The mean of the fake is the mean."""
    gramians = make_gramians(4, "float32")
    result = aggregators.measure("mean", gramians, FakeTorchjd(), num_rounds=1)
    assert result.cosine == pytest.approx(1, abs=1e-6)
    assert result.required is None


@pytest.mark.parametrize("fail_after", [0, 1])
def test_failure_of_torchjd_is_shown(fail_after):
    """What TorchJD raises stands in the line, and ours is timed all the same."""
    torchjd = FakeTorchjd(fail_after=fail_after)
    gramians = make_gramians(4, "float32")
    result = aggregators.measure("mean", gramians, torchjd, num_rounds=2)
    assert (result.torchjd, result.ratio) == (None, None)
    assert len(torchjd.requests) == fail_after + 1
    cells = aggregators.cells(result)
    assert (cells[3], cells[-1]) == ("", "SolverError: no")
    assert float(cells[2].split()[0]) > 0


def test_too_few_tasks_are_shown():
    """Krum needs more tasks: a line without times, that says so."""
    result = aggregators.measure("krum", make_gramians(2, "float32"))
    assert result.ours is None
    assert "at least" in aggregators.cells(result)[-1]


def test_without_torch():
    result = aggregators.measure("mean", make_gramians(2, "float32"), num_rounds=1)
    assert result.ours is not None
    assert (result.torchjd, result.ratio, result.note) == (None, None, "")


def test_missed_ratios():
    """10 for CAGrad, 20 for UPGrad at 128 tasks, none for constant weights."""
    need = aggregators.required_ratio
    results = [
        Result(name, tasks, ratio=ratio, required=need(name, tasks))
        for name, tasks, ratio in [
            ("cagrad", 2, 9.0),
            ("cagrad", 8, 11.0),
            ("upgrad", 64, 2.0),
            ("upgrad", 128, 19.0),
            ("imtl_g", 2, 0.9),
            ("mean", 2, 0.1),
        ]
    ]
    named = [line.split(":")[0] for line in aggregators.missed(results)]
    assert named == ["cagrad, T = 2", "upgrad, T = 128", "imtl_g, T = 2"]


def test_table_and_json(tmp_path, capsys, monkeypatch):
    """The command writes a line for each method and size, and the same as JSON."""
    # The tests' settings stay as they are.
    monkeypatch.setattr(aggregators, "pin_to_one_thread", lambda core: None)
    monkeypatch.setattr(aggregators, "BLOCK_SECONDS", 0.001)
    out = tmp_path / "times"
    methods = ["mean", "balance_norms"]
    options = ["--methods", *methods, "--tasks", "2", "3", "--rounds", "1"]
    aggregators.main([*options, "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    record = json.loads((out / "results.json").read_text())
    names = [(row["name"], row["num_tasks"]) for row in record["results"]]
    assert names == [(name, tasks) for name in methods for tasks in (2, 3)]
    cells = [line.split()[1:4:2] for line in lines[2:]]
    assert cells == [[name, str(tasks)] for name, tasks in names]
    assert record["results"][0]["ours"]["calls"] >= 1
    assert (out / "report.md").read_text().splitlines()[2:] == lines
    command = "python -m experiments.bench.aggregators --methods mean balance_norms "
    assert record["command"].startswith(command)


def test_unknown_method_is_an_error(capsys):
    with pytest.raises(SystemExit):
        aggregators.main(["--methods", "adam"])
    assert "'adam'" in capsys.readouterr().err


def test_timed_calls():
    """At least one call, and calls until the time is over."""
    calls = []

    def call():
        calls.append(None)
        time.sleep(0.002)

    times = torchjd_weights.timed_calls(call, 0.0)
    assert len(times) == len(calls) == 1
    assert times[0] >= 0.002
    times = torchjd_weights.timed_calls(call, 0.02)
    assert 2 <= len(times) == len(calls) - 1 <= 10
    assert sum(times) >= 0.02


class Weights(list):
    def tolist(self):
        return list(self)


def test_script_answers():
    """Weights, then times; errors and calls that never end are answers too."""

    def make(request):
        if request["weighting"] == "slow":
            return lambda: time.sleep(10)
        if request["weighting"] == "bad":
            raise ValueError("no solution\nat all")
        return lambda: Weights([0.5, 0.5])

    requests = [{"weighting": "mean"}, {"seconds": 0.0}]
    requests += [{"weighting": "slow"}, {"weighting": "bad"}]
    lines = torchjd_weights.serve(map(json.dumps, requests), make, limit=0.2)
    weights, times, slow, bad = map(json.loads, lines)
    assert weights == {"weights": [0.5, 0.5]}
    assert len(times["times"]) == 1
    assert slow == {"error": "takes more than 0.2 s"}
    assert bad == {"error": "ValueError: no solution"}


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is installed")
def test_script_without_torch_says_so():
    """In an interpreter without PyTorch the answer names what is missing."""
    process = OtherProcess(sys.executable, torchjd_weights.__file__)
    answer = json.loads(process(json.dumps({"weighting": "MeanWeighting()"})))
    process.close()
    assert answer == {"error": "ModuleNotFoundError: No module named 'torch'"}


def test_ended_process_is_an_error(tmp_path):
    """The message of the process itself stands on the terminal."""
    script = tmp_path / "script.py"
    script.write_text("print(input()[::-1])")
    process = OtherProcess(sys.executable, str(script))
    assert process("abc") == "cba\n"
    with pytest.raises(RuntimeError, match="other process ended"):
        process("abc")
    process.close()
