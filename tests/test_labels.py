"""Labels by rule, callable and prefix, on every kind of parameter tree."""

import ast
import re

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mtlopt
from mtlopt import label_params
from mtlopt.labels import path_string
from mtlopt.partition import partition_params

PARAMS = {
    "encoder": {"conv1": {"kernel": 1.0, "bias": 1.0}, "conv2": {"kernel": 1.0}},
    "heads": {"left": {"w": 1.0}, "right": {"w": 1.0}},
}
EXPECTED = {
    "encoder": {
        "conv1": {"kernel": "shared", "bias": "shared"},
        "conv2": {"kernel": "shared"},
    },
    "heads": {"left": {"w": "left"}, "right": {"w": "right"}},
}


@pytest.mark.parametrize(
    "rules",
    [
        {"encoder": "shared", "heads/left": "left", "heads/right": "right"},
        {"encoder": "shared", "heads": {"left": "left", "right": "right"}},
        {"encoder/*/*": "shared", "*/left": "left", "*/right/w": "right"},
        {"*": "shared", "heads/l*": "left", "heads/right": "right"},
        {"enc?der": "shared", "heads/[l]*": "left", "heads/[!l]*": "right"},
        {"/encoder/": "shared", "heads/left/w": "left", "heads/right/w": "right"},
        {"encoder": "shared", "heads": {"left": {"w": "left"}, "right": "right"}},
        lambda path, leaf: path.split("/")[1] if "heads" in path else "shared",
        EXPECTED,
    ],
)
def test_rules(rules):
    """Paths, nested mappings, wildcards, callables and full label trees."""
    assert label_params(PARAMS, rules) == EXPECTED


def test_longest_rule_wins_then_fewest_wildcards():
    params = {"a": {"b": {"c": 0.0}, "d": {"c": 0.0}}}
    rules = {"*": "1", "a": "2", "a/*": "3", "a/b": "4", "a/*/c": "5"}
    assert label_params(params, rules) == {"a": {"b": {"c": "5"}, "d": {"c": "5"}}}
    del rules["a/*/c"]
    assert label_params(params, rules) == {"a": {"b": {"c": "4"}, "d": {"c": "3"}}}


def test_equally_specific_rules_may_agree():
    assert label_params({"ab": 0.0}, {"a?": "x", "?b": "x"}) == {"ab": "x"}


def test_a_name_is_not_a_prefix_of_another():
    """Rules cover whole parts: `head` is not `head2`."""
    rules = {"head": "a", "head2": "b"}
    assert label_params({"head": 0.0, "head2": 0.0}, rules) == rules


def test_callable_sees_path_and_leaf():
    seen = {}
    label_params(PARAMS, lambda path, leaf: seen.setdefault(path, leaf) and "shared")
    assert list(seen) == [
        "encoder/conv1/bias",
        "encoder/conv1/kernel",
        "encoder/conv2/kernel",
        "heads/left/w",
        "heads/right/w",
    ]


def test_prefix_trees_of_tuples_and_lists():
    params = ([np.ones(2), np.ones(3)], {"a": np.ones(1)}, np.ones(4))
    assert label_params(params, ("shared", "a", "b")) == (
        ["shared", "shared"],
        {"a": "a"},
        "b",
    )
    assert label_params(params, (["shared", "a"], "a", "b"))[0] == ["shared", "a"]
    assert label_params(params, {"0/0": "x", "*": "y"})[0] == ["x", "y"]
    assert label_params(params, "shared") == (
        ["shared", "shared"],
        {"a": "shared"},
        "shared",
    )


def test_names_of_tasks():
    """Leaves below a path of that name are the task's, the others shared."""
    params = {"trunk": {"w": 0.0}, "a": {"w": 0.0, "b": 0.0}, "b": 0.0}
    labels = {"trunk": {"w": "shared"}, "a": {"w": "a", "b": "a"}, "b": "b"}
    assert label_params(params, ["a", "b"]) == labels
    assert label_params(params, ("a", "b")) == labels
    with pytest.raises(ValueError, match="'c' matches no leaf"):
        label_params(params, ["a", "c"])
    names, tree = (mtlopt.per_label(optax.sgd(0.1), x) for x in (["a", "b"], labels))
    assert names.init(params) == tree.init(params)


