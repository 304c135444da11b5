"""Names of the library in code link to their entries: `mtlopt.upgrad(2)`, `upgrad`.

A name that is also an argument of some function, such as `latent`, links only if
`mtlopt.` is before it. Keys of `METHODS` link to the page of the method.
"""

import inspect
import re
from typing import Any

import sphinx.util.nodes
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

import mtlopt

_NAME = re.compile(
    r"(mtlopt\.)?((?:(?<=mtlopt\.)(?:nnx|models)\.)?(?:[A-Z]\w*\.)?\w+)(\(.*\))?", re.S
)
_CALLABLES = [getattr(mtlopt, name) for name in set(mtlopt.__all__) - {"METHODS"}]
_ARGUMENTS = {
    name for each in _CALLABLES for name in inspect.signature(each).parameters
}


class NameLinks(SphinxPostTransform):
    """Turns code that is a public name into a reference, but not on its own page."""

    default_priority = 900  # after Sphinx has resolved the references of a page

    def run(self, **_: Any) -> None:
        here = self.env.docname
        for code in list(self.document.findall(nodes.literal)):
            page, anchor = self._entry(code.astext())
            taken = isinstance(code.parent, nodes.reference | nodes.title)
            if not taken and page not in ("", here):
                make = sphinx.util.nodes.make_refnode
                builder = self.env.app.builder
                link = make(builder, here, page, anchor, code.deepcopy())
                code.replace_self(link)

    def _entry(self, text: str) -> tuple[str, str]:
        """The page and the anchor of a name, empty if there is no entry."""
        found = _NAME.fullmatch(text)
        if found and (found[1] or found[2] not in _ARGUMENTS):
            entries = self.env.domains.python_domain.objects
            if entry := entries.get(f"mtlopt.{found[2]}"):
                return entry.docname, entry.node_id
            if found[2] in mtlopt.METHODS and not found[3]:
                return f"methods/{found[2]}", ""
        return "", ""


def setup(app: Any) -> dict[str, bool]:
    """Registers the transform."""
    app.add_post_transform(NameLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
