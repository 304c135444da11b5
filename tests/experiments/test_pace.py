"""Plateaus and stopping, against what two callbacks of Keras are documented to do."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.pace import Patience

PATIENCE = Patience(stop=5, plateau=2, factor=0.75, min_delta=1e-4)


def callbacks_of_keras(losses, patience):
    """ReduceLROnPlateau and EarlyStopping, from validation losses.

    Returns the multiple of the learning rate in each epoch, and the best epoch.
    """
    rate, waited, lowest = 1.0, 0, np.inf
    best, best_epoch, since = np.inf, 0, 0
    rates = []
    for epoch, loss in enumerate(losses, start=1):
        rates.append(rate)
        if loss < lowest - patience.min_delta:
            lowest, waited = loss, 0
        else:
            waited += 1
            if waited >= patience.plateau:
                rate, waited = patience.factor * rate, 0
        if loss < best:
            best, best_epoch, since = loss, epoch, 0
        else:
            since += 1
            if since >= patience.stop:
                break
    return rates, best_epoch


def test_plateaus_and_stopping_are_those_of_keras():
    """Of 64 runs at once, some of which fall by less than the least fall, or to NaN."""
    rng = np.random.default_rng(0)
    losses = rng.normal(size=(64, 60)) - np.linspace(0, 3, 60)
    losses[:16] = losses[:16].round()
    losses[16:32] *= 5e-5
    losses[32:36, 7:] = np.nan
    losses[36, :] = np.nan
    losses = losses.astype(np.float32)

    @jax.jit
    @jax.vmap
    def run(losses):
        def epoch(pace, loss):
            goes_on = PATIENCE.goes_on(pace)
            after = PATIENCE.after(pace, (loss[None], ()), loss)
            after = jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), after, pace)
            return after, (pace.plateau.scale, goes_on)

        return jax.lax.scan(epoch, PATIENCE.start((jnp.zeros(1), ())), losses)

    pace, (scales, goes_on) = jax.device_get(run(losses))
    for i, own in enumerate(losses):
        rates, best = callbacks_of_keras(own, PATIENCE)
        stop = len(rates)
        assert goes_on[i].tolist() == [True] * stop + [False] * (60 - stop)
        np.testing.assert_allclose(scales[i, :stop], rates, rtol=1e-5)
        assert (pace.epochs[i], pace.best.epoch[i]) == (stop, best)
        assert pace.best.model[0][i, 0] == (own[best - 1] if best else 0)
    assert len(set(pace.epochs.tolist())) > 5  # they stop at many epochs
    assert pace.epochs[36] == PATIENCE.stop
