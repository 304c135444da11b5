"""Transforms that read labels work inside `nnx.Optimizer`, which unboxes parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mtlopt
from mtlopt import label_params
from tests.problems import assert_close

RULES = {"*": "shared", "a": "a", "b": "b"}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.Linear(2, 3, rngs=rngs)
        self.a = nnx.Linear(3, 1, rngs=rngs)
        self.b = nnx.Linear(3, 1, rngs=rngs)


TRANSFORMS = {
    "per_label": lambda labels: mtlopt.per_label(optax.adam(0.1), labels),
    "alternate_blocks": lambda labels: mtlopt.alternate_blocks(
        optax.adam(0.1), optax.sgd(0.1, momentum=0.9), labels
    ),
    "track_distance": lambda labels: optax.chain(
        optax.sgd(0.1), mtlopt.track_distance(labels)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_labels_of_a_state_inside_nnx_optimizer(name):
    """Three updates are those of the same optimizer on a plain dict, state and all."""
    model = Net(nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    inside = nnx.Optimizer(
        model, TRANSFORMS[name](label_params(state, RULES)), wrt=nnx.Param
    )
    params = nnx.to_pure_dict(state)
    plain = TRANSFORMS[name](RULES)
    plain_state = plain.init(params)

    rng = np.random.default_rng(0)
    for active in (None, {"b": False}, {"a": jnp.array(False)}):
        grads = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params
        )
        boxed = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(boxed, grads)
        inside.update(model, boxed, active=active)
        updates, plain_state = plain.update(grads, plain_state, params, active=active)
        params = optax.apply_updates(params, updates)
        assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params, 1e-6)
    kept = jax.tree.leaves(nnx.as_pure(inside.opt_state))
    assert_close(kept, jax.tree.leaves(plain_state), 1e-6)
