"""Prints the lowest versions that pyproject.toml allows, as pip requirements."""

import pathlib
import re
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
needed = [extras[name] for name in ("models", "plots", "test")]
for requirement in sum(needed, project["dependencies"]):
    if "[" not in requirement:  # not one of our own extras
        print(re.sub(r">=", "==", requirement))
