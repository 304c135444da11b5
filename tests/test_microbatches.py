"""k parts of a batch are one batch: rows are averaged before they are aggregated."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtlopt
from tests.marks import slow
from tests.problems import (
    LABELS,
    LOSSES,
    QUICK,
    ROUTES,
    STEPS,
    TASKS,
    assert_close,
    encode,
    losses_of,
    make_batches,
    make_oracle,
    make_params,
    make_run,
    squared_error,
)

PARAMS = make_params()
BATCHES = make_batches()


def make_cut_oracle(parts, masked=False, **options):
    """The toy problem with its batch `(x, y, mask)` as the first argument."""

    def encode_batch(params, batch):
        return encode(params, *batch)

    def make_loss(task):
        index = TASKS.index(task)

        def loss(params, z, batch):
            _, y, mask = batch
            head = params["heads"][task]
            if not masked:
                return squared_error(head, z, y[:, index])
            error = (z @ head["w"] + head["b"] - y[:, index]) ** 2
            labels = mask[:, index]
            return jnp.sum(labels * error) / jnp.maximum(jnp.sum(labels), 1)

        return loss

    return mtlopt.task_grad(
        {task: make_loss(task) for task in TASKS},
        LABELS,
        encode=encode_batch,
        microbatches=parts,
        label_counts=(lambda batch: jnp.sum(batch[2], axis=0)) if masked else None,
        **options,
    )


# A method after the rows is the same whatever they are means of: four of all routes.
FEW = ("sum_tasks", "mgda", "mgda_ub", "moco")


@functools.cache
def program(parts, masked):
    """A program of all batches: every method's, or of a few if there are more parts."""
    names = FEW if parts == 4 and not masked else ROUTES
    return make_run(make_cut_oracle(parts, masked), names)


@functools.cache
def run(parts, masked=False):
    return program(parts, masked)(PARAMS, (BATCHES,))[0]


@functools.cache
def run_with_all_labels():
    """Of whole batches, whose masked means are then means."""
    x, y, mask = BATCHES
    return program(1, True)(PARAMS, ((x, y, np.ones_like(mask)),))[0]


@pytest.mark.parametrize(
    ("name", "parts"),
    [(name, 2) for name in ROUTES] + [slow(name, 4) for name in FEW],
)
def test_parts_equal_the_whole_batch(name, parts):
    """A(mean of the parts' rows), in parameter and in latent space."""
    assert_close(run(parts)[name], run_with_all_labels()[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUTES)
def test_masked_means_are_weighted_by_label_counts(name):
    """Losses that are means over the labels, of which parts hold unequal numbers."""
    assert np.ptp(np.sum(BATCHES[2].reshape(STEPS, 2, 4, 3), axis=1)) == 2
    assert_close(run(4, masked=True)[name], run(1, masked=True)[name])


def test_label_counts_are_relative(float64):
    """Only ratios of counts matter: they may be sums of small sample weights."""
    oracle = make_cut_oracle(4, masked=True)
    batch = jax.tree.map(lambda leaf: leaf[0], BATCHES)
    small = mtlopt.task_grad(
        oracle.problem.problem.head_fns.head_fns,
        LABELS,
        encode=oracle.problem.problem.encode,
        microbatches=4,
        label_counts=lambda batch: 1e-3 * jnp.sum(batch[2], axis=0),
    )
    found, expected = (jax.jit(o.losses)(PARAMS, batch) for o in (small, oracle))
    assert_close(found, expected, 1e-12)


def vector_and_independent(parts):
    def losses(params, batch):
        return losses_of(params, *batch)

    separate = {
        task: lambda params, batch, loss=loss: loss(
            params, encode(params, *batch), *batch
        )
        for task, loss in LOSSES.items()
    }
    options = {"microbatches": parts}
    return (
        mtlopt.task_grad(losses, LABELS, tasks=TASKS, **options),
        mtlopt.task_grad(separate, LABELS, **options),
    )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [0, 1], ids=["vector", "independent"])
def test_other_shapes_of_the_problem(shape, float64):
    batch = jax.tree.map(lambda leaf: leaf[0], BATCHES)

    def measure(oracle):
        def numbers(params, batch):
            grads = oracle(params, batch).scale_by(jnp.array([1.0, -3.0, 2.0]))
            rows = grads.rows()
            weights = jnp.array([2.0, 1.0, 0.5])
            combined = grads.updates(rows.combine(weights))
            group = oracle.task(jnp.array([1.0, 0.0, 2.0]), params, batch).grad
            return grads.losses, rows.gramian(), combined, grads.total(), group

        return jax.jit(numbers, compiler_options=QUICK)(PARAMS, batch)

    whole = measure(vector_and_independent(1)[shape])
    assert_close(measure(vector_and_independent(4)[shape]), whole, 1e-12)