class Two(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Linear(2, 3, rngs=rngs)
        self.heads = nnx.Dict(a=nnx.Linear(3, 1, rngs=rngs))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="head")(nn.Dense(3, name="encoder")(x))


def haiku_params():
    def forward(x):
        z = hk.nets.MLP([3, 3], name="encoder")(x)
        return hk.Linear(1, name="head")(z)

    return hk.transform(forward).init(jax.random.key(0), jnp.ones((1, 2)))


class Equinox(eqx.Module):
    encoder: eqx.nn.Linear
    head: eqx.nn.Linear
    activation: callable

    def __call__(self, x):
        return self.head(self.activation(self.encoder(x)))


def equinox_params():
    keys = jax.random.split(jax.random.key(0))
    model = Equinox(
        eqx.nn.Linear(2, 3, key=keys[0]), eqx.nn.Linear(3, 1, key=keys[1]), jax.nn.relu
    )
    return eqx.filter(model, eqx.is_inexact_array)


TREES = {
    "nnx": (
        lambda: nnx.split(Two(nnx.Rngs(0)), nnx.Param, ...)[1],
        {"encoder": "shared", "heads/a": "a"},
    ),
    "nnx_pure": (
        lambda: nnx.to_pure_dict(nnx.state(Two(nnx.Rngs(0)), nnx.Param)),
        {"encoder": "shared", "heads/a": "a"},
    ),
    "linen": (
        lambda: Linen().init(jax.random.key(0), jnp.ones((1, 2))),
        {"params/encoder": "shared", "params/head": "a"},
    ),
    "haiku": (
        haiku_params,
        {"encoder": "shared", "encoder/~/linear_0": "shared", "head": "a"},
    ),
    "equinox": (equinox_params, {"encoder": "shared", "head": "a"}),
}


@pytest.mark.parametrize("kind", TREES)
def test_labels_keep_the_structure_of_any_library(kind):
    """Labels by path have the params' structure, and label the same tree again."""
    make, rules = TREES[kind]
    params = make()
    labels = label_params(params, rules)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    for (path, _), label in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(labels),
        strict=True,
    ):
        assert label == ("shared" if "encoder" in path_string(path) else "a")
    assert jax.tree.leaves(label_params(params, labels)) == jax.tree.leaves(labels)


@pytest.mark.parametrize("kind", TREES)
def test_update_has_the_structure_of_any_library(kind):
    make, rules = TREES[kind]
    params = make()

    def total(params, shared):
        return sum(
            jnp.sum(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if ("encoder" in path_string(path)) == shared
        )

    oracle = mtlopt.task_grad(
        {"a": lambda params, z: z * total(params, shared=False)},
        label_params(params, rules),
        encode=lambda params: total(params, shared=True),
    )
    updates = oracle(params).total()
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    expected = jax.grad(lambda p: total(p, True) * total(p, False))(params)
    for left, right in zip(
        jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=1e-5)


def test_partition_splits_and_merges():
    params = {"w": 1.0, "heads": {"a": 2.0, "b": 3.0}}
    labels = {"w": "shared", "heads/a": "a", "heads/b": "b"}
    partition = partition_params(params, labels, ("a", "b"))
    assert partition.split(params) == ([1.0], [2.0, 3.0], [])
    assert partition.merge(*partition.split(params)) == params
    assert partition.head_labels == ["a", "b"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"encoder": "shared", "heads/left": "left"},
            "no rule labels.*`heads/right/w`",
        ),
        ({"*": "shared", "heads/up": "up"}, "the rule 'heads/up' matches no leaf"),
        ({"*": "shared", "head": "up"}, "the rule 'head' matches no leaf. The leaves"),
        (
            ["left", "right"],
            "'left' matches .* such as .*: 'left', 'heads/right': 'right'}. The",
        ),
        (["up"], "the name 'up' matches no leaf: .* at the root. The leaves are"),
        (["conv1"], "'conv1' matches .* such as {'.': 'shared', 'encoder/conv1'"),
        (
            {"encoder": "shared", "heads/l*": "left", "heads/*t": "right"},
            r"`heads/left/w` is labelled differently.*\['heads/\*t', 'heads/l\*'\]",
        ),
        ({"*": 3}, "the label of `encoder/conv1/bias` must be a string, got 3"),
        (lambda path, leaf: None, "`encoder/conv1/bias` must be a string, got None"),
        (("shared", "a"), "`labels` must be a prefix of `params`"),
    ],
)
def test_bad_rules_name_the_leaf_or_the_rule(rules, message):
    with pytest.raises(ValueError, match=message):
        label_params(PARAMS, rules)


