"""Labels, which say which parameter leaf is shared, and which belongs to which task.

A label is a string: `"shared"`, the name of a task, `"stacked"` or `"frozen"`. A
stacked leaf holds the heads of all tasks along its first axis, and a frozen leaf never
moves. Labels are a pytree of strings with the structure of the parameters, or anything
that `label_params` turns into such a pytree.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
          (If `params` is a list or a tuple, a list of names is instead read as a prefix
          of labels, the last form below.)
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

    Only a mapping from path to label can leave leaves without a rule.
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
    return {"*": SHARED, **{name: name for name in rules}}


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
            like.set_seq1(path)
            return like.ratio()

        paths = sorted(paths, key=likeness, reverse=True)
    shown = ", ".join(f"`{path}`" for path in paths[:limit])
    return shown + (f" and {len(paths) - limit} more" if len(paths) > limit else "")


def check_same_labels(labels: Rules, params: PyTree, partition: "Partition") -> None:
    """Raises unless rules label the parameters as the oracle does.

    Args:
      labels: rules of a transform.
      params: parameters, or any pytree of their structure.
      partition: the partition of the oracle.
    """
    names = jax.tree.leaves(label_params(params, labels))
    for path, name, owner in zip(partition.paths, names, partition.labels, strict=True):
        if name != owner:
            raise ValueError(
                f"the label of `{path}` must be {owner!r}, as in the oracle, got "
                f"{name!r}."
            )


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


@dataclasses.dataclass(frozen=True)
class Partition:
    """Parameters split into shared leaves, leaves of heads and frozen leaves, by label.

    Attributes:
      treedef: structure of the parameters.
      paths: path of every leaf.
      labels: label of every leaf.
      tasks: names of the tasks, in the order of the losses.
    """

    treedef: Any
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    tasks: tuple[str, ...]

    def split(self, params: PyTree) -> tuple[list[Any], list[Any], list[Any]]:
        """Returns the shared leaves, the leaves of the heads, and the frozen leaves."""
        shared, heads, frozen = [], [], []
        kinds = {SHARED: shared, FROZEN: frozen}
        for label, leaf in zip(self.labels, jax.tree.leaves(params), strict=True):
            kinds.get(label, heads).append(leaf)
        return shared, heads, frozen

    def merge(self, shared: list[Any], heads: list[Any], frozen: list[Any]) -> PyTree:
        """Returns the parameters, joined from the leaves that `split` returns."""
        kinds = {SHARED: iter(shared), FROZEN: iter(frozen)}
        others = iter(heads)
        return self.treedef.unflatten(
            next(kinds.get(label, others)) for label in self.labels
        )

    def update(self, shared: list[Any], heads: list[Any], frozen: list[Any]) -> PyTree:
        """Returns an update from leaves like those of `split`; frozen leaves get zeros.

        Inside `jit` an update that is added to the parameters needs no memory for the
        zeros.
        """
        return self.merge(shared, heads, [jnp.zeros_like(leaf) for leaf in frozen])

    def active(self, members: Any) -> dict[str, Any]:
        """Returns which labels move in a step of the given tasks, for `per_label`.

        Args:
          members: bool `[tasks]`. If it is a NumPy array, the result is known at trace
            time.

        Returns:
          A mapping from label to bool: a task's label moves if the task is a member,
          and the shared label moves if any task is a member. The label of stacked heads
          has the vector `members`. Labels without leaves and the frozen label are left
          out.
        """
        flags = members.tolist() if isinstance(members, np.ndarray) else list(members)
        active = {
            SHARED: any(flags) if isinstance(members, np.ndarray) else members.any(),
            STACKED: members,
            **dict(zip(self.tasks, flags, strict=True)),
        }
        moving = (label for label in self.labels if label != FROZEN)
        return {label: active[label] for label in dict.fromkeys(moving)}

    @property
    def shared_paths(self) -> list[str]:
        """Paths of the shared leaves, in the order of `split`."""
        labelled = zip(self.paths, self.labels, strict=True)
        return [path for path, label in labelled if label == SHARED]

    @property
    def head_labels(self) -> list[str]:
        """Labels of the heads' leaves, in the order of `split`."""
        return [label for label in self.labels if label not in (SHARED, FROZEN)]


_SPLIT_OFF = (
    "Separate leaves that are not parameters, in Equinox with eqx.partition(model, "
    "eqx.is_inexact_array)"
)


