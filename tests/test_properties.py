"""What `METHODS` claims, on seeded Jacobians: claims hold, the others are refuted.

Every claim is a measure of violation: zero where it holds, of order one where it does
not. A method that makes the claim stays below rounding on every Jacobian of the right
kind; for one that does not, some Jacobian shows why. Claims are about the first update.

The Jacobians are given in many forms (scaled, permuted, rotated) to programs of
many methods. Smaller numbers of tasks are padded with absent ones. Structure (rank,
sums that are zero) is exact in float32: such rows, and all factors, are dyadic.

A Jacobian has hidden columns: gradients of a part of the latent that the encoder does
not move. Methods in latent space look at them, all others never see them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from mtlopt import METHODS
from mtlopt._methods import CLAIMS
from tests.marks import slow
from tests.problems import QUICK, in_parts

HIDDEN = 8
COLUMNS = {8: 20, 40: 48, 128: 132}  # by padded number of tasks; multiples of four

# Claims that some methods do not make and that no Jacobian here refutes: pairs of a
# name and a claim. An entry says why it is not claimed.
LATER = "only of the first update, which is that of MGDA"
SOLVED = "only where the bargaining equation has a solution"
NEARLY = "the bargaining equation has none there, and the answer is near zero"
NOT_REFUTED = {
    ("mgda_l2", "linear_under_scaling"): "only where its weights are unique",
    ("nash_mtl", "non_conflicting"): SOLVED,
    ("fairgrad", "non_conflicting"): SOLVED,
    ("nash_mtl", "zero_if_strongly_stationary"): NEARLY,
    ("fairgrad", "zero_if_strongly_stationary"): NEARLY,
    ("nash_mtl", "zero_if_weakly_stationary"): NEARLY,
    ("fairgrad", "zero_if_weakly_stationary"): NEARLY,
    ("cr_mogm", "non_conflicting"): LATER,
    ("cr_mogm", "zero_if_strongly_stationary"): LATER,
    ("cr_mogm", "zero_if_weakly_stationary"): LATER,
    ("relobralo", "deterministic"): "its first update is that of the summed loss",
    ("pbi", "zero_only_if_strongly_stationary"): "some losses give negative weights",
    ("cosmos", "zero_only_if_strongly_stationary"): "some losses give negative weights",
}

# Violations allowed to a claim, and asked of a counterexample. Rounding in the Gramian
# is amplified by its condition, up to 1e4 here.
ROUNDING = {np.float32: 2e-3, np.float64: 1e-6}
COSINE = {np.float32: 1e-4, np.float64: 1e-6}
CLEAR = 5e-3
# Where the terms of the update cancel beyond this, its direction is their rounding.
CANCELLED = {np.float32: 4e-2, np.float64: 1e-6}
# Relative to the gradients, an update is nonzero above the one, zero below the other.
NONZERO, ZERO = 1e-4, 1e-6


# Jacobians.


def real(rng, num_tasks, columns):
    """Normal entries that float32 holds."""
    return rng.normal(size=(num_tasks, columns)).astype(np.float32).astype(float)


def dyadic(rng, num_tasks, columns):
    """Normal entries in multiples of 1/16: products and sums are exact."""
    return np.round(16 * rng.normal(size=(num_tasks, columns))) / 16


def spread(rng, num_tasks):
    """Powers of two with ratio 1e6, in random order: `[tasks, 1]`."""
    return rng.permutation(2.0 ** np.round(np.linspace(-10, 10, num_tasks)))[:, None]


def general(kind, rng, num_tasks, columns):
    """A Jacobian of the given kind, hidden columns included."""
    rows = real(rng, num_tasks, columns)
    if kind == "aligned":
        rows += 1
    elif kind == "conflicting":
        rows -= 0.9 * rows.mean(axis=0)
    elif kind == "dominated":
        rows *= spread(rng, num_tasks)
    elif kind == "dominated_conflicting":
        rows = (rows - 0.9 * rows.mean(axis=0)) * spread(rng, num_tasks)
    elif kind in ("low_rank", "low_rank_aligned"):
        rank = max(1, num_tasks // 3)
        low = 1 if kind == "low_rank_aligned" else -4
        rows = rng.integers(low, 5, (num_tasks, rank)) @ rng.integers(
            -4, 5, (rank, columns)
        )
    elif kind == "opposed":
        rows[-1] = -rows[0] if num_tasks > 1 else rows[0]
    elif kind == "duplicated":
        rows[num_tasks // 2 :] = rows[: num_tasks - num_tasks // 2]
    elif kind == "zero_row":
        rows[rng.integers(num_tasks)] = 0
    elif kind == "zeros":
        rows *= 0
    else:
        assert kind == "random"
    return rows.astype(np.float32).astype(float)


def stationary(kind, rng, num_tasks, columns):
    """A Jacobian of the given kind in its visible columns; hidden ones are random.

    Rows are zero along the first column where they are part of a vanishing positive
    combination, and positive there where they cannot be part of any.
    """
    rows = dyadic(rng, num_tasks, columns)
    inside = {"strongly": num_tasks, "strongly_by_zero": num_tasks - 1}
    few = {**inside, "weakly": max(2, num_tasks // 2)}.get(kind, 0)
    rows[:few, 0] = 0
    rows[few:, 0] = rng.integers(8, 17, num_tasks - few) / 8
    if few:
        weights = rng.integers(1, 4, few - 1)
        rows[few - 1, :-HIDDEN] = -(weights @ rows[: few - 1, :-HIDDEN])
    if kind.endswith("by_zero"):  # any weight of a zero gradient will do
        rows[-1] = 0
    return rng.permutation(rows)


KINDS = [
    "random",
    "aligned",
    "conflicting",
    "dominated",
    "dominated_conflicting",
    "low_rank",
    "low_rank_aligned",
    "opposed",
    "duplicated",
    "zero_row",
    "zeros",
]
GENERAL_POSITION = KINDS[:5]
HARD = ["dominated_conflicting", "low_rank", "opposed", "duplicated", "zeros"]
# By the fewest tasks that they exist for. A zero gradient alone is stationary, weakly.
STATIONARY = {
    "strongly": 2,
    "strongly_by_zero": 3,
    "weakly": 3,
    "weakly_by_zero": 2,
    "not": 1,
}
# Where a method that looks right goes wrong: visible columns, then a hidden one;
# stationary as the kind says.
SPECIAL = {
    # ConFIG's length, sum_i <g_i, x> for x = (1/2, 1), vanishes.
    ("weakly", "length"): [[1, 0, 0], [1, 0, 0], [1, 0, 0], [-5, 0, 0], [0, 1, 0]],
    # So does the median of every column.
    ("weakly", "median"): [[-1, 5, 0], [0, 0, 0], [2, 0, 0]],
    # Krum takes a gradient that is closest to others: the zero.
    ("weakly", "closest"): [[0, 0, 0], [0.125, 0, 0], [5, 5, 0], [9, -9, 0]],
    # IMTL-G turns round: 1^T G^-1 n is negative.
    ("not", "turned"): [[1, 1, -1, 0], [5, -4, -4, 0], [4, 10, 5, 0]],
    # Weights (98, -1), those of Aligned-MTL with the hidden column.
    ("not", "latent"): [[0.125, 0, 1.875], [12.25, 0, 14.25]],
}
SEEDS = {1: 1, 2: 2, 3: 4, 8: 2, 40: 1, 128: 1}


@functools.cache
def jacobians(size):
    """`{(kind, tasks, seed): [tasks, columns]}` of the programs of this size."""
    out, columns = {}, COLUMNS[size] + HIDDEN
    for num_tasks in (1, 2, 3, 8) if size == 8 else (size,):
        kinds = dict.fromkeys(KINDS if size < 128 else HARD, general)
        if size < 128:
            possible = [k for k, least in STATIONARY.items() if num_tasks >= least]
            kinds |= dict.fromkeys(possible, stationary)
        for seed in range(SEEDS[num_tasks]):
            for i, (kind, make) in enumerate(kinds.items()):
                rng = np.random.default_rng([seed, num_tasks, i])
                out[kind, num_tasks, seed] = make(kind, rng, num_tasks, columns)
    for (kind, seed), rows in SPECIAL.items() if size == 8 else ():
        special = np.zeros((len(rows), columns))
        special[:, [*range(len(rows[0]) - 1), -1]] = rows
        out[kind, len(rows), seed] = special
    return out


# The forms in which every Jacobian is given: functions of rows, losses and seed.

HOUSEHOLDER = np.eye(4) - 0.5


def rotate(vectors, columns):
    """Reflects the visible columns, four by four; an orthogonal map, exact here."""
    visible = vectors[..., :columns].reshape(*vectors.shape[:-1], -1, 4) @ HOUSEHOLDER
    visible = visible.reshape(*vectors.shape[:-1], columns)
    return np.concatenate([visible, vectors[..., columns:]], axis=-1)


SCALES = {"tiny": 2.0**-40, "small": 2.0**-12, "large": 2.0**12, "huge": 2.0**40}
FORMS = ["plain", *SCALES, "permuted", "rotated", "reseeded"]
FORMS += ["left", "right", "both", "wide"]  # factors c, c', c + c', ratio 1e6


def form(name, rows, losses, columns, rng):
    """One form of a Jacobian: its rows, losses and seed."""
    num_tasks = len(rows)
    order = rng.permutation(num_tasks)
    left, right = 2.0 ** rng.integers(-5, 6, (2, num_tasks, 1))
    wide = spread(rng, num_tasks)
    factors = {"left": left, "right": right, "both": left + right, "wide": wide}
    if name == "permuted":
        return rows[order], losses[order], 0
    if name == "rotated":
        return rotate(rows, columns), losses, 0
    if name == "reseeded":
        return rows, losses, 1
    return rows * factors.get(name, SCALES.get(name, 1.0)), losses, 0


@functools.cache
def batch(size, forms):
    """Rows, losses, who is present and seeds; absent tasks are NaN."""
    shape = (len(jacobians(size)), len(forms), size)
    rows = np.full((*shape, COLUMNS[size] + HIDDEN), np.nan)
    losses, present = np.full(shape, np.nan), np.zeros(shape, bool)
    seeds = np.zeros(shape[:2], np.int32)
    for i, jacobian in enumerate(jacobians(size).values()):
        there = slice(len(jacobian))
        values = np.random.default_rng(i).uniform(0.5, 2.0, len(jacobian))
        for j, name in enumerate(forms):
            rng = np.random.default_rng(i)  # the same factors in every form
            found = form(name, jacobian, values, COLUMNS[size], rng)
            rows[i, j, there], losses[i, j, there], seed = found
            seeds[i, j], present[i, j, there] = 2 * i + seed, True
    return rows, losses, present, seeds


# Updates of every method on all of them.


def make_run(size, names):
    """First updates of methods and their weights, from one entry of a batch."""
    columns = COLUMNS[size]
    methods = {name: METHODS[name].make(size) for name in names}

    def head(params, z, task, rows, losses):
        return jnp.vdot(rows[task], z) + losses[task]

    def encode(w, rows, losses):
        return jnp.concatenate([w, jnp.zeros(HIDDEN, w.dtype)])

    oracle = mtlopt.task_grad(mtlopt.stacked(head, size), "shared", encode=encode)

    def run(rows, losses, present, seed):
        params = jnp.zeros(columns, rows.dtype)
        latent = oracle(params, rows, losses, present=present)
        visible = mtlopt.TaskGrads.from_rows(rows[:, :columns], losses, present)

        def draw(leaf):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            return jax.random.fold_in(leaf, seed) if is_key else leaf

        found = {}
        for name, tx in methods.items():
            grads = latent if METHODS[name].latent else visible
            state = jax.tree.map(draw, tx.init(params))
            updates, state = tx.update(grads, state, params)
            weights = optax.tree.get_all_with_path(state, "task_weights")
            found[name] = updates, weights[-1][1] if weights else jnp.ones(size)
        return found

    return run


@functools.cache
def updates_and_weights(size, dtype, forms):
    """By method, of the whole batch, one entry after the other.

    Batches of factorisations of several methods may wait for each other for ever: each
    holds a thread of jaxlib's pool while its parts queue up there. And no loop should
    wait for the slowest of a batch.
    """
    rows, losses, *others = (x.reshape(-1, *x.shape[2:]) for x in batch(size, forms))
    entries, found = (rows.astype(dtype), losses.astype(dtype), *others), {}
    with jax.enable_x64(dtype == np.float64):
        for names in in_parts(METHODS, 5):
            run = make_run(size, names)
            compiled = jax.jit(
                lambda batch, run=run: jax.lax.map(lambda entry: run(*entry), batch),
                compiler_options=QUICK,
            )
            found |= jax.device_get(compiled(entries))
    return found


@functools.cache
def visible_rows(size, forms):
    """Rows without hidden columns, those of absent tasks zero, and their lengths."""
    rows, _, present, _ = batch(size, forms)
    rows = np.where(present[..., None], rows, 0)[..., : COLUMNS[size]]
    return rows, np.linalg.norm(rows, axis=-1)


class Results:
    """Updates `[jacobians, forms, columns]` of a method, and what they are made of."""

    def __init__(self, name, size, dtype, forms=tuple(FORMS)):
        updates, weights = updates_and_weights(size, dtype, forms)[name]
        self.method, self.dtype, self.forms = METHODS[name], dtype, forms
        self.rows, self.norms = visible_rows(size, forms)
        self.updates = updates.reshape(*self.rows.shape[:2], -1).astype(float)
        self.weights = weights.reshape(self.rows.shape[:3]).astype(float)
        self.kinds = np.array([kind for kind, *_ in jacobians(size)])
        self.num_tasks = np.array([len(rows) for rows in jacobians(size).values()])

    def of(self, form):
        """Updates in one form."""
        return self.updates[:, self.forms.index(form)]

    def terms(self, form):
        """Sum of the lengths of the terms that make an update; at least its length."""
        j = self.forms.index(form)
        terms = np.sum(np.abs(self.weights[:, j]) * self.norms[:, j], axis=-1)
        return np.maximum(terms, np.linalg.norm(self.of(form), axis=-1))

    def size(self, form="plain"):
        """What errors are relative to: the terms, or the shortest gradient."""
        norms = self.norms[:, self.forms.index(form)]
        shortest = np.min(np.where(norms == 0, np.inf, norms), axis=-1)
        return np.maximum(self.terms(form), self.to_degree(shortest))

    def to_degree(self, lengths):
        """Lengths of gradients as lengths of updates."""
        degree = 1.0 if self.method.degree is None else self.method.degree
        return np.where(np.isfinite(lengths) & (lengths > 0), lengths, 1.0) ** degree


@functools.cache
def results(name, size, dtype):
    return Results(name, size, dtype)


def divide(numerator, denominator):
    """A quotient of which 0/0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(numerator == 0, 0.0, numerator / denominator)