def test_parts_of_the_gradient(float64):
    """`losses`, `task`, `block` and a group's gradient."""
    batch = jax.tree.map(lambda leaf: leaf[0], BATCHES)

    def everything(oracle, *args):
        def run(params, args):
            return {
                "losses": oracle.losses(params, *args),
                "task": oracle.task("b", params, *args),
                "group": oracle.task(jnp.array([1.0, 0.0, 2.0]), params, *args),
                "shared": oracle.block("shared", params, *args),
                "heads": oracle.block("task", params, *args),
            }

        return jax.jit(run, compiler_options=QUICK)(PARAMS, args)

    expected = everything(make_oracle(), *batch)
    assert_close(everything(make_cut_oracle(2), batch), expected, 1e-12)


def test_keys_are_folded_with_the_part(float64):
    """Part i sees fold_in(key, i), in the encoder and in every head."""

    def encode(params, x, key):
        kept = jax.random.bernoulli(key, 0.5, x.shape)
        return params["w"] * jnp.where(kept, x, 0)

    def loss(params, z, x, key):
        return jnp.mean((z + params["a"] * jax.random.normal(key, x.shape)) ** 2)

    def gradient(parts):
        return mtlopt.task_grad(
            {"a": loss},
            {"w": "shared", "a": "a"},
            encode=encode,
            microbatches=parts,
        )

    params = {"w": np.array([1.0, 2.0]), "a": np.array([0.5, -1.0])}
    x, key = np.random.default_rng(0).normal(size=(6, 2)), jax.random.key(3)
    single = jax.jit(lambda *args: gradient(1)(params, *args).total())
    expected = [single(x[i::3], jax.random.fold_in(key, i)) for i in range(3)]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *expected)

    @jax.jit
    def read(x, key):
        grads = gradient(3)(params, x, key)
        # The second pass of the latent space draws the same numbers.
        rows = grads.in_latent_space().rows()
        again = grads.updates(rows.combine(jnp.ones(1)))
        return grads.total(), again, grads.jacobian()["w"][0]

    total, again, jacobian = read(x, key)
    assert_close(total, mean, 1e-12)
    assert_close(again, mean, 1e-12)
    assert_close(jacobian, mean["w"], 1e-12)


def test_aux_has_an_axis_of_parts():
    oracle = mtlopt.task_grad(
        {"a": lambda p, z, x: (jnp.mean(p["a"] * z), jnp.max(x))},
        {"w": "shared", "a": "a"},
        encode=lambda p, x: (p["w"] * x, jnp.sum(x)),
        has_aux=True,
        microbatches=2,
    )
    aux = oracle({"w": 1.0, "a": 1.0}, jnp.arange(4.0)).aux
    np.testing.assert_array_equal(aux.encode, [2.0, 4.0])  # of 0, 2 and of 1, 3
    np.testing.assert_array_equal(aux.tasks["a"], [2.0, 3.0])


@pytest.mark.parametrize("name", ["sum_tasks", "mgda_ub", "mgda"])
def test_a_task_absent_from_some_parts_counts_where_it_is(name):
    """Labels of task b in the last of four parts only: the others weigh nothing."""
    x, y, mask = (leaf.copy() for leaf in BATCHES)
    mask[:, :, 1] = False
    mask[:, 3::4, 1] = True
    found, expected = (
        program(k, True)(PARAMS, ((x, y, mask),))[0][name] for k in (4, 1)
    )
    assert_close(found, expected)


