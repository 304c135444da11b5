"""The documentation runs, and covers every public name."""

import ast
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export

import mtlopt
import mtlopt.models
from tests.marks import cpu_only, slow
from tests.problems import matrix_oracle

ROOT = pathlib.Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
# Those that draw, and the gallery, run as notebooks, see test_notebooks.py.
PAGES = [page for page in GUIDES if "mtlopt.plot_" not in page.read_text()]
PAGES = [ROOT / "README.md", *PAGES]
# Newcomers run these first; the other pages take half a minute together.
FIRST = {"README", "getting_started", "choosing"}


@pytest.mark.parametrize(
    "page",
    [page if page.stem in FIRST else slow(page) for page in PAGES],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_snippets_run(page):
    """All Python blocks of a page run, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    program = "\n".join(blocks)
    exec(compile(program, str(page), "exec"), {})


def extension(name):
    """A module of the documentation's build."""
    path = ROOT / f"docs/_ext/{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def method_pages():
    """The pages that a build writes, one a method."""
    return extension("method_pages").pages()


NNX = [
    name
    for name, value in vars(mtlopt.nnx).items()
    if not name.startswith("_") and getattr(value, "__module__", None) == "mtlopt.nnx"
]


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("mtlopt", mtlopt.__all__),
        ("mtlopt.nnx", NNX),
        ("mtlopt.models", mtlopt.models.__all__),
    ],
)
def test_every_public_name_has_one_entry(package, names):
    """By hand in docs/api, or on the generated page of a method."""
    written = [page.read_text() for page in (ROOT / "docs/api").glob("*.rst")]
    pages = "\n".join([*written, *method_pages().values()])
    documented = re.findall(
        rf"^\.\. (?!automodule)\w+:: {re.escape(package)}\.(\w+)$", pages, re.M
    )
    assert sorted(documented) == sorted(names)


def test_every_method_has_a_page():
    pages = method_pages()
    assert set(pages) == set(mtlopt.METHODS)
    for name, method in mtlopt.METHODS.items():
        assert pages[name].startswith(f"{method.title}\n")
        assert ":ref:`what-methods-share`" in pages[name]


@pytest.mark.parametrize("name", sorted(set(mtlopt.__all__) - {"METHODS"}))
def test_every_public_name_has_a_docstring(name):
    """One line is enough for a state whose fields explain themselves."""
    lines = getattr(mtlopt, name).__doc__.splitlines()
    assert len(lines) > 1 or lines[0].startswith("State of ")


def docstring_lines(tree):
    """The number of lines of the docstrings in a module."""
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    texts = [
        node.body[0]
        for node in ast.walk(tree)
        if isinstance(node, kinds) and ast.get_docstring(node) is not None
    ]
    return sum(text.end_lineno - text.lineno + 1 for text in texts)


def test_docstrings_of_methods_are_short():
    """At most 40 % of the lines: docs/methods.md says what methods share."""
    folders = ROOT / "mtlopt/aggregators", ROOT / "mtlopt/weightings"
    sources = [path.read_text() for folder in folders for path in folder.glob("*.py")]
    said = sum(docstring_lines(ast.parse(source)) for source in sources)
    assert said <= 0.4 * sum(len(source.splitlines()) for source in sources)


def test_decision_table_is_that_of_the_registry():
    """Every method is in it, with its backward passes and what it guarantees."""
    page = (ROOT / "docs/choosing.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (`[^|]+`) \| ([12T]) \|$", page, re.M)
    names = {seen: re.findall(r"`(\w+)`", tries) for seen, tries, _ in rows}
    assert {name for row in names.values() for name in row} == set(mtlopt.METHODS)
    for seen, _, passes in rows:
        assert {mtlopt.METHODS[name].backward for name in names[seen]} == {passes}
    assert set(names["no loss may rise to first order"]) == {
        name
        for name, method in mtlopt.METHODS.items()
        if "non_conflicting" in method.properties
    }