def relative(error, size):
    """Lengths of vectors along the last axis, relative to `size`."""
    return divide(np.linalg.norm(error, axis=-1), size)


# Measures of violation, one a claim: relative errors of all Jacobians.


def degree_violation(r, degree):
    scaled = [r.of(form) / scale**degree for form, scale in SCALES.items()]
    return np.stack([relative(x - r.of("plain"), r.size()) for x in scaled])


def deterministic(r):
    return relative(r.of("reseeded") - r.of("plain"), r.size())


def permutation_equivariant(r):
    return relative(r.of("permuted") - r.of("plain"), r.size())


def non_conflicting(r):
    """Minus the smallest cosine, in every form; none where the update is rounding."""
    inner = np.einsum("bftp,bfp->bft", r.rows, r.updates)
    terms = np.stack([r.terms(form) for form in r.forms], axis=1)
    lengths = np.maximum(np.linalg.norm(r.updates, axis=-1), CANCELLED[r.dtype] * terms)
    cosines = divide(inner, lengths[..., None] * r.norms)
    return np.maximum(0.0, -np.min(cosines, axis=(1, 2)))


def linear_under_scaling(r):
    error = r.of("both") - r.of("left") - r.of("right")
    return relative(error, r.size("left") + r.size("right"))


def task_scale_invariant(r):
    forms = ("left", "wide")
    return np.stack([relative(r.of(f) - r.of("plain"), r.size()) for f in forms])


