"""Labels say which parameter leaves are shared, and which belong to which task.

A label is a string: `"shared"`, the name of a task, `"stacked"` or `"frozen"`. A
stacked leaf holds the heads of all tasks along its first axis, and a frozen leaf never
moves. Labels are a pytree of strings with the structure of the parameters, or anything
that `label_params` turns into such a pytree.
"""

import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

SHARED = "shared"
STACKED = "stacked"
FROZEN = "frozen"
UNKNOWN = ""  # the label of leaves that no rule of `some_labels` covers
RESERVED = (SHARED, STACKED, FROZEN)  # labels that are no names of tasks

PyTree = Any
Rules = PyTree | Mapping[str, Any] | Callable[[str, Any], str]


def path_string(path: tuple[Any, ...]) -> str:
    """Returns a leaf's path as the user writes it: `encoder/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_paths(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns path and value of every leaf.

    A leaf in a variable of Flax NNX has the path of the variable, so that a state and
    its pure form have the same paths.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        boxed = len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value")
        found.append((path_string(path[:-1] if boxed else path), leaf))
    return found


def tree_mismatch(wanted: PyTree, got: PyTree) -> str:
    """Says which leaves `got` lacks, and which leaves it has that `wanted` lacks."""
    paths = [[path for path, _ in leaf_paths(tree)] for tree in (wanted, got)]
    lacks, adds = (
        [f"`{path}`" if path else "one array" for path in here if path not in there]
        for here, there in (paths, paths[::-1])
    )
    parts = [
        f"{word} {', '.join(leaves[:3])}{' and more' if len(leaves) > 3 else ''}"
        for word, leaves in (("lacks", lacks), ("has in addition", adds))
        if leaves
    ]
    structures = map(jax.tree.structure, (wanted, got))
    return " and ".join(parts) or "is {1} instead of {0}".format(*structures)


def label_params(params: PyTree, rules: Rules) -> PyTree:
    """Labels every parameter leaf by rules on its path.

    Args:
      params: parameters, any pytree: dicts, Flax NNX states, Linen and Haiku
        collections, Equinox modules, tuples.
      rules: one of

        * a mapping from path to label. A path such as `encoder/conv1/kernel` covers
          every leaf below it; you may also nest mappings. A part of a path may hold the
          shell wildcards `*`, `?` and `[...]`. If several paths cover a leaf, the path
          with the most parts wins; among paths of equally many parts, the path with the
          fewest wildcards wins.
        * the names of tasks, such as `["left", "right"]`: the leaves of
          `params["left"]` belong to the task `left`, and all other leaves are shared.
          (If `params` is a list or a tuple, a list of strings is not read as names, but
          as labels, the last form of this list.)
        * a callable from `(path, leaf)` to label.
        * a pytree of labels that is a prefix of `params`; a single string labels all
          leaves.

    Returns:
      A pytree of labels with the structure of `params`.

    Raises:
      ValueError: if a rule matches no leaf, if no rule matches a leaf, if two equally
        specific rules give a leaf different labels, or if a prefix does not fit
        `params`. The message names the rule or the leaf's path.

    Examples:
      >>> import mtlopt
      >>> params = {"encoder": {"w": 1.0}, "heads": {"left": 1.0, "right": 1.0}}
      >>> mtlopt.label_params(
      ...     params, {"encoder": "shared", "heads/left": "a", "heads/right": "b"}
      ... )
      {'encoder': {'w': 'shared'}, 'heads': {'left': 'a', 'right': 'b'}}
      >>> mtlopt.label_params(params, {"*": "shared", "heads/left": "a"})
      {'encoder': {'w': 'shared'}, 'heads': {'left': 'a', 'right': 'shared'}}
      >>> mtlopt.label_params({"encoder": 1.0, "left": 1.0}, ["left"])
      {'encoder': 'shared', 'left': 'left'}
    """
    if rules is None:
        raise TypeError(
            "`labels` must say which parameters are shared and which belong to which "
            "task, got None. mtlopt.infer_labels can find the labels."
        )
    rules = _of_names(params, rules)
    leaves, treedef = leaf_paths(params), jax.tree.structure(params)
    if not leaves:
        raise ValueError("`params` must have at least one leaf, got an empty tree.")
    paths = [path for path, _ in leaves]
    if callable(rules) and jax.tree_util.all_leaves([rules]):
        labels = [rules(path, leaf) for path, leaf in leaves]
    elif jax.tree.structure(rules) == treedef:  # such as the result of this function
        labels = jax.tree.leaves(rules)
    elif isinstance(rules, Mapping):
        labels = _labels_by_rule(paths, _flatten_rules(rules))
    else:
        labels = _labels_by_prefix(_unbox(rules), params)
    for path, label in zip(paths, labels, strict=True):
        if not isinstance(label, str):
            raise ValueError(
                f"the label of `{path}` must be a string, got {label!r}. Labels are "
                f"{SHARED!r}, {STACKED!r}, {FROZEN!r} or the name of a task."
            )
    return jax.tree.unflatten(treedef, labels)


def some_labels(params: PyTree, rules: Rules) -> PyTree:
    """Returns the labels of `label_params`, with `UNKNOWN` for leaves without a rule.

    Only a mapping from path to label may lack rules for some leaves.
    """
    rules = _of_names(params, rules)
    is_tree = jax.tree.structure(rules) == jax.tree.structure(params)
    if isinstance(rules, Mapping) and not is_tree and "*" not in rules:
        rules = {"*": UNKNOWN, **rules}
    return label_params(params, rules)


def _of_names(params: PyTree, rules: Rules) -> Rules:
    """Returns rules made from names of tasks; other rules are returned unchanged."""
    if not isinstance(rules, list | tuple) or isinstance(params, list | tuple):
        return rules
    if not all(isinstance(name, str) and name not in RESERVED for name in rules):
        return rules
    paths = [path for path, _ in leaf_paths(params)]
    for name in rules:
        if paths and not _owns(name, paths):
            raise ValueError(
                f"the name {name!r} matches no leaf: a name must be a key at the root."
                f"{_instead_of_names(name, rules, paths)} The leaves are: "
                f"{_listing(name, paths)}."
            )
    return {"*": SHARED, **{name: name for name in rules}}


def names_to_match(names: Sequence[str], tree: PyTree) -> list[str]:
    """Returns the names of tasks that must match leaves, if tasks may have none.

    Some tasks may have no leaf, but not all of them. If a path contains a name, but not
    as a key at the root, the name is returned too: `label_params` then raises an error.
    """
    paths = [path for path, _ in leaf_paths(tree)]
    known = [name for name in names if _owns(name, paths)]
    others = _unowned(names, paths)
    return [
        name for name in names if not known or name in known or _places(name, others)
    ]


def _owns(name: str, paths: list[str]) -> bool:
    """Returns whether a path begins with the name."""
    return any(f"{path}/".startswith(f"{name}/") for path in paths)


def _unowned(names: Sequence[str], paths: list[str]) -> list[str]:
    """Returns the paths that begin with none of the names."""
    return [path for path in paths if not any(_owns(name, [path]) for name in names)]


def _places(name: str, paths: list[str]) -> list[str]:
    """Returns paths, cut after a part that is the name or, if none is, contains it."""
    prefixes = dict.fromkeys(
        "/".join(path.split("/")[:count])
        for path in paths
        for count in range(1, path.count("/") + 2)
    )
    last = {prefix: prefix.rpartition("/")[2] for prefix in prefixes}
    exact = [prefix for prefix, part in last.items() if part == name]
    word = re.compile(rf"(?<![a-zA-Z0-9]){re.escape(name)}(?![a-zA-Z0-9])")
    return exact or [prefix for prefix, part in last.items() if word.search(part)]


def _instead_of_names(name: str, names: Sequence[str], paths: list[str]) -> str:
    """Suggests a mapping for all names if an unowned path contains the given name."""
    others = _unowned(names, paths)
    if not _places(name, others) or _linen(paths):
        return _hint(name, paths)
    mapping = {"*": SHARED}
    for each in names:
        places = [each] if _owns(each, paths) else _places(each, others)
        mapping |= {path: each for path in places if path not in mapping}
    return f" Pass a mapping from path to label instead, such as {mapping}."


def _unbox(rules: PyTree) -> PyTree:
    """Replaces each box around a label, such as a Flax NNX variable, with the label.

    So labels of an NNX state also fit its pure form, which has no variables:
    `nnx.Optimizer` passes the pure form to Optax.
    """

    def is_box(node: Any) -> bool:
        if node is None or isinstance(node, Mapping | list | tuple):
            return node is None
        content = jax.tree.leaves(node, is_leaf=lambda inner: inner is not node)
        return len(content) == 1 and jax.tree_util.all_leaves(content)

    def unbox(node: Any) -> Any:
        return None if node is None else jax.tree.leaves(node)[0]

    return jax.tree.map(unbox, rules, is_leaf=is_box)


def _flatten_rules(rules: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins nested mappings and other containers into one, from path to label."""
    flat = {}
    for key, value in rules.items():
        path = f"{prefix}{key}".strip("/")
        if isinstance(value, Mapping):
            flat.update(_flatten_rules(value, path + "/"))
        else:
            value = _unbox(value)
            inner = jax.tree_util.tree_leaves_with_path(value, lambda x: x is None)
            flat |= {f"{path}/{path_string(p)}".strip("/"): leaf for p, leaf in inner}
    return flat


