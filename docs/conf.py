"""Sphinx settings. Build with `python -m sphinx -W -b html docs docs/_build/html`."""

import importlib.metadata
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a build traces, and computes nothing
sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))

project = "mtlopt"
author = "The mtlopt authors"
copyright = "2026, the mtlopt authors"
version = release = importlib.metadata.version("mtlopt")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "method_pages",
    "methods_table",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and types stand in the docstrings
napoleon_use_rtype = False
default_role = "code"  # `name` in a docstring is code
exclude_patterns = ["_build", "results"]  # reports, whose tables stand in pages
html_theme = "furo"
html_title = "mtlopt"
nitpicky = False
