"""The directive `methods-table`: the registry of methods as a table."""

from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive

import mtlopt

HEADER = [
    "Method",
    "Name",
    "Made of",
    "Encoder backward passes",
    "On T equal gradients",
]


def rows() -> list[list[str]]:
    """Returns the cells of the table, one row a method."""
    return [
        [
            method.title,
            name,
            " · ".join(method.public),
            method.backward,
            _multiple(method.equal(2), method.equal(4)),
        ]
        for name, method in mtlopt.METHODS.items()
    ]


def _multiple(at_two: float, at_four: float) -> str:
    """Names a length that is constant or proportional to T, from two of its values."""
    if at_two == at_four:
        return f"{at_two:g} g"
    factor = at_two / 2
    return "T g" if factor == 1 else f"{factor:g} T g"


class MethodsTable(Directive):
    """Builds the table at the place of the directive."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        group = nodes.tgroup(cols=len(HEADER))
        group += [nodes.colspec(colwidth=1) for _ in HEADER]
        head, body = nodes.thead(), nodes.tbody()
        head += _row(HEADER)
        body += [_row(cells) for cells in rows()]
        group += [head, body]
        table = nodes.table()
        table += group
        return [table]


def _row(cells: list[str]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        entry += nodes.paragraph(text=cell)
        row += entry
    return row


def setup(app):
    """Registers the directive."""
    app.add_directive("methods-table", MethodsTable)
    return {"parallel_read_safe": True}
