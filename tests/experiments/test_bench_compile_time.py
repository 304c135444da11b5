"""The benchmark of compile times: table and file, on a small workload."""

import json

import pytest

from experiments.bench import compile_time
from experiments.bench.workloads import stacked_mlp

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    """Two tasks, four examples."""
    workloads = {"stacked_mlp": lambda: stacked_mlp(2, 4)}
    monkeypatch.setattr(compile_time, "WORKLOADS", workloads)
    monkeypatch.setattr(compile_time, "DEFAULT", ["stacked_mlp"])


def test_table_and_file(small, tmp_path, capsys):
    path = tmp_path / "times"
    compile_time.main(["mgda", "--rounds", "1", "--out", str(path)])
    header, _, plain, mgda = capsys.readouterr().out.strip().splitlines()
    assert header.count("|") == plain.count("|") == 3
    assert plain.startswith("| plain | ")
    assert mgda.startswith("| mgda ")
    plain, mgda = json.loads((path / "results.json").read_text())["results"]
    assert (plain["step"], mgda["step"]) == ("plain", "mgda")
    assert 0 < plain["kernels"] < mgda["kernels"]
    assert plain["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["mgdaa"], "must be one of"), (["--rounds", "0"], "positive integer")],
)
def test_what_is_typed_wrongly_is_named(arguments, message, small, capsys):
    with pytest.raises(SystemExit):
        compile_time.main(arguments)
    assert message in capsys.readouterr().err
