"""Copies tables of `docs/results/` into the pages: ``python docs/render.py``.

A page says where a table comes from, by the report's file and the heading above it::

    <!-- table: aligned_mtl.toy/report.md, Steps until near the front -->
    ...
    <!-- end -->

All between the two lines is made anew: the table, and below it the command, the day and
the machine of the run, from `results.json` beside the report. A test compares.
"""

import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
_SHOWN = {"jax", "torch", "torchjd"}  # of the versions
_BLOCK = re.compile(
    r"(?P<begin><!-- table: (?P<file>\S+), (?P<heading>.+?) -->\n).*?(?=<!-- end -->)",
    re.DOTALL,
)


def render(text: str, results: Path) -> str:
    """Returns a page whose tables are those of the folder `results`."""

    def block(found: re.Match[str]) -> str:
        path = results / found["file"]
        rows = table(path.read_text(), found["heading"])
        return "\n".join([found["begin"], rows, made_by(path), ""])

    return _BLOCK.sub(block, text)


def table(report: str, heading: str) -> str:
    """Returns the first table below a heading."""
    section = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", report, re.M | re.S
    )
    rows = re.search(r"(?:^\|.*\n?)+", section[1] if section else "", re.M)
    if rows is None:
        raise ValueError(f"no table below the heading {heading!r}.")
    return rows[0].rstrip() + "\n"


def made_by(report: Path) -> str:
    """Returns the commands of a run, how long it took, where and when."""
    made = json.loads(report.with_name("results.json").read_text())
    typed = made.get("commands", [made.get("command")])
    command = "`, `".join(re.sub(r" --(out ('.*?'|\S+)|resume)", "", c) for c in typed)
    cores = made.get("cores", 0)
    places = [f"{cores} CPU core{'s' * (cores > 1)}"] if cores else []
    places += [] if made["device"].endswith("x cpu") else [made["device"]]
    took = " and ".join(places)
    if "minutes" in made:  # not of a run that was resumed
        took = f"{made['minutes']:.3g} min on {took}"
    versions = (
        f"{name} {made['versions'][name]}" for name in _SHOWN & made["versions"].keys()
    )
    words = [took, *sorted(versions), made["date"][:10]]
    return f"`{command}`: {', '.join(filter(None, words))}.\n"


def main() -> None:
    """Renders all pages."""
    for page in PAGES:
        try:
            page.write_text(render(page.read_text(), DOCS / "results"))
        except (OSError, ValueError) as error:
            sys.exit(f"{page}: {error}")


if __name__ == "__main__":
    main()
