"""The gallery, and guides that draw, as notebooks made from their Markdown.

The Python blocks of a page are the code cells. A build offers the notebook on its page.
With `-D notebooks_execute=1` it runs the notebook first; page and notebook then show
what the cells print and draw. Needs no Sphinx: the tests run the notebooks too.
"""

import posixpath
import re
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from nbformat import v4

_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.M | re.S)
_LINK = re.compile(r"\]\((?!\w+:)([^)#]+)\.md(#[^)]*)?\)")
_KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
# As in the tests, a warning is an error, but not one of the kernel's own code. Keras
# saves its variables by an `__array__` that NumPy 2 finds old.
_STRICT = (
    "--IPKernelApp.exec_lines=import warnings; warnings.simplefilter('error'); "
    "warnings.filterwarnings('default', module='ipykernel'); "
    "warnings.filterwarnings('ignore', '__array__ implementation')"
)


def pages(docs: Path) -> dict[str, Path]:
    """Returns the files of these pages by their Sphinx names."""
    gallery = set(docs.glob("examples/*.md")) - {docs / "examples/index.md"}
    draw = {page for page in docs.glob("*.md") if "mtlopt.plot_" in page.read_text()}
    files = sorted(gallery | draw)
    return {str(file.relative_to(docs).with_suffix("")): file for file in files}


def notebook(text: str, name: str) -> nbformat.NotebookNode:
    """Returns a page as a notebook that has not run."""
    cells = []
    for i, part in enumerate(_BLOCK.split(text)):
        if i % 2:
            cells.append(v4.new_code_cell(part.strip(), id=f"cell-{i}"))
        elif part.strip():
            words = _absolute(part.strip(), posixpath.dirname(name))
            cells.append(v4.new_markdown_cell(words, id=f"cell-{i}"))
    return v4.new_notebook(cells=cells, metadata={"kernelspec": _KERNEL})


def _absolute(text: str, folder: str) -> str:
    """Makes links to other pages those of the site."""
    urls = metadata.metadata("mtlopt").get_all("Project-URL") or []
    (site,) = (url.split(", ")[1] for url in urls if url.startswith("Documentation"))

    def link(found: re.Match[str]) -> str:
        page = posixpath.normpath(posixpath.join(folder, found[1]))
        return f"]({site}/en/latest/{page}.html{found[2] or ''})"

    return _LINK.sub(link, text)


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs all cells in a kernel of their own. An error in a cell is raised."""
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook,
            timeout=600,
            coalesce_streams=True,
            extra_arguments=[_STRICT],
            resources={"metadata": {"path": folder}},
        ).execute()
    for cell in _code(notebook):
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        cell.metadata.clear()  # times


def with_outputs(text: str, notebook: nbformat.NotebookNode) -> str:
    """Returns the page with the outputs of each cell below its block."""
    cells = iter(_code(notebook))

    def block(found: re.Match[str]) -> str:
        return "\n".join([found[0], *map(_shown, next(cells).outputs)])

    return _BLOCK.sub(block, text)


def _code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _shown(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        png = data["image/png"].replace("\n", "")
        return f"![What the code draws](data:image/png;base64,{png})\n"
    text = output.get("text") or data["text/plain"]
    return f"````{{code-block}} text\n:class: output\n\n{text.rstrip()}\n````\n"


def _read(app: Any, name: str, source: list[str]) -> None:
    if name not in pages(Path(app.srcdir)):
        return
    made = notebook(source[0], name)
    if app.config.notebooks_execute:
        execute(made)
    path = Path(app.outdir, f"{name}.ipynb")
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)
    title, _, text = with_outputs(source[0], made).partition("\n")
    link = f'<a href="{path.name}" download>Download as a notebook</a>'
    source[0] = f"{title}\n\n{link}\n{text}"


def setup(app: Any) -> dict[str, bool]:
    """Makes the notebook of a page when the page is read."""
    app.add_config_value("notebooks_execute", False, "env", bool)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
