"""Each sentence where its threshold says, and only there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from mtlopt.diagnostics.suggestions import (
    CONDITION_EPS,
    CONFLICT_COSINE,
    GAP_OF_ORTHOGONAL,
    NORM_RATIO,
)

TASKS = ("left", "right")
CALM = "Nothing is conspicuous"


@jax.jit
def diagnose(rows, present=None):
    return mtlopt.diagnose(mtlopt.TaskGrads.from_rows(rows, present=present))


def at_cosine(cosine, length=1.0):
    sine = np.sqrt(1 - cosine**2)
    return np.array([[1.0, 0.0], [length * cosine, length * sine]])


def said(rows, present=None):
    return mtlopt.suggestions(diagnose(rows, present))


# What is to be said on one side of a threshold, and not on the other.
SIDES = {
    "length": (at_cosine(0.3, 1.05 * NORM_RATIO), at_cosine(0.3, 0.95 * NORM_RATIO)),
    "conflict": (at_cosine(1.05 * CONFLICT_COSINE), at_cosine(0.95 * CONFLICT_COSINE)),
    "cancel": (
        # The gap of two equally long ones over that of orthogonal ones: sqrt(1 + cos).
        at_cosine((0.95 * GAP_OF_ORTHOGONAL) ** 2 - 1),
        at_cosine((1.05 * GAP_OF_ORTHOGONAL) ** 2 - 1),
    ),
    "dependent": (at_cosine(1 - 1e-5), at_cosine(1 - 1e-3)),
}
SAYS = {
    "length": "as long as",
    "conflict": "conflict (",
    "cancel": "nearly cancel",
    "dependent": "linearly dependent",
}


@pytest.mark.parametrize("kind", SIDES)
def test_thresholds(kind):
    over, under = map(said, SIDES[kind])
    assert any(SAYS[kind] in sentence for sentence in over)
    assert not any(SAYS[kind] in sentence for sentence in under)


def test_condition_in_units_of_the_precision(float64):
    """At an angle t the condition is 4 / t^2, and counts beside 1 / eps."""
    limit = CONDITION_EPS / jnp.finfo(jnp.float64).eps
    for condition, expected in ((2 * limit, True), (limit / 2, False)):
        rows = at_cosine(np.cos(2 / np.sqrt(condition)))
        assert (SAYS["dependent"] in " ".join(said(rows))) == expected


def test_nothing_conspicuous():
    """Nearly orthogonal, however many: the gap itself is 1 / sqrt(tasks)."""
    (sentence,) = said(np.eye(40) + 1e-4)
    assert sentence.startswith(CALM)


def test_tasks_that_share_no_entry():
    """What a latent that is a dict of the tasks' own latents looks like."""
    (sentence,) = said(np.eye(3))
    assert "so the tasks cannot conflict" in sentence
    (sentence,) = said(np.eye(3), np.array([True, True, False]))
    assert "so the tasks cannot conflict" in sentence
    (sentence,) = said(np.diag(np.array([1.0, 0.0])))
    assert "is zero" in sentence


def test_names_the_tasks():
    (sentence,) = mtlopt.suggestions(diagnose(at_cosine(0.01, 1 / 30)), TASKS)
    assert "of left is 30 times as long as the gradient of right" in sentence
    (sentence,) = mtlopt.suggestions(diagnose(at_cosine(-0.5)), TASKS)
    assert "of left and right conflict (mean cosine -0.50)" in sentence
    with pytest.raises(ValueError, match=r"`tasks` must have one name per task, 2"):
        mtlopt.suggestions(diagnose(at_cosine(0.5)), ["left"])


def test_a_short_gradient_is_no_cancellation():
    """The gap is at most the shortest length; that alone is no conflict."""
    (sentence,) = said(at_cosine(0.01, 1e-3))
    assert SAYS["length"] in sentence


def test_several_measurements_are_summarised():
    """Noise of single batches cancels: cosines of both signs, lengths either way."""
    rows = np.stack([at_cosine(-0.6, 20.0), at_cosine(0.6), at_cosine(0.6)])
    stacked = jax.jit(jax.vmap(diagnose))(rows)
    (sentence,) = mtlopt.suggestions(stacked, TASKS)
    assert sentence.startswith(CALM)
    per_seed = jax.tree.map(lambda leaf: leaf[:, None], stacked)
    assert mtlopt.suggestions(per_seed, TASKS) == [sentence]


