"""The benchmark of memory that stays: what processes use, medians and turns."""

import json
import sys

import pytest

from experiments.bench import machine, memory
from experiments.bench.memory import HEADER, PLAIN, compare
from experiments.bench.other_process import OtherProcess, Usage
from experiments.lab.errors import UsageError

# Each answer takes a fifth of a second of processor time, and 8 MiB more.
BUSY = """
import sys, time
kept = []
for line in sys.stdin:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    kept.append(b"x" * 2**23)
    print(flush=True)
"""


def test_usage_is_that_of_the_other_process():
    process = OtherProcess(sys.executable, "-c", BUSY)
    process("")
    before = process.usage()
    process("")
    after = process.usage()
    process.close()
    assert 0.2 <= after.cpu_seconds - before.cpu_seconds < 0.4
    assert after.faults > before.faults
    assert after.resident_mib - before.resident_mib == pytest.approx(8, abs=1)
    assert after.peak_mib >= after.resident_mib


class FakeProcess:
    """Answers at once; each step takes so many seconds and faults by its clocks."""

    def __init__(self, seconds, faults):
        self.cost = seconds, faults
        self.num_steps = 0

    def __call__(self, question):
        request = json.loads(question)
        assert request["step"] == PLAIN
        self.num_steps += request["steps"]
        return json.dumps({"seconds": 2 * self.cost[0] * request["steps"]})

    def usage(self):
        seconds, faults = self.cost
        return Usage(self.num_steps * seconds, self.num_steps * faults, 10.0, 20.0)


def test_a_line_has_medians_and_ratios():
    processes = FakeProcess(0.1, 1000), FakeProcess(0.08, 3)
    found = compare("w", 2, PLAIN, processes, 3)
    assert processes[0].num_steps == 2 + 3 * 5  # of half a second
    assert processes[1].num_steps == 1 + 3 * 5
    assert found.cpu_ratio == pytest.approx(0.8)
    assert found.ratio == pytest.approx(0.8)
    assert found.default.milliseconds == pytest.approx(200)
    assert found.keep.faults == pytest.approx(3)
    cells = dict(zip(HEADER, found.cells(), strict=False))
    assert found.cells()[:5] == ["w", "2", PLAIN, "100", "80"]
    assert cells["faults, default"] == "1,000"
    assert found.cells()[-1] == "10 (20)"


def test_memory_that_cannot_stay_is_an_error(monkeypatch):
    monkeypatch.setattr(machine.mtlopt, "keep_memory", lambda: False)
    machine.choose_memory("default")
    with pytest.raises(UsageError, match="needs glibc"):
        machine.choose_memory("keep")


def test_a_wrong_workload_is_named(capsys):
    with pytest.raises(SystemExit):
        memory.main(["lent"])
    assert "WORKLOAD: must be one of lenet" in capsys.readouterr().err
