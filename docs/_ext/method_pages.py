"""One page for each method of the registry, written before a build.

A page has what the registry says of the method and the entries of its public names: the
functions that it is made of, and whatever else their modules make public (weights,
states). Methods share parts, so each name has its entry on one page, and the pages of
the others link to it; an entry written by hand in `docs/api` comes first. Needs no
Sphinx: the tests read `pages()` too.
"""

import inspect
import math
import pathlib
import re
from typing import Any

import mtlopt
from mtlopt import METHODS
from mtlopt._methods import CLAIMS

# What a claim means: in a word for the head of a table, and in full.
CLAIM_TEXTS = {
    "deterministic": ("deterministic", "no random numbers"),
    "permutation_equivariant": ("order-free", "the order of the tasks does not matter"),
    "non_conflicting": (
        "non-conflicting",
        "no task's inner product with the update is negative",
    ),
    "linear_under_scaling": (
        "linear",
        "the update is linear in positive scales of the tasks",
    ),
    "task_scale_invariant": (
        "scale-invariant",
        "positive scales of the tasks do not change the update",
    ),
    "zero_if_strongly_stationary": (
        "zero if strongly",
        "zero where some positive combination of the gradients is",
    ),
    "zero_if_weakly_stationary": (
        "zero if weakly",
        "zero where some convex combination of the gradients is, as where one is zero",
    ),
    "zero_only_if_strongly_stationary": (
        "zero only if strongly",
        "zero only where some positive combination of the gradients is",
    ),
    "in_span": ("in span", "a combination of the task gradients"),
}
YES, NO = "✓", "✗"


def equal_text(equal: Any) -> str:
    """Names a length that is a power of T times a factor, from values at three T."""
    for power, suffix in ((0, ""), (1, "T"), (0.5, "√T"), (-0.5, "/ √T"), (-1, "/ T")):
        factor = equal(4) / 4**power
        if all(math.isclose(equal(n), factor * n**power) for n in (2, 9)):
            number = "" if factor == 1 and power > 0 else f"{factor:.3g}"
            return f"{number} {suffix}".strip()
    return ", ".join(f"{equal(n):.3g} (T = {n})" for n in (2, 4))


def degree_text(degree: float | None) -> str:
    """Returns the degree of a method, in words where it has none."""
    return "none" if degree is None else f"{degree:.3g}"


def by_hand() -> set[str]:
    """Returns the public names with an entry in `docs/api`."""
    folder = pathlib.Path(__file__).parents[1] / "api"
    text = "\n".join(page.read_text(encoding="utf-8") for page in folder.glob("*.rst"))
    return set(re.findall(r"^\.\. (?:auto)?\w+:: mtlopt\.(\w+)$", text, re.M))


def page_of() -> dict[str, str]:
    """Returns where public names have their entry: `{public name: name of a method}`.

    A part has it on the page of the method that is called like it, else of the first
    that uses it. Other names of a part's module go with the part that is named most
    alike. Entries written by hand are left out.
    """
    elsewhere, parts = by_hand(), {}
    for name, method in METHODS.items():
        for part in set(method.public) - elsewhere:
            parts.setdefault(part, part if part in METHODS else name)
    homes = {}
    for public in mtlopt.__all__:
        module = getattr(getattr(mtlopt, public), "__module__", None)
        alike = [part for part in parts if getattr(mtlopt, part).__module__ == module]
        if public in parts:
            homes[public] = parts[public]
        elif alike and public not in elsewhere:
            homes[public] = parts[max(alike, key=lambda part: _common(part, public))]
    return homes


def _common(part: str, public: str) -> int:
    """Length of the common beginning, in lower case."""
    pairs = zip(part.lower(), public.lower(), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(part))


def pages() -> dict[str, str]:
    """Returns the text of all pages, `{name of a method: reStructuredText}`."""
    homes = page_of()
    # Functions before classes, as one reads them.
    order = sorted(homes, key=lambda public: inspect.isclass(getattr(mtlopt, public)))
    return {
        name: _page(name, [public for public in order if homes[public] == name])
        for name in METHODS
    }


def _page(name: str, entries: list[str]) -> str:
    method = METHODS[name]
    rows = [
        ("Made of", ", ".join(f":py:func:`~mtlopt.{part}`" for part in method.public)),
        ("Backward passes of the encoder", method.backward),
        ("Length on T equal gradients of length 1, losses 1", equal_text(method.equal)),
        ("Degree d: `A(s J) = s^d A(J)` for s > 0", degree_text(method.degree)),
        ("Takes a `preference`", YES if method.takes_preference else NO),
    ]
    rows += [
        (_capital(CLAIM_TEXTS[claim][1]), YES if claim in method.properties else NO)
        for claim in CLAIMS
    ]
    lines = [
        method.title,
        "=" * (2 * len(method.title)),  # wide letters count twice
        "",
        ".. code-block:: python",
        "",
        f'   method = mtlopt.METHODS["{name}"].make({_arguments(name)})',
        "   tx = optax.chain(method, optax.adam(1e-3))",
        "",
        "With the defaults of the library, as is the table. Other options are further",
        "arguments of `make`. This page says what only this method does; heads, absent",
        "tasks, costs and symbols are in :ref:`what-methods-share`.",
        "",
        ".. list-table::",
        "   :widths: 70 30",
        "",
    ]
    for left, right in rows:
        lines += [f"   * - {left}", f"     - {right}"]
    lines.append("")
    for public in entries:
        kind = (
            "autoclass" if inspect.isclass(getattr(mtlopt, public)) else "autofunction"
        )
        lines += [f".. {kind}:: mtlopt.{public}", ""]
    return "\n".join(lines)


def _arguments(name: str) -> str:
    """What `make` should be told: labels or epochs too, if a part asks for them."""
    asked = set()
    for part in METHODS[name].public:
        asked |= set(inspect.signature(getattr(mtlopt, part)).parameters)
    options = [f"{key}={key}" for key in ("labels", "steps_per_epoch") if key in asked]
    return ", ".join(["num_tasks", *options])


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def write(app: Any) -> None:
    """Writes the pages that changed, so that only they are built again."""
    folder = pathlib.Path(app.srcdir) / "methods"
    folder.mkdir(exist_ok=True)
    texts = {f"{name}.rst": text for name, text in pages().items()}
    for old in folder.glob("*.rst"):
        if old.name not in texts:
            old.unlink()
    for file, text in texts.items():
        path = folder / file
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Writes the pages at the start of each build."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