def test_absent_tasks_are_left_out():
    """A task that is never there is not named; one that is there at times counts."""
    rows = np.array([[1.0, 0.01, 0.0], [0.0, 1.0, 0.0], [1e-8, 0.0, 1e-6]])
    never = np.array([True, True, False])
    assert said(rows, never)[0].startswith(CALM)
    assert "nothing to balance" in said(rows, np.array([True, False, False]))[0]
    stacked = jax.tree.map(
        lambda *leaves: np.stack(leaves),
        diagnose(rows, never),
        diagnose(rows, np.array([True, False, True])),
    )
    (sentence,) = mtlopt.suggestions(stacked)
    assert "of 0 is 1e+06 times as long as the gradient of 2" in sentence


def test_zero_gradients_and_bad_numbers():
    (sentence,) = mtlopt.suggestions(diagnose(at_cosine(0.0, 0.0)), TASKS)
    assert sentence.startswith(
        "The gradient of right over the shared parameters is zero"
    )
    (sentence,) = said(np.zeros((2, 2)))
    assert sentence.startswith("No task has a gradient over shared parameters")
    for bad in (np.nan, np.inf):
        (sentence,) = mtlopt.suggestions(diagnose(at_cosine(0.0, bad)), TASKS)
        assert sentence.startswith("The gradient of right is not finite")


def test_only_of_a_diagnosis():
    grads = mtlopt.TaskGrads.from_rows(np.eye(2))
    with pytest.raises(TypeError, match=r"mtlopt.diagnose\(grads\).*got TaskGrads"):
        mtlopt.suggestions(grads)


def test_methods_have_the_names_of_the_table():
    """Whatever a sentence tells to try is in docs/choosing.md, or no method."""
    rows = [over for over, _ in SIDES.values()]
    rows += [at_cosine(0.5), np.diag([1.0, 0.0]), np.full((2, 2), np.nan)]
    text = " ".join(sentence for each in rows for sentence in said(each))
    words = set(re.findall(r"[a-z][a-z_0-9]+", text))
    names = {word for word in words if "_" in word} | words & set(mtlopt.METHODS)
    methods = names - {"weight_by_fixed", "leave_out", "skip_not_finite", "per_task"}
    assert {"aligned_mtl", "mgda_l2", "pcgrad", "upgrad", "sum_tasks"} < methods
    table = (Path(__file__).parents[2] / "docs/choosing.md").read_text()
    tries = "".join(re.findall(r"^\| [^|]+ \| (`[^|]+`) \| [12T] \|$", table, re.M))
    assert methods <= set(re.findall(r"`(\w+)`", tries))


def test_losses_and_heads_that_are_not_finite():
    """Of both, the gradient over the shared parameters may be finite."""
    oracle = mtlopt.task_grad(
        {
            "left": lambda p, z, nan: p["left"] * z + nan[0],
            "right": lambda p, z, nan: p["right"] * z + jnp.sqrt(nan[1] * p["right"]),
        },
        {"w": "shared", "left": "left", "right": "right"},
        encode=lambda p, nan: p["w"],
    )
    params = dict.fromkeys(("w", "left", "right"), jnp.ones(()))

    @jax.jit
    def look(nan, present):
        return mtlopt.diagnose(oracle(params, nan, present=present))

    both = np.ones(2, bool)
    for nan, present, broken in (
        ([np.nan, 1.0], both, ["The loss of left is"]),
        ([0.0, 0.0], both, ["The gradient of right is"]),  # the loss is 1
        ([np.inf, 0.0], both, ["The loss of left is", "The gradient of right is"]),
        ([np.nan, 1.0], np.array([False, True]), []),
        ([0.0, 1.0], both, []),
    ):
        found = look(np.array(nan), present)
        assert np.isfinite(found.norms).all()
        said = mtlopt.suggestions(found, TASKS)
        not_finite = [one for one in said if "not finite" in one]
        assert len(not_finite) == len(broken)
        for sentence, start in zip(not_finite, broken, strict=True):
            assert sentence.startswith(start)