def length_where(r, *kinds):
    """Lengths of the updates on these kinds, relative to the longest gradient."""
    chosen = np.isin(r.kinds, kinds)
    longest = r.to_degree(np.max(r.norms[chosen, 0], axis=-1))
    return relative(r.of("plain")[chosen], longest)


def zero_if_strongly_stationary(r):
    return length_where(r, "strongly", "strongly_by_zero")


def zero_if_weakly_stationary(r):
    return length_where(r, *set(STATIONARY) - {"not"})


def zero_only_if_strongly_stationary(r):
    """One where the update is zero, zero where it is clearly not, else between."""
    lengths = length_where(r, "weakly", "weakly_by_zero", "not")
    return np.where(lengths < ZERO, 1.0, np.where(lengths < NONZERO, 0.004, 0.0))


def in_span(r):
    """Distance to the row space, and A(J Q) = A(J) Q for an orthogonal Q.

    Where the order of the tasks matters, rounding may decide ties: no Q for those.
    """
    plain = r.of("plain")
    unit = divide(r.rows[:, 0], r.norms[:, 0, :, None])
    _, values, basis = np.linalg.svd(unit, full_matrices=False)
    basis = basis * (values > 1e-10 * values[:, :1])[..., None]
    inside = np.einsum("btp,btq,bq->bp", basis, basis, plain)
    turned = relative(r.of("rotated") - rotate(plain, plain.shape[-1]), r.size())
    ties = ~np.isin(r.kinds, GENERAL_POSITION) | (r.num_tasks < 8)
    if "permutation_equivariant" not in r.method.properties:
        turned = np.where(ties, 0.0, turned)
    return np.stack([relative(plain - inside, r.size()), turned])


