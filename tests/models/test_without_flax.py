"""The networks are an extra."""

import importlib
import sys

import pytest


def test_a_missing_flax_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "mtlopt.models", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "mtlopt\[models\]"'):
        importlib.import_module("mtlopt.models")
