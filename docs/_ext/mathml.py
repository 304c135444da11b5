"""Formulas as MathML: browsers show it without a script and without a network."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

_TIDY = [
    # Bars of norms would have the spaces of an operator and the height of a line.
    (
        r'<mo(?: fence="false")?(?: stretchy="false")?>(&#x(?:0007C|02016);)',
        r'<mo lspace="0" rspace="0" stretchy="false">\1',
    ),
    # Fonts have primes raised already.
    (r"<msup>(<mi>[^<]*</mi><mi>&#x0203[2-4];</mi>)</msup>", r"\1"),
]


def mathml(latex: str, display: str) -> str:
    """Returns a formula as MathML, `display` "inline" or "block"."""
    formula = convert(latex.strip(), display=display)
    if "\\" in formula:
        raise ValueError(f"latex2mathml must know the commands, got {latex!r}.")
    for pattern, better in _TIDY:
        formula = re.sub(pattern, better, formula)
    return formula


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    formula = mathml(node.astext(), "block")
    translator.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Registers the renderer, for `html_math_renderer`."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
