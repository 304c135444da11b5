"""The gallery, and guides that draw, as notebooks."""

import importlib.util
from pathlib import Path

import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import v4, validate

DOCS = Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("notebooks", DOCS / "_ext/notebooks.py")
notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebooks)

PAGES = notebooks.pages(DOCS)
PAGE = """# Title

See [fronts](../fronts.md#a) and [PyPI](https://pypi.org/a.md).

```python
print(1)
```

```py
not run
```

```python
2
```
"""


def test_blocks_are_cells():
    made = notebooks.notebook(PAGE, "examples/page")
    validate(made)
    kinds = [cell.cell_type for cell in made.cells]
    assert kinds == ["markdown", "code", "markdown", "code"]
    assert [made.cells[i].source for i in (1, 3)] == ["print(1)", "2"]
    site = "https://mtlopt.readthedocs.io/en/latest/fronts.html#a"
    assert f"[fronts]({site}) and [PyPI](https://pypi.org/a.md)" in made.cells[0].source
    assert "not run" in made.cells[2].source


def test_outputs_are_below_their_blocks():
    made = notebooks.notebook(PAGE, "examples/page")
    first, second = (cell for cell in made.cells if cell.cell_type == "code")
    first.outputs = [v4.new_output("stream", text="said\n")]
    second.outputs = [
        v4.new_output("execute_result", {"text/plain": "two"}),
        v4.new_output("display_data", {"image/png": "a\nb", "text/plain": "Figure"}),
    ]
    text = notebooks.with_outputs(PAGE, made)
    said, page = "````{code-block} text\n:class: output\n\n%s\n````\n", PAGE
    page = page.replace("print(1)\n```\n", "print(1)\n```\n\n" + said % "said")
    two = said % "two" + "\n![What the code draws](data:image/png;base64,ab)\n"
    assert text == page.replace("\n2\n```\n", "\n2\n```\n\n" + two)


@pytest.mark.slow
def test_an_error_or_a_warning_in_a_cell_is_raised():
    text = "```python\nimport warnings\n```\n```python\nwarnings.warn('old')\n```\n"
    made = notebooks.notebook(text, "examples/page")
    with pytest.raises(CellExecutionError, match=r"UserWarning.*: old"):
        notebooks.execute(made)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs(name):
    """All its cells, and what they print and draw comes on the page."""
    text = PAGES[name].read_text()
    made = notebooks.notebook(text, name)
    notebooks.execute(made)
    page = notebooks.with_outputs(text, made)
    assert "\nprint(" not in text or ":class: output" in page
    assert page.count("data:image/png") >= text.count(" mtlopt.plot_")
