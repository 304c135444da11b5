"""Imports run downward, and kinds are told apart only where they are defined."""

import ast
import functools
import pathlib

import pytest

import mtlopt

ROOT = pathlib.Path(mtlopt.__file__).parent


@functools.cache
def trees():
    """Syntax by module."""
    return {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): ast.parse(
            path.read_text()
        )
        for path in ROOT.rglob("*.py")
    }


def imports(module):
    """What a module imports, as pairs of the module and a name in it."""
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names)


def within(module, rooms):
    """Whether a module is one of the rooms, below `mtlopt`, or inside of one."""
    return any(f"{module}.".startswith(f"mtlopt.{room}.") for room in rooms)


# What a room may import of the library, itself included.
ONLY = {
    "linalg": ["linalg", "_checks"],
    "rows": ["rows", "labels", "partition", "linalg", "_jaxprs"],
    "labels": ["_checks"],
    "partition": ["labels"],
    "_checks": [],
    "_jaxprs": [],
}
# What it may not.
NEVER = {
    "common": ["aggregators", "weightings", "linesearch", "alternation", "diagnostics"],
    "weightings": ["aggregators", "linesearch", "alternation", "diagnostics"],
    "aggregators": ["weightings", "linesearch", "alternation", "diagnostics"],
    "linesearch": ["aggregators", "weightings", "alternation", "diagnostics"],
    "every": ["aggregators", "weightings"],
    "models": ["aggregators", "weightings", "linesearch", "_methods", "every"],
}


def of_mtlopt(room):
    """Imports of the library in the modules of a room."""
    for module in trees():
        if within(module, [room]):
            for source, name in imports(module):
                if f"{source}.".startswith("mtlopt."):
                    yield module, f"{source}.{name}" if source == "mtlopt" else source


@pytest.mark.parametrize("room", ONLY)
def test_rooms_that_know_few_others(room):
    assert [pair for pair in of_mtlopt(room) if not within(pair[1], ONLY[room])] == []


@pytest.mark.parametrize("room", NEVER)
def test_rooms_that_do_not_know_each_other(room):
    assert any(within(module, [room]) for module in trees())
    assert [pair for pair in of_mtlopt(room) if within(pair[1], NEVER[room])] == []


def test_nothing_imports_experiments():
    roots = {
        source.split(".")[0] for module in trees() for source, _ in imports(module)
    }
    assert not roots & {"experiments", "tests"}


def test_methods_share_formulas_only():
    """Of another method a method may import its public weights, nothing else."""
    families = ("aggregators", "weightings")
    builders = ("by_weights", "by_losses", "by_sizes")
    found = [
        (module, source, name)
        for module in trees()
        for source, name in imports(module)
        if within(module, families)
        and within(source, families)
        and not source.endswith(builders)
        and not (name in mtlopt.__all__ and name.endswith("_weights"))
    ]
    assert found == []


def test_kinds_are_told_apart_only_where_they_are_defined():
    """A problem, heads, linearization or rows do what they can; nobody asks which."""
    rooms = ["problems", "heads", "linearization", "microbatches", "rows"]
    homes = {
        node.name: module
        for module, tree in trees().items()
        if within(module, rooms)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    assert {"Problem", "PullbackLinearization", "MaterialRows"} <= homes.keys()
    found = [
        (module, ast.unparse(call))
        for module, tree in trees().items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "isinstance"
        for kind in ast.walk(call.args[1])
        if isinstance(kind, ast.Name | ast.Attribute)
        and homes.get(ast.unparse(kind).split(".")[-1], module) != module
    ]
    assert found == []
