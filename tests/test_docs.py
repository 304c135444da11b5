"""The documentation runs, and covers every public name."""

import pathlib
import re

import pytest

import mtlopt
import mtlopt.models

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page):
    """All Python blocks of a page run, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    exec(compile("\n".join(blocks), str(page), "exec"), {})


@pytest.mark.parametrize(
    ("package", "names"),
    [("mtlopt", mtlopt.__all__), ("mtlopt.models", mtlopt.models.__all__)],
)
def test_every_public_name_has_an_entry(package, names):
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.rst"))
    documented = set(
        re.findall(rf"^\.\. (?:auto)?\w+:: {re.escape(package)}\.(\w+)$", pages, re.M)
    )
    assert set(names) == documented


@pytest.mark.parametrize("name", sorted(set(mtlopt.__all__) - {"METHODS"}))
def test_every_public_name_has_a_docstring(name):
    assert len(getattr(mtlopt, name).__doc__.splitlines()) > 1


def test_readme_lists_every_method():
    readme = (ROOT / "README.md").read_text()
    for method in mtlopt.METHODS.values():
        assert f"| {method.title} |" in readme
        for name in method.public:
            assert f"`{name}" in readme


def test_readme_has_the_commands_that_ci_runs():
    readme = (ROOT / "README.md").read_text()
    for marker in ("run-command", "test-command"):
        assert re.search(rf"<!-- {marker} -->\n```bash\npython3 -m venv", readme)