def _labels_by_rule(paths: list[str], rules: dict[str, Any]) -> list[Any]:
    patterns = {rule: tuple(rule.split("/")) for rule in rules}
    literal = {parts: rule for rule, parts in patterns.items()}
    wild = [rule for rule in rules if any(c in rule for c in "*?[")]
    unused, without = set(rules), list[str]()
    labels = []
    for path in paths:
        parts = tuple(path.split("/"))
        # Literal rules are looked up by path prefix: linear, even for a rule per leaf.
        matching = {
            literal[parts[:n]] for n in range(1, len(parts) + 1) if parts[:n] in literal
        }
        matching |= {rule for rule in wild if _covers(patterns[rule], parts)}
        unused -= matching
        if not matching:
            without.append(path)
            continue
        rank = {
            rule: (len(patterns[rule]), -sum(rule.count(c) for c in "*?["))
            for rule in matching
        }
        best = [rule for rule in matching if rank[rule] == max(rank.values())]
        if len({rules[rule] for rule in best}) > 1:
            raise ValueError(
                f"the leaf `{path}` is labelled differently by equally specific rules "
                f"{sorted(best)}. Make one of these rules longer."
            )
        labels.append(rules[best[0]])
    if unused:
        rule = min(unused)
        raise ValueError(
            f"the rule {rule!r} matches no leaf.{_hint(rule, paths)} The leaves are: "
            f"{_listing(rule, paths)}."
        )
    if without:
        raise ValueError(
            f"no rule labels the leaf `{without[0]}`.{_linen(paths)} Add a rule for "
            f"it, or '*': {SHARED!r} to make {SHARED!r} the default."
        )
    return labels