def test_labels_of_another_state_of_flax_nnx():
    """A `State` is a mapping whose values are variables around the labels."""
    state = nnx.State({"trunk": nnx.Param(1.0), "head": nnx.Param(1.0)})
    labels = label_params(state, {"trunk": "shared", "head": "a"})
    more = nnx.State({**state, "norm": nnx.BatchStat(1.0)})
    with pytest.raises(ValueError, match="no rule labels the leaf `norm`"):
        label_params(more, labels)


@pytest.mark.parametrize(
    "box", [nnx.Param, lambda leaf: nn.Partitioned(leaf, names=(None,))]
)
@pytest.mark.parametrize("container", [lambda **kw: kw, lambda **kw: (kw, [kw["w"]])])
def test_labels_of_boxed_parameters_fit_the_bare_ones(box, container):
    """Both ways: a box around a leaf is no part of the path by which labels match."""
    bare = container(w=1.0, a={"w": 2.0})
    boxed = jax.tree.map(box, bare)
    labels = label_params(bare, lambda path, leaf: "a" if "a/w" in path else "shared")
    of_boxed = jax.tree.map(box, labels)
    assert label_params(bare, of_boxed) == labels
    assert label_params(boxed, of_boxed) == of_boxed
    assert label_params(boxed, labels) == of_boxed


def test_a_list_of_one_is_not_a_box():
    """Its leaf keeps its place: a longer list needs more labels."""
    with pytest.raises(ValueError, match="no rule labels the leaf `a/1`"):
        label_params({"a": [1.0, 2.0]}, {"a": ["shared"]})


def test_empty_tree():
    with pytest.raises(ValueError, match="`params` must have at least one leaf"):
        label_params({}, "shared")


@pytest.mark.parametrize(
    ("params", "labels", "message"),
    [
        (
            {"w": 1.0, "a": 1.0},
            {"w": "shared", "a": "left"},
            "`a` must be one of.*'left'",
        ),
        ({"w": 1.0, "a": 1.0}, {"w": "shared", "a": "stacked"}, "`a` must be one of"),
        ({"w": 1, "a": 1.0}, {"w": "shared", "a": "a"}, "`w` must be floating.*int32"),
        (
            {"w": 1.0, "a": 1.0},
            {"w": "shared", "a": "a"},
            "the task 'b' has no parameters.*headless",
        ),
    ],
)
def test_labels_that_do_not_fit_the_problem(params, labels, message):
    with pytest.raises(ValueError, match=message):
        partition_params(params, labels, ("a", "b"))


def test_names_below_the_root_lead_to_a_mapping():
    """An exact part comes before a part that contains the name as a word."""
    seg = {"heads": {"coarse_seg": {"w": 1.0}, "seg": {"w": 1.0}}, "trunk": 1.0}
    several = {"seg": 1.0, "old": {"b": 1.0}, "new": {"b": 1.0}, "seg_conv": 1.0}
    for params, names, mapping in (
        (
            seg,
            ["coarse_seg", "seg"],
            {"heads/coarse_seg": "coarse_seg", "heads/seg": "seg"},
        ),
        (several, ["seg", "b"], {"seg": "seg", "old/b": "b", "new/b": "b"}),
        ({"head-b": 1.0, "a": 1.0}, ["a", "b"], {"a": "a", "head-b": "b"}),
    ):
        with pytest.raises(ValueError, match="matches no leaf") as info:
            mtlopt.label_params(params, names)
        found = ast.literal_eval(re.search("such as ({.*?})", str(info.value))[1])
        assert found == {"*": "shared"} | mapping


