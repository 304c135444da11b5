"""Memory that stays: fewer page faults with glibc, nothing without."""

import ctypes
import json
import platform
import subprocess
import sys

import pytest

import mtlopt
from mtlopt import memory

# 64 MiB, filled: more than glibc keeps by itself. As a process with PyTorch, without
# JAX, runs it in `experiments.bench`.
COUNT_FAULTS = """
import json, resource, runpy, sys
keep_memory = runpy.run_path(sys.argv[1])["keep_memory"]

def faults():
    for measured in (False, True):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
took_effect = [keep_memory() for _ in range(2)]
assert "jax" not in sys.modules
print(json.dumps([took_effect, default, faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_large_arrays_are_allocated_without_page_faults():
    """Also of a process that allocated before, and with a second call."""
    run = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, memory.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    took_effect, default, kept = json.loads(run.stdout)
    assert took_effect == [True, True]
    assert default >= 10 * 32  # pages are of 2 MiB at most
    assert kept < default / 10


class Libc:
    """A C library whose `mallopt` notes what it is told, and refuses some of it."""

    def __init__(self, refused=()):
        self.set = {}
        self.refused = refused
        self.malloc = ctypes.CFUNCTYPE(None)(lambda: None)
        self.gnu_get_libc_version = None

    def mallopt(self, parameter, value):
        if (parameter, value) in self.refused:
            return 0
        self.set[parameter] = value
        return 1


def loader(process, libc):
    return lambda name: process if name is None else libc


def test_four_parameters_are_set(monkeypatch):
    libc = Libc()
    monkeypatch.setattr(ctypes, "CDLL", loader(libc, libc))
    assert mtlopt.keep_memory() is True
    assert libc.set == {-8: 1, -3: 2**30, -1: 2**31 - 1, -2: 2**28}


def test_an_old_glibc_maps_nothing(monkeypatch):
    libc = Libc(refused={(-3, 2**30)})
    monkeypatch.setattr(ctypes, "CDLL", loader(libc, libc))
    assert mtlopt.keep_memory() is True
    assert libc.set == {-8: 1, -4: 0, -1: 2**31 - 1, -2: 2**28}


@pytest.mark.parametrize("refused", [(-8, 1), (-1, 2**31 - 1), (-2, 2**28)])
def test_false_if_a_parameter_is_refused(monkeypatch, refused):
    libc = Libc(refused={refused})
    monkeypatch.setattr(ctypes, "CDLL", loader(libc, libc))
    assert mtlopt.keep_memory() is False


def test_false_with_another_allocator(monkeypatch):
    """Which a process has loaded in front of glibc's."""
    libc = Libc()
    monkeypatch.setattr(ctypes, "CDLL", loader(Libc(), libc))
    assert mtlopt.keep_memory() is False
    assert not libc.set


@pytest.mark.parametrize("error", [OSError("no libc.so.6"), TypeError("None")])
def test_false_without_the_library(monkeypatch, error):
    def load(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert mtlopt.keep_memory() is False


def test_false_with_another_c_library(monkeypatch):
    libc = Libc()
    del libc.gnu_get_libc_version
    monkeypatch.setattr(ctypes, "CDLL", loader(libc, libc))
    assert mtlopt.keep_memory() is False
    assert not libc.set
