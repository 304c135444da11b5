"""The rooms of `experiments/`: who may import whom, and how one is added."""

import ast
import functools
import importlib
from collections import Counter
from pathlib import Path

import pytest

import experiments
from experiments.__main__ import INDEX

ROOT = Path(experiments.__file__).parent
PAPERS = {"aligned_mtl", "ate_sg", "mtl_io", "fast_line_search", "real_data", "fronts"}
SAME_LINES = 12  # in a row, that may stand twice


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The modules of `experiments` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            both = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (both & FILES.keys()) or {node.module}
    return {name for name in found if name in FILES and name != "experiments"}


@functools.cache
def graph() -> dict[str, set[str]]:
    return {name: imports(path) for name, path in FILES.items()}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def reached(name: str) -> set[str]:
    """All modules that one imports, directly or not."""
    found, ahead = set(), [name]
    while ahead:
        new = graph()[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def test_no_circle():
    assert [name for name in graph() if name in reached(name)] == []


def test_arrows_point_downwards():
    """`data` and `lab` know no experiment, and nobody knows `bench`."""
    for name, others in graph().items():
        rooms = {room(other) for other in others}
        if room(name) in ("lab", "data"):
            assert rooms <= {"lab", "data"}, name
        if room(name) != "bench":
            assert "bench" not in rooms, name


def test_a_missing_package_is_a_line():
    """The command imports none of them before it can say so."""
    assert reached("experiments.__main__") == {"experiments.lab.errors"}


def test_few_entries_at_the_top():
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 14


def test_no_block_stands_twice():
    """Blank lines and comments do not count, nor do lists of imports."""
    blocks: Counter[tuple[str, ...]] = Counter()
    for path in FILES.values():
        tree = ast.parse(path.read_text())
        skipped = {
            line
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = [
            line.strip()
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if number not in skipped and line.strip() and line.strip()[0] != "#"
        ]
        size = SAME_LINES + 1
        own = {tuple(lines[i : i + size]) for i in range(len(lines) - size + 1)}
        blocks.update(own)
    assert [block[0] for block, times in blocks.items() if times > 1] == []


def test_an_experiment_is_short():
    """Its own file and what it imports from `lab` have 2,000 lines together."""
    for paper, entries in INDEX.items():
        for entry in entries:
            name = f"experiments.{paper}.{entry}"
            read = {name, *(m for m in graph()[name] if room(m) == "lab")}
            lines = sum(len(FILES[m].read_text().splitlines()) for m in read)
            assert lines <= 2_000, (name, lines)


@pytest.mark.parametrize("paper", INDEX)
def test_the_index_names_modules(paper: str):
    assert paper in PAPERS
    for name in INDEX[paper]:
        module = importlib.import_module(f"experiments.{paper}.{name}")
        assert callable(module.main)
        assert module.DESCRIPTION


def test_the_recipe_makes_an_experiment(tmp_path: Path, monkeypatch):
    """The file in CONTRIBUTING.md runs, resumes, and is short."""
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    recipe = text.split("## A new experiment")[1].split("```python\n")[1]
    recipe = recipe.split("```")[0]
    code = [line for line in recipe.splitlines() if line.strip()]
    assert len(code) <= 60
    (tmp_path / "planes.py").write_text(recipe)
    monkeypatch.syspath_prepend(tmp_path)
    planes = importlib.import_module("planes")
    options = ["--epochs", "3", "--out", str(tmp_path / "out")]
    planes.main(options)
    planes.main([*options, "--resume"])
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| mgda" in report