MEASURES = [
    deterministic,
    permutation_equivariant,
    non_conflicting,
    linear_under_scaling,
    task_scale_invariant,
    zero_if_strongly_stationary,
    zero_if_weakly_stationary,
    zero_only_if_strongly_stationary,
    in_span,
]

methods = pytest.mark.parametrize("name", METHODS)


def test_every_claim_is_measured():
    assert tuple(measure.__name__ for measure in MEASURES) == CLAIMS


@methods
def test_claims_are_consistent(name):
    """Claims are known, and what one implies is claimed too."""
    method = METHODS[name]
    assert method.properties <= set(CLAIMS)
    for stronger, weaker in [
        ("linear_under_scaling", method.degree == 1),
        ("task_scale_invariant", method.degree == 0),
        (
            "zero_if_weakly_stationary",
            "zero_if_strongly_stationary" in method.properties,
        ),
    ]:
        assert weaker or stronger not in method.properties, stronger


def check(name, r, measures):
    """Asserts that updates are finite and the claims that are made hold."""
    assert np.all(np.isfinite(r.updates)), r.kinds[
        ~np.all(np.isfinite(r.updates), axis=(1, 2))
    ]
    np.testing.assert_array_equal(r.updates[r.kinds == "zeros"], 0)
    for measure in measures:
        if measure.__name__ in r.method.properties:
            found = np.max(measure(r), initial=0.0)
            allowed = COSINE if measure is non_conflicting else ROUNDING
            assert found <= allowed[r.dtype], (measure.__name__, found)


