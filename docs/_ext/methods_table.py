"""Tables of all methods: `methods-table` what they claim, `costs-table` their cost."""

from collections.abc import Mapping
from typing import Any

import method_costs
from docutils import nodes
from method_pages import CLAIM_TEXTS, NO, YES, degree_text, equal_text
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

from mtlopt import METHODS, Method
from mtlopt._methods import CLAIMS

HEADER = [
    "Backward passes",
    "On equal gradients",
    "Degree",
    "Preference",
    *(CLAIM_TEXTS[claim][0] for claim in CLAIMS),
]


class MethodsTable(SphinxDirective):
    """Builds the table at the place of the directive, and a list of its columns.

    The pages of the methods come into the navigation in the order of the table.
    """

    def run(self) -> list[nodes.Node]:
        rows = {name: cells(method) for name, method in METHODS.items()}
        table = _table(self.env.docname, HEADER, rows)
        table["classes"] += ["methods"]
        return [table, _legend(), _toctree(self.env.docname)]


class CostsTable(SphinxDirective):
    """Builds the table at the place of the directive."""

    def run(self) -> list[nodes.Node]:
        rows = {name: method_costs.costs(method) for name, method in METHODS.items()}
        return [_table(self.env.docname, method_costs.HEADER, rows)]


def cells(method: Method) -> list[str]:
    """Returns the cells of a method's row, but for the first."""
    claims = [YES if claim in method.properties else NO for claim in CLAIMS]
    return [
        method.backward,
        equal_text(method.equal),
        degree_text(method.degree),
        YES if method.takes_preference else NO,
        *claims,
    ]


def _table(docname: str, header: list[str], rows: Mapping[str, Any]) -> nodes.table:
    """A table with a row for each method, the first column links to its page."""
    group = nodes.tgroup(cols=len(header) + 1)
    group += [nodes.colspec(colwidth=1) for _ in range(len(header) + 1)]
    head, body = nodes.thead(), nodes.tbody()
    head += _row([nodes.Text(cell) for cell in ["Method", *header]])
    for name, texts in rows.items():
        link = _link(docname, name, METHODS[name].title)
        body += _row([link, *(nodes.Text(text) for text in texts)])
    group += [head, body]
    return nodes.table("", group)


def _link(docname: str, name: str, title: str) -> nodes.Node:
    """A link to the method's page."""
    return addnodes.pending_xref(
        "",
        nodes.inline(text=title),
        refdomain="std",
        reftype="doc",
        reftarget=f"/methods/{name}",
        refdoc=docname,
        refexplicit=True,
        refwarn=True,
    )


def _row(contents: list[nodes.Node]) -> nodes.row:
    entries = [nodes.entry("", nodes.paragraph("", "", node)) for node in contents]
    return nodes.row("", *entries)


def _toctree(docname: str) -> nodes.Node:
    """A hidden list of the methods' pages."""
    names = [f"methods/{name}" for name in METHODS]
    tree = addnodes.toctree(
        "",
        parent=docname,
        entries=[(None, name) for name in names],
        includefiles=names,
        maxdepth=1,
        caption=None,
        glob=False,
        hidden=True,
        includehidden=False,
        numbered=0,
        titlesonly=False,
    )
    return nodes.compound("", tree, classes=["toctree-wrapper"])


def _legend() -> nodes.definition_list:
    items = [
        nodes.definition_list_item(
            "",
            nodes.term(text=word),
            nodes.definition("", nodes.paragraph(text=f"{text[0].upper()}{text[1:]}.")),
        )
        for word, text in (CLAIM_TEXTS[claim] for claim in CLAIMS)
    ]
    return nodes.definition_list("", *items)


def setup(app: Any) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("methods-table", MethodsTable)
    app.add_directive("costs-table", CostsTable)
    return {"parallel_read_safe": True}
