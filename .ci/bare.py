"""A wheel without extras: the core works, and the networks say what is missing."""

import doctest
import importlib.resources
import sys

import mtlopt

assert "flax" not in sys.modules
assert importlib.resources.files("mtlopt").joinpath("py.typed").is_file()
results = doctest.testmod(mtlopt)
assert results.attempted
assert not results.failed
message = ""
try:
    import mtlopt.models
except ModuleNotFoundError as error:
    message = str(error)
assert 'pip install "mtlopt[models]"' in message, message