@methods
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        slow(8, np.float32),
        (8, np.float64),
        slow(40, np.float32),
        slow(40, np.float64),
    ],
)
def test_claims_hold(name, size, dtype):
    """For 1 to 40 tasks and scales 1e-12 to 1e12: finite, the degree, every claim."""
    r = results(name, size, dtype)
    check(name, r, MEASURES)
    if r.method.degree is not None:
        found = np.max(degree_violation(r, r.method.degree))
        assert found <= ROUNDING[dtype], ("degree", found)


@pytest.mark.slow
@methods
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_claims_hold_for_many_tasks(name, dtype):
    """128 tasks: finite, and never a conflict where that is claimed."""
    r = Results(name, 128, dtype, ("plain", "wide"))
    check(name, r, [non_conflicting])


@methods
def test_other_claims_are_refuted(name):
    """What a method does not claim fails on some Jacobian; likewise any degree."""
    r = results(name, 8, np.float64)
    for measure in MEASURES:
        claim = measure.__name__
        if claim not in r.method.properties and (name, claim) not in NOT_REFUTED:
            assert np.max(measure(r)) > CLEAR, claim
    if r.method.degree is None:
        lengths = np.linalg.norm(
            np.stack([r.of("large"), r.of("plain")])[:, 0], axis=-1
        )
        fitted = np.log(lengths[0] / lengths[1]) / np.log(SCALES["large"])
        assert np.max(degree_violation(r, fitted)) > CLEAR, fitted
