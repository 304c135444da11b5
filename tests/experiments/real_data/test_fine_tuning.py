"""Fine-tuning by domain: adapters beside a frozen base, and what the command tells."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtlopt
from experiments.__main__ import main
from experiments.data.digits import Digits, DigitSet
from experiments.real_data import fine_tuning
from experiments.real_data.fine_tuning import DOMAINS, LABELS, WEIGHTINGS
from tests.problems import QUICK, assert_close


@pytest.fixture
def digits(monkeypatch):
    """Made-up digits, and a tenth of the examples to train on."""
    few = {name: (change, n // 50) for name, (change, n) in DOMAINS.items()}
    monkeypatch.setattr(fine_tuning, "DOMAINS", few)
    monkeypatch.setattr(fine_tuning, "_NUM_TRAIN", sum(n for _, n in few.values()))
    rng = np.random.default_rng(0)

    def some(num):
        images = rng.integers(0, 256, size=(num, 28, 28)).astype(np.uint8)
        return DigitSet(images, rng.integers(0, 10, size=num))

    return Digits(some(50), some(6), some(8), "made up")


def test_domains(digits):
    data = fine_tuning.make_data(digits)
    assert len(data["base"]["y"]) == 20
    sizes = np.bincount(data["train"]["domain"])
    np.testing.assert_array_equal(sizes, [2, 4, 8, 16])
    test = data["test"]["x"].reshape(4, 8, 14, 14)
    upright = digits.test.images.reshape(8, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(test[0], upright, rtol=1e-6)
    np.testing.assert_array_equal(test[1, :, :, 3:], test[0, :, :, :-3])
    np.testing.assert_array_equal(test[2, :, :, ::-1], test[0])
    for side in range(14):  # a turn takes the last column to the first row
        np.testing.assert_array_equal(test[3, :, side], test[0, :, :, 13 - side])
    np.testing.assert_array_equal(data["test"]["y"], np.tile(digits.test.labels, 4))
    shown = np.concatenate([data["base"]["y"], data["train"]["y"]])
    np.testing.assert_array_equal(np.sort(shown), np.sort(digits.train.labels))


def small_params():
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32)

    pairs = [(196, 6), (6, 10)]
    base = [{"w": normal(*pair), "b": normal(pair[1])} for pair in pairs]
    adapters = [{"down": normal(m, 2), "up": normal(2, n)} for m, n in pairs]
    return {"base": base, "adapters": adapters}


@pytest.mark.slow
def test_adapters_are_trained_as_if_alone(digits):
    """By an oracle whose functions close over the base, and which has adapters only."""
    params, train = small_params(), fine_tuning.make_data(digits)["train"]
    alone = mtlopt.task_grad(
        mtlopt.samplewise(
            mtlopt.stacked(fine_tuning.cross_entropy, len(DOMAINS)),
            task_of=lambda sample: sample["domain"],
        ),
        "shared",
        encode=lambda adapters, sample: fine_tuning.encode(
            {"base": params["base"], "adapters": adapters}, sample
        ),
    )
    weights = jnp.array([0.5, 1.0, 2.0, 1.5])
    args = jnp.asarray(0.01), jnp.asarray(0), weights, train
    quick = functools.partial(jax.jit, compiler_options=QUICK)
    whole = quick(fine_tuning.make_train("upgrad", 4))(params, *args)
    own = quick(fine_tuning.make_train("upgrad", 4, alone))(params["adapters"], *args)
    assert_close(whole["adapters"], own, rtol=1e-5)
    assert not np.allclose(own[0]["up"], params["adapters"][0]["up"], atol=1e-3)
    for old, new in zip(
        jax.tree.leaves(params["base"]), jax.tree.leaves(whole["base"]), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    state = mtlopt.per_label(optax.adam(0.1), LABELS).init(params)
    assert set(state.inner_states) == {"shared"}


def test_losses_and_errors_by_domain(digits):
    params, data = small_params(), fine_tuning.make_data(digits)["test"]
    losses, errors = jax.jit(fine_tuning.evaluate)(params, data)
    for number in range(len(DOMAINS)):
        own = data["domain"] == number
        z = np.asarray(data["x"][own], float)
        for i, (base, adapter) in enumerate(
            zip(params["base"], params["adapters"], strict=True)
        ):
            low_rank = np.asarray(adapter["down"], float) @ np.asarray(adapter["up"])
            z = z @ (np.asarray(base["w"]) + low_rank) + np.asarray(base["b"])
            z = np.maximum(z, 0) if i == 0 else z
        shares = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        y = np.asarray(data["y"][own])
        loss = -np.log(shares[np.arange(len(y)), y]).mean()
        np.testing.assert_allclose(losses[number], loss, rtol=1e-5)
        np.testing.assert_allclose(errors[number], np.mean(z.argmax(axis=1) != y))


def test_the_command_chooses_and_tells(digits, monkeypatch, tmp_path):
    """With made-up losses: the weights and the rate that are best by validation win."""
    monkeypatch.setattr(fine_tuning, "load_digits", lambda: digits)
    monkeypatch.setattr(
        fine_tuning,
        "learn_base",
        lambda params, seed, samples: jnp.ones(4) * (2 + seed % 10),
    )

    def make_train(method, steps):
        def train(params, rate, seed, weights, samples):
            far = jnp.abs(jnp.log10(rate / 0.01)) + jnp.abs(weights[0] - far_weight)
            return params * (1 + far) * {"upgrad": 0.5}.get(method, 1.0)

        return train

    far_weight = WEIGHTINGS["examples^-0.5"][0]
    monkeypatch.setattr(fine_tuning, "make_train", make_train)
    monkeypatch.setattr(
        fine_tuning, "evaluate", lambda params, samples: (params, params / 100)
    )
    out = tmp_path / "out"
    options = ["--methods", "upgrad,mgda", "--seeds", "3", "--out", str(out)]
    assert main(["real_data.fine_tuning", *options]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["chosen"]["Tuned weights"] == "examples^-0.5 0.01"
    assert results["chosen"]["UPGrad"] == "0.01"
    report = (out / "report.md").read_text()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in report.split("## Errors")[0].splitlines()
        if line.startswith("| ")
    }
    # Seeds 0, 1 and 2 have losses 2, 3 and 4.
    assert rows["Tuned weights"][1] == "3.000 ± 1.000"
    assert rows["Tuned weights"][6:] == ["1.00", ""]
    worse = 1 + abs(1 - far_weight)
    assert rows["MGDA"][6:] == [f"{worse:.2f}", "higher"]
    assert rows["UPGrad"][6:] == [
        f"{worse / 2:.2f}",
        "lower" if worse < 2 else "higher",
    ]
    assert rows["Base alone"][6:] == ["1.00", "no difference"]


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    pytest.importorskip("mlxtend")
    out = tmp_path / "out"
    options = ["--rates", "0.01", "--out", str(out)]
    assert main(["real_data.fine_tuning", *options]) == 0
    results = json.loads((out / "results.json").read_text())
    mean = functools.partial(np.mean, axis=0)
    losses = {
        name: mean([run["value"] for run in runs])
        for name, runs in results["runs"].items()
    }
    assert max(losses, key=losses.get) == "Base alone"
    assert all(loss < 0.5 * losses["Base alone"] for loss in list(losses.values())[:-1])
