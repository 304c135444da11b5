"""The directive `methods-table`: all methods and what they claim, as a table."""

from typing import Any, ClassVar

from docutils import nodes
from method_pages import CLAIM_TEXTS, NO, YES, degree_text, equal_text
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

from mtlopt import METHODS, Method
from mtlopt._methods import CLAIMS

HEADER = [
    "Method",
    "Backward passes",
    "On equal gradients",
    "Degree",
    *(CLAIM_TEXTS[claim][0] for claim in CLAIMS),
]


class MethodsTable(SphinxDirective):
    """Builds the table at the place of the directive, and a list of its columns."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        group = nodes.tgroup(cols=len(HEADER))
        group += [nodes.colspec(colwidth=1) for _ in HEADER]
        head, body = nodes.thead(), nodes.tbody()
        head += _row([nodes.Text(cell) for cell in HEADER])
        for name, method in METHODS.items():
            texts = [nodes.Text(text) for text in cells(method)]
            body += _row([self._link(name, method.title), *texts])
        group += [head, body]
        return [nodes.table("", group), _legend()]

    def _link(self, name: str, title: str) -> nodes.Node:
        """A link to the method's page."""
        return addnodes.pending_xref(
            "",
            nodes.inline(text=title),
            refdomain="std",
            reftype="doc",
            reftarget=f"/methods/{name}",
            refdoc=self.env.docname,
            refexplicit=True,
            refwarn=True,
        )


def cells(method: Method) -> list[str]:
    """Returns the cells of a method's row, but for the first."""
    claims = [YES if claim in method.properties else NO for claim in CLAIMS]
    return [
        method.backward,
        equal_text(method.equal),
        degree_text(method.degree),
        *claims,
    ]


def _row(contents: list[nodes.Node]) -> nodes.row:
    entries = [nodes.entry("", nodes.paragraph("", "", node)) for node in contents]
    return nodes.row("", *entries)


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
    """Registers the directive."""
    app.add_directive("methods-table", MethodsTable)
    return {"parallel_read_safe": True}
