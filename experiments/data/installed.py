"""Data that other packages ship, read from their files without importing them."""

import importlib.util
from pathlib import Path


def shipped(package: str, *parts: str) -> Path:
    """Returns the path of a file in an installed package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise missing(package)
    path = Path(found.submodule_search_locations[0], *parts)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has no {path.name}, which {package} ships. Install "
            f"another version of {package}."
        )
    return path


def missing(package: str) -> ImportError:
    """Returns the error of a package that is not installed."""
    return ImportError(
        f"the package {package!r} is missing. Install the extra for real data: "
        'pip install -e ".[real-data]"; or choose other --problems.'
    )
