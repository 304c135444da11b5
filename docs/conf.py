"""Sphinx settings. Build with `python -m sphinx -W -b html docs docs/_build/html`."""

import importlib.metadata
import os
import pathlib
import sys

import ziamath  # for its font

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # what a build computes is small
sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))

project = "mtlopt"
author = "The mtlopt authors"
copyright = "2026, the mtlopt authors"
version = release = importlib.metadata.version("mtlopt")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
    "method_pages",
    "methods_table",
    "name_links",
    "notebooks",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and types stand in the docstrings
napoleon_attr_annotations = False
napoleon_use_rtype = False
default_role = "code"  # `name` in a docstring is code
exclude_patterns = ["_build", "results"]  # reports, whose tables stand in pages
html_theme = "furo"
font = pathlib.Path(ziamath.__file__).parent / "fonts/STIXTwoMath-Regular.ttf"
html_static_path = ["_static", str(font)]
html_css_files = ["mtlopt.css"]
html_title = "mtlopt"
html_math_renderer = "mathml"
notebooks_execute = "READTHEDOCS" in os.environ
nitpicky = False