def _hint(rule: str, paths: list[str]) -> str:
    """Suggests a rule that begins at the root if `rule` begins below the root."""
    if paths == [""]:
        return " The parameters are one array; in a call they come before the batch."
    for path in paths:
        above, found, _ = f"{path}/".partition(f"/{rule}/")
        if found:
            root = f" A rule begins at the root, as `{above}/{rule}` does."
            return _linen(paths) or root
    return ""


def _linen(paths: list[str]) -> str:
    """Says what to pass instead of all variables of a Flax Linen module."""
    inside = [path.startswith("params/") for path in paths]
    if all(inside) or not any(inside):
        return ""
    return (
        ' Pass variables["params"] as the parameters; the other collections are the '
        "model's state, see has_state."
    )


def _covers(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    return len(pattern) <= len(parts) and all(
        fnmatch.fnmatchcase(part, glob)
        for part, glob in zip(parts, pattern, strict=False)
    )


def _labels_by_prefix(prefix: PyTree, params: PyTree) -> list[Any]:
    try:
        return jax.tree.leaves(jax.tree.broadcast(prefix, params))
    except ValueError as error:
        raise ValueError(
            "`labels` must be a prefix of `params`: it must have the same containers, "
            f"but one label may take the place of a whole subtree. {error}"
        ) from error


def _listing(rule: str, paths: list[str], limit: int = 8) -> str:
    """Lists leaves; if there are many, those most similar to the rule come first."""
    if len(paths) > limit:
        like = difflib.SequenceMatcher(b=rule)  # it caches its second sequence

        def likeness(path: str) -> float:
            parts, ratios = path.split("/"), []
            for count in range(1, len(parts) + 1):  # a rule may cover a subtree
                like.set_seq1("/".join(parts[:count]))
                ratios.append(like.ratio())
            return max(ratios)

        paths = sorted(paths, key=likeness, reverse=True)
    shown = ", ".join(f"`{path}`" for path in paths[:limit])
    return shown + (f" and {len(paths) - limit} more" if len(paths) > limit else "")


def check_task_names(tasks: tuple[str, ...]) -> None:
    """Raises unless the tasks' names are different strings that are not reserved."""
    if len(set(tasks)) != len(tasks):
        raise ValueError(f"the names in `tasks` must be different, got {tasks}.")
    for name in tasks:
        if not isinstance(name, str) or name in RESERVED:
            raise ValueError(
                f"the name of a task must be a string other than {RESERVED}, got "
                f"{name!r}."
            )