@pytest.mark.slow
def test_methods_that_keep_a_nan_are_named():
    """What was not finite in the second of eight updates comes back in the last."""
    page = (ROOT / "docs/composition.md").read_text()
    found = re.search(r"these\s+methods\s+are\s+(.*?)\.\s+\(STCH", page, re.S)
    assert found
    named = set(re.split(r", | and ", found[1].replace("\n", " ")))

    def keeps(method):
        num_tasks = max(2, method.min_tasks)
        tx = method.make(num_tasks, steps_per_epoch=2)
        oracle = matrix_oracle(num_tasks)
        params = jnp.zeros(6)
        update = jax.jit(
            lambda state, rows: tx.update(
                oracle(params, rows, 1 + jnp.vecdot(rows, rows)), state, params
            )
        )
        rows = jax.random.normal(jax.random.key(0), (num_tasks, 6))
        state = tx.init(params)
        for batch in (rows, rows.at[0].set(jnp.nan), *6 * [rows]):
            updates, state = update(state, batch)
        return not jnp.isfinite(updates).all()

    assert named == {
        method.title for method in mtlopt.METHODS.values() if keeps(method)
    }


@cpu_only
@pytest.mark.slow
def test_methods_that_export_with_a_check_off_are_named():
    """All others pass the check, and these pass it without that of LAPACK."""
    page = (ROOT / "docs/checkpointing.md").read_text()
    found = re.search(r"need\s+one\s+more\s+argument:\s+(.*?)\.\s+They", page, re.S)
    assert found
    named = set(found[1].replace("\n", " ").split(" and "))
    off = [export.DisabledSafetyCheck.custom_call("lapack_sgesvd_ffi")]

    def exports(method, **options):
        num_tasks = max(3, method.min_tasks)  # two need no decomposition
        tx, oracle = method.make(num_tasks), matrix_oracle(num_tasks)
        state = tx.init(jnp.zeros(3))
        rows = jnp.ones((num_tasks, 3)), jnp.ones(num_tasks)

        def update(state, *rows):
            return tx.update(oracle(jnp.zeros(3), *rows), state)

        try:
            export.export(jax.jit(update), **options)(state, *rows)
        except ValueError:
            return False
        return True

    need = [method for method in mtlopt.METHODS.values() if not exports(method)]
    assert {method.title for method in need} == named
    assert all(exports(method, disabled_checks=off) for method in need)


def test_costs_are_found():
    """The words of the table of costs, for each kind of method."""
    costs = extension("method_costs").costs
    names = ("sum_tasks", "rlw", "mgda", "graddrop", "moco")
    assert [" ".join(costs(mtlopt.METHODS[name])) for name in names] == [
        "1 1 numbers no",
        "1 1 numbers yes",
        "T T, streamed 2 numbers no",
        "T T numbers yes",
        "T T T gradients no",
    ]


def test_migration_names_exist():
    """What stands in the last column of its table, called with arguments."""
    page = (ROOT / "docs/migrating.md").read_text().split("## Names")[1]
    rows = re.findall(r"^\|.*\| ([^|]*) \|$", page.split("## What differs")[0], re.M)
    calls = {name for row in rows for name in re.findall(r"`(\w+)\(", row)}
    assert calls <= set(mtlopt.__all__)
    public = {part for method in mtlopt.METHODS.values() for part in method.public}
    neither = {"edm", "weight_by_chebyshev", "weight_by_norms", "weight_by_ntk"}
    neither |= {"weight_by_softadapt", "weight_by_relobralo", "epo"}
    assert public - calls <= {"in_latent_space"} | neither


def test_readme_lists_every_method():
    """In the order of the registry, which is that of the site."""
    readme = (ROOT / "README.md").read_text()
    methods = mtlopt.METHODS.values()
    places = [readme.index(f"| {method.title} |") for method in methods]
    assert places == sorted(places)
    for method in methods:
        for name in method.public:
            assert f"`{name}" in readme


def test_readme_has_the_commands_that_ci_runs():
    readme = (ROOT / "README.md").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    for marker in ("run-command", "test-command"):
        pattern = rf"<!-- {marker} -->\n```bash\n(python3 -m venv .*)\n```"
        found = re.search(pattern, readme)
        assert found
        assert found[1] in contributing
