"""Tables of the docs come from the results in the repository."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
render = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render)

REPORT = "# Toy\n\n## Steps\n\nWords.\n\n| a |\n| - |\n| 1 |\n\n## Costs\n\n| b |\n"
MADE = {
    "command": "python -m experiments toy --out 'my folder' --seeds 3 --resume",
    "minutes": 0.512,
    "cores": 2,
    "device": "1 x cpu",
    "versions": {"jax": "0.10.2"},
    "date": "2026-11-30T00:00:00",
}
PAGE = "Before.\n<!-- table: toy/report.md, Steps -->\nold\n<!-- end -->\nAfter.\n"


@pytest.fixture
def results(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "report.md").write_text(REPORT)
    (tmp_path / "toy" / "results.json").write_text(json.dumps(MADE))
    return tmp_path


def test_a_table_with_its_command(results):
    new = render.render(PAGE, results)
    assert new == (
        "Before.\n<!-- table: toy/report.md, Steps -->\n\n| a |\n| - |\n| 1 |\n\n"
        "`python -m experiments toy --seeds 3`: 0.512 min on 2 CPU cores, jax 0.10.2, "
        "2026-11-30.\n\n<!-- end -->\nAfter.\n"
    )
    assert render.render(new, results) == new


@pytest.mark.parametrize("heading", ["Costs of a step", "Toy"])
def test_no_table_is_an_error(results, heading):
    with pytest.raises(ValueError, match=heading):
        render.render(PAGE.replace("Steps", heading), results)


def test_the_pages_are_rendered():
    for page in render.PAGES:
        text = page.read_text()
        assert render.render(text, DOCS / "results") == text, "Run docs/render.py."


def test_seconds_to_compile_are_those_of_the_table():
    """The plain step's, and the least and the greatest of the methods'."""
    report = (DOCS / "results/bench.compile_time/report.md").read_text()
    cells = [re.findall(r"([\d.]+) \(\d+\)", row) for row in report.splitlines()]
    page = (DOCS / "costs.md").read_text()
    shown = re.findall(r"\| ([\d.]+) s \| ([\d.]+) to ([\d.]+) s \|", page)
    for i, numbers in enumerate(shown):
        plain, *methods = (row[i] for row in cells if len(row) > i)
        assert len(methods) > 40
        span = min(methods, key=float), max(methods, key=float)
        assert numbers == (plain, *span)
    assert len(shown) == 3
