"""The documentation runs, and covers every public name."""

import importlib.util
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


def method_pages():
    """The pages that a build writes, one a method."""
    path = ROOT / "docs/_ext/method_pages.py"
    spec = importlib.util.spec_from_file_location("method_pages", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


@pytest.mark.parametrize(
    ("package", "names"),
    [("mtlopt", mtlopt.__all__), ("mtlopt.models", mtlopt.models.__all__)],
)
def test_every_public_name_has_one_entry(package, names):
    """By hand in docs/api, or on the generated page of a method."""
    written = [page.read_text() for page in (ROOT / "docs/api").glob("*.rst")]
    pages = "\n".join([*written, *method_pages().values()])
    documented = re.findall(
        rf"^\.\. (?:auto)?\w+:: {re.escape(package)}\.(\w+)$", pages, re.M
    )
    assert sorted(documented) == sorted(names)


def test_every_method_has_a_page():
    pages = method_pages()
    assert set(pages) == set(mtlopt.METHODS)
    for name, method in mtlopt.METHODS.items():
        assert pages[name].startswith(f"{method.title}\n")


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