def test_part_without_labels_does_not_reach_the_others():
    """A mean over no labels is NaN, in a part that counts zero labels for its task."""
    params = jax.tree.map(np.float32, {"w": np.array([1, -2]), "a": 2, "b": 3})
    mask = np.float32([1, 0, 1, 0])
    x = np.arange(8, dtype=np.float32).reshape(4, 2)

    def masked(params, z, batch):
        return jnp.sum(batch[1] * (params["a"] * z) ** 2) / jnp.sum(batch[1])

    def oracle(parts):
        return mtlopt.task_grad(
            {"a": masked, "b": lambda params, z, _: jnp.mean(params["b"] * z)},
            {"w": "shared", "a": "a", "b": "b"},
            encode=lambda params, batch: batch[0] @ params["w"],
            microbatches=parts,
            label_counts=lambda batch: jnp.array([batch[1].sum(), len(batch[1])]),
        )

    @functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def updates(parts, params, batch):
        grads, found = oracle(parts)(params, batch), {}
        for name in ("sum_tasks", "mgda", "aligned_mtl_ub"):
            tx = mtlopt.METHODS[name].make(2)
            found[name], _ = tx.update(grads, tx.init(params))
        return found

    whole, parts = (updates(k, params, (x, mask)) for k in (1, 2))
    chex.assert_trees_all_close(parts, whole, rtol=1e-5)


def test_latent_leaf_without_a_batch_axis_counts_once():
    """Its rows add up over the parts, unlike those that hold a piece of the batch."""
    params = {"w": np.array([[1.0, -2.0], [0.5, 1.0]]), "a": np.ones(2)}

    def oracle(parts):
        return mtlopt.task_grad(
            {
                "a": lambda params, z, x: (
                    jnp.mean((z["h"] @ params["a"]) ** 2) + jnp.mean((x @ z["w"]) ** 2)
                ),
                "b": lambda params, z, x: jnp.mean(jnp.sin(z["h"]) * (x @ z["w"])),
            },
            {"w": "shared", "a": "a"},
            encode=lambda params, x: {"h": jnp.tanh(x @ params["w"]), "w": params["w"]},
            headless=("b",),
            microbatches=parts,
        )

    def gramian(parts):
        grads = lambda x: oracle(parts)(params, x)  # noqa: E731
        read = jax.jit(lambda x: grads(x).in_latent_space().rows().gramian())
        return read(np.linspace(-1, 1, 16).reshape(8, 2))

    whole, parts = gramian(1), gramian(4)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_second_array_of_the_batch_is_an_error():
    oracle = mtlopt.task_grad(
        {"a": lambda params, x, y: jnp.mean((x @ params - y) ** 2)},
        "shared",
        microbatches=2,
    )
    with pytest.raises(ValueError, match=r"argument 2 .* leading size of the batch"):
        oracle(jnp.ones(3), jnp.ones((4, 3)), jnp.ones(4))
    oracle = mtlopt.task_grad(
        {"a": lambda params, x, y: jnp.mean((x @ params - y["left"]) ** 2)},
        "shared",
        microbatches=2,
    )
    with pytest.raises(TypeError, match="sub got incompatible shapes") as info:
        oracle(jnp.ones(3), jnp.ones((4, 3)), {"left": jnp.ones(4)})
    assert "pass the batch as one pytree" in info.value.__notes__[-1]


@pytest.mark.parametrize("empty", [None, 0.5])
def test_an_absent_task_has_the_loss_of_the_whole_batch(empty):
    """The mean over no labels is NaN; a zero would look as if the task were learned."""

    def loss(task):
        def loss_of(params, z, x):
            mean = jnp.mean((z * params[task] - 3) ** 2, where=x[task])
            return mean if empty is None else jnp.where(x[task].any(), mean, empty)

        return loss_of

    params = {"w": 1.0, "a": 1.0, "b": 1.0}
    batch = {"x": np.arange(4.0), "a": np.ones(4, bool), "b": np.zeros(4, bool)}
    counts = lambda batch: {task: batch[task].sum() for task in "ab"}  # noqa: E731

    def oracle(**options):
        return mtlopt.task_grad(
            {"a": loss("a"), "b": loss("b")},
            ["a", "b"],
            encode=lambda params, x: params["w"] * x["x"],
            **options,
        )

    whole, parts = oracle(), oracle(microbatches=2, label_counts=counts)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def found(batch, present):
        absent = [
            (grads.losses, grads.jacobian()["w"], grads.head_grads)
            for grads in (
                each(params, batch, present=present) for each in (whole, parts)
            )
        ]
        nobody = parts(params, batch, present=np.array([False, False]))
        return absent, nobody.losses, parts(params, batch).losses

    absent, nobody, unlabelled = found(batch, np.array([True, False]))
    for losses, rows, head_grads in absent:
        np.testing.assert_allclose(losses, [3.5, empty or np.nan])
        np.testing.assert_allclose(rows, [-2, 0])
        np.testing.assert_allclose(head_grads, [-2, 0])
    np.testing.assert_array_equal(nobody, 0)
    np.testing.assert_allclose(unlabelled, [3.5, 0])