def check_params(params: PyTree) -> list[tuple[str, Any, Any]]:
    """Returns path, value and dtype of every leaf, or raises if one is not a parameter.

    Raises:
      TypeError: if `params` is a module, or the state of an optimizer.
      ValueError: if a leaf is not an array of numbers; the error names its path.
    """
    if any(
        kind.__name__ == "Module" and kind.__module__.startswith("flax.nnx")
        for kind in type(params).__mro__
    ):
        raise TypeError(
            "`params` must be a pytree of arrays, got the Flax NNX module "
            f"{type(params).__name__}. Use mtlopt.nnx.task_grad, whose functions take "
            "modules, or split the module with nnx.split(model, nnx.Param, ...)."
        )
    check_no_state(params)
    leaves = []
    for path, leaf in leaf_paths(params):
        number = not isinstance(getattr(leaf, "dtype", ""), str)  # Keras has strings
        number = number or isinstance(leaf, int | float | complex)
        kind = jnp.result_type(leaf) if number else type(leaf).__name__
        if not number or jnp.issubdtype(kind, jax.dtypes.extended):
            raise ValueError(
                f"the parameter `{path}` must be an array of numbers, got {kind}. "
                f"{_SPLIT_OFF}; for a Keras variable, pass its `value`."
            )
        leaves.append((path, leaf, kind))
    return leaves


def check_no_state(params: PyTree) -> None:
    """Raises a `TypeError` if `params` is the state of an optimizer, or a `Run`."""

    def is_state(node: Any) -> bool:
        fields = getattr(node, "_fields", ())  # one without is a place of no leaf
        return bool(fields) and type(node).__module__.startswith(("optax.", "mtlopt."))

    nodes = jax.tree.leaves(params, is_state) if isinstance(params, tuple) else []
    for node in filter(is_state, nodes):
        raise TypeError(
            f"`params` must be parameters, got a {type(node).__name__}. The parameters "
            "come first in mtlopt.Run(params, opt_state). If you have a Run, pass "
            "`run.params`."
        )


def partition_params(
    params: PyTree,
    labels: Rules,
    tasks: tuple[str, ...],
    *,
    stacked: bool = False,
    headless: tuple[str, ...] = (),
) -> Partition:
    """Splits `params` by label, after checking that labels, leaves and tasks agree.

    Args:
      params: parameters, all of floating point except the frozen ones.
      labels: see `label_params`.
      tasks: names of the tasks.
      stacked: whether the heads are leaves `[tasks, ...]` labelled `"stacked"`.
      headless: tasks that have no parameters of their own.

    Returns:
      The `Partition`.

    Raises:
      TypeError: if `params` is a module or the state of an optimizer.
      ValueError: if labels, leaves and tasks do not agree; the error names the leaf or
        the label.
    """
    leaves = check_params(params)
    try:
        full = label_params(params, labels)
    except ValueError as error:
        if stacked and any(repr(task) in str(error) for task in tasks):
            error.add_note(f"The heads are stacked: label their leaves {STACKED!r}.")
        raise
    treedef = jax.tree.structure(params)
    paths = tuple(path for path, _, _ in leaves)
    names = tuple(jax.tree.leaves(full))
    allowed = (SHARED, *((STACKED,) if stacked else tasks), FROZEN)
    for label, (path, leaf, kind) in zip(names, leaves, strict=True):
        if label != FROZEN and jnp.issubdtype(kind, jnp.complexfloating):
            raise ValueError(
                f"the parameter `{path}` must be real, got {kind}. Keep its real and "
                "its imaginary part as two parameters, and join them with "
                "jax.lax.complex in your functions."
            )
        if label != FROZEN and not jnp.issubdtype(kind, jnp.floating):
            # A frozen Python bool would become an array, on which `if` fails.
            label_it = f"Label it {FROZEN!r}, or pass it as an argument of the call"
            raise ValueError(
                f"the parameter `{path}` must be floating point, got {kind}. "
                f"{_SPLIT_OFF if isinstance(leaf, int) else label_it}."
            )
        if label not in allowed:
            listed = ", ".join(repr(name) for name in allowed)
            raise ValueError(
                f"the label of `{path}` must be one of {listed}, got {label!r}."
            )
        if label == STACKED and jnp.shape(leaf)[:1] != (len(tasks),):
            raise ValueError(
                f"the stacked leaf `{path}` must have a leading task axis of size "
                f"{len(tasks)}, got shape {jnp.shape(leaf)}."
            )
    present = set(names) - set(RESERVED)
    # Without any head all parameters are shared. A head for only some tasks is a
    # mistake, unless the heads of the others are frozen.
    if present and FROZEN not in names:
        for task in tasks:
            if task not in present and task not in headless:
                raise ValueError(
                    f"the task {task!r} has no parameters: no leaf is labelled "
                    f"{task!r}. If this is intended, pass headless=({task!r},)."
                )
    return Partition(treedef, paths, names, tasks)
