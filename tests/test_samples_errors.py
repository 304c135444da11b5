"""One task per sample: what is refused, and how the message says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import mtlopt
from tests.test_samples import (
    LABELS,
    STACKED,
    encode,
    first,
    loss,
    make_batches,
    make_params,
    samplewise,
    task_of,
)

PARAMS, BATCH = make_params(), first(make_batches())


def raises(error, match):
    return pytest.raises(error, match=match)


def build(losses=STACKED, task=task_of, tasks=None, encode=encode, **options):
    chosen = mtlopt.samplewise(losses, task, **options)
    return mtlopt.task_grad(chosen, LABELS, encode=encode, tasks=tasks)


def test_arguments():
    with raises(TypeError, r"`losses` of samplewise must be a mapping .* got int"):
        build(3)
    with raises(
        TypeError, "`task_of` must be a function of one sample, .* got ndarray"
    ):
        build(task=BATCH["task"])
    with raises(TypeError, "`weight_of` must be a function of one sample"):
        build(weight_of=np.ones(3))
    with raises(ValueError, "`reduce` must be one of 'mean', 'sum', got 'max'"):
        build(reduce="max")
    with raises(
        ValueError, "`encode` must be given for samplewise losses in a mapping"
    ):
        build({"a": loss}, encode=None)
    with raises(ValueError, "`tasks` must name the 4 stacked tasks, got 1"):
        build(tasks=["a"])


def test_batches():
    oracle = samplewise()
    with raises(ValueError, "needs a batch of arrays as the first argument"):
        oracle(PARAMS)
    with raises(ValueError, "needs a batch of arrays as the first argument"):
        oracle(PARAMS, {})
    with raises(ValueError, "`scale` must have a leading axis of samples, got 2.0"):
        oracle(PARAMS, {**BATCH, "scale": 2.0})
    with raises(ValueError, r"same leading axis of samples, got 5 in `table` and 12"):
        oracle(PARAMS, {"table": np.ones(5), **BATCH})


def test_tasks_and_weights():
    with raises(TypeError, "`task_of` must return an integer, got float"):
        build(task=lambda sample: sample["y"])(PARAMS, BATCH)
    with raises(ValueError, r"`task_of` must return a scalar .* got shape \(1,\)"):
        build(task=lambda sample: sample["task"][None])(PARAMS, BATCH)
    with raises(ValueError, r"`weight_of` must return a scalar .* got shape \(3,\)"):
        build(weight_of=lambda sample: sample["x"])(PARAMS, BATCH)
    with raises(ValueError, "got None with 12 samples and 4 tasks"):
        build(task=None)(PARAMS, BATCH)


def test_losses_of_one_sample():
    def of_batch(params, z, task, sample):
        return sample["x"]

    with raises(ValueError, r"must be a scalar, got shape \(3,\)"):
        build(mtlopt.stacked(of_batch, 4))(PARAMS, BATCH)


def test_functions_that_cannot_be_vmapped():
    alone = core.Primitive("alone")
    alone.def_impl(lambda x: x)
    alone.def_abstract_eval(lambda x: x)
    with raises(ValueError, "must be functions of one sample that jax.vmap can run"):
        build(encode=lambda params, sample: alone.bind(encode(params, sample)))(
            PARAMS, BATCH
        )


def test_sums_of_microbatches():
    oracle = samplewise(reduce="sum", microbatches=2)
    with raises(ValueError, "`reduce` of samplewise must be 'mean' with several"):
        oracle(PARAMS, BATCH)


def test_streamed_rows_are_not_kept():
    rows = samplewise(streaming=True)(PARAMS, BATCH).rows()
    with raises(ValueError, "`streaming` must be False for a method that needs more"):
        rows.leaves()


def test_ownership_is_that_of_one_sample():
    def reader(params, z, task, sample):
        return loss(params, z, task, sample) + params["encoder"]["b"][0]

    with raises(ValueError, "reads the shared leaf `encoder/b`"):
        build(mtlopt.stacked(reader, 4))(PARAMS, BATCH)


def test_labels_are_inferred():
    form = mtlopt.samplewise(STACKED, task_of)
    labels = mtlopt.infer_labels(form, PARAMS, BATCH, encode=encode)
    assert set(jax.tree.leaves(labels["encoder"])) == {"shared"}
    assert set(jax.tree.leaves(labels["heads"])) == {"stacked"}


def test_nothing_is_shared():
    labels = {"encoder": "frozen", "heads": "stacked"}
    oracle = samplewise(labels=labels)
    grads = jax.jit(oracle)(PARAMS, BATCH)
    method = mtlopt.mgda(4)
    updates, _ = method.update(grads, method.init(PARAMS), PARAMS)
    assert jnp.any(updates["heads"]["w"] != 0)
    assert not jnp.any(updates["encoder"]["w"])