def test_unmatched_rules_lead_to_the_leaf_that_was_meant():
    """Linen's variables are told from their parameters; likely leaves come first."""
    linen = {"params": {"head": 1.0}, "batch_stats": {"mean": 1.0}}
    with pytest.raises(ValueError, match=r'Pass variables\["params"\]'):
        mtlopt.label_params(linen, {"*": "shared", "head": "a"})
    with pytest.raises(ValueError, match=r'no rule .*Pass variables\["params"\]'):
        mtlopt.label_params(linen, {"params": "shared"})
    with pytest.raises(ValueError, match="the rule 'trunc' matches no leaf"):
        mtlopt.label_params({"trunk": 1.0, "a": 1.0}, {"trunc": "shared", "a": "a"})
    many = {f"layer_{i}": {"kernel": 1.0} for i in range(9)} | {"heads": {"left": 1.0}}
    with pytest.raises(ValueError, match=r"leaves are: `heads/left`, .* and 2 more"):
        mtlopt.label_params(many, {"*": "shared", "head/left": "a"})
    heads = {f"task{i}": {"linear": {"weight": 1.0, "bias": 1.0}} for i in range(4)}
    heads["even"] = {"layers": {"weight_of_the_last_layer": 1.0}}
    with pytest.raises(ValueError, match="leaves are: `heads/even/"):
        mtlopt.label_params({"heads": heads}, {"*": "shared", "heads/evn": "even"})


def test_leaves_that_are_no_arrays():
    """The error tells how to get at the arrays, in Equinox and in Keras."""

    class Variable:
        dtype = "float32"

    for leaf, kind in ((jax.nn.relu, "custom_jvp"), (Variable(), "Variable")):
        message = rf"`head/f` must be .* got {kind}\. .*eqx\.partition.* Keras"
        with pytest.raises(ValueError, match=message):
            partition_params({"w": 1.0, "head": {"f": leaf}}, "shared", ("a",))


def test_stacked_leaves_need_their_task_axis():
    params = {"w": np.ones(2, np.float32), "heads": np.ones((2, 4), np.float32)}
    labels = {"w": "shared", "heads": "stacked"}
    with pytest.raises(ValueError, match=r"`heads` must have a leading.*3.*\(2, 4\)"):
        partition_params(params, labels, ("0", "1", "2"), stacked=True)
    with pytest.raises(ValueError, match="`heads` must be one of 'shared', 'stacked'"):
        partition_params(params, {"w": "shared", "heads": "0"}, ("0",), stacked=True)


def test_inferred_labels_are_those_a_user_would_write():
    """A leaf belongs to the one task that reads it; what several read is shared."""
    params = {"trunk": jnp.ones(2), "both": 1.0, "a": 1.0, "b": {"w": 1.0}}
    losses = {
        "a": lambda p, x: p["a"] * p["both"] * p["trunk"] @ x,
        "b": lambda p, x: (
            jnp.where(x[0] > 0, 0.0, p["b"]["w"]) + p["both"] * p["trunk"][0]
        ),
    }
    labels = mtlopt.infer_labels(losses, params, jnp.ones(2))
    assert labels == {"trunk": "shared", "both": "shared", "a": "a", "b": {"w": "b"}}


def test_inferred_labels_with_encode_and_stacked_heads():
    params = {"w": jnp.ones(2), "heads": jnp.ones((3, 2))}
    labels = mtlopt.infer_labels(
        mtlopt.stacked(lambda p, z, task: jnp.vdot(p["heads"], z) * task, 3),
        params,
        encode=lambda p: p["w"],
    )
    assert labels == {"w": "shared", "heads": "stacked"}


def test_inferred_labels_refuse_a_leaf_that_nobody_reads():
    params = {"w": 1.0, "a": 1.0, "idle": 1.0}
    with pytest.raises(ValueError, match="no function reads the leaf `idle`"):
        mtlopt.infer_labels(
            {"a": lambda p, z: p["a"] * z}, params, encode=lambda p: p["w"]
        )
