"""What reuse of weights does: the numbers of both tables, on few steps."""

import jax
import numpy as np
import optax
import pytest

import mtlopt
from experiments.aligned_mtl.multimnist import (
    Settings,
    lenet_problem,
    load_data,
    make_schedule,
)
from experiments.bench import every as bench
from experiments.bench.workloads import wide_mlp
from experiments.lab.batches import epoch_order, take


def test_the_goal_is_nine_plain_steps_and_one_of_the_method():
    cost = bench.Cost("a network", "mgda", 2.0, step=11.0, reused=2.2)
    assert cost.goal == pytest.approx(2.0)
    assert cost.cells() == ["MGDA", "11.00", "2.20", "2.00", "1.10"]


@pytest.mark.slow
def test_training_reuses_weights():
    """Six steps by hand: weights of the first and the fourth batch."""
    settings = Settings(methods=("mgda",), epochs=1, seeds=1, batch_size=8)
    problem = lenet_problem(load_data(None, 8, num_train=48, num_validation=8))
    found = bench.train(problem, settings, "mgda", 3)

    adam = optax.adam(make_schedule(settings, 6))
    params, model_state = problem.init(0)
    state, losses, weights = adam.init(params), [], np.zeros(2)

    @jax.jit
    def gradients(params, batch):
        grads = problem.oracle(params, batch, model_state)
        return mtlopt.mgda_weights(grads.rows().gramian()), grads

    for step, rows in enumerate(epoch_order(48, 8, 1, 0)[0]):
        new, grads = gradients(params, take(problem.splits["train"], rows))
        if step % 3 == 0:
            weights = new
        updates, state = adam.update(grads.combine(weights), state, params)
        params = optax.apply_updates(params, updates)
        losses.append(grads.losses)
    np.testing.assert_allclose(found.loss, np.mean(losses), rtol=1e-4)


@pytest.mark.slow
def test_cost_of_a_step_with_many_tasks():
    """Reuse is nearer to the plain step than to the method's, on a busy machine too."""
    cost = bench.measure(wide_mlp(num_tasks=8, batch_size=16), "mgda", rounds=1)
    assert 0.5 < cost.reused < cost.step
