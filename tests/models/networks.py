"""What the networks' tests share: counts, and numbers without anything to compile."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def normal(shape, seed=0, dtype=np.float32):
    """Standard normal numbers; from NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def compiled(function):
    """`jax.jit` that compiles fast and runs slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def count(module, *kinds):
    """Numbers in a module's state, by default in its parameters."""
    leaves = jax.tree.leaves(nnx.state(module, *(kinds or [nnx.Param])))
    return sum(leaf.size for leaf in leaves)


def counts(module, names):
    """Parameters of some of a module's children."""
    return [count(getattr(module, name)) for name in names]


def random_params(params, seed=0):
    """Parameters of the same shapes with no zeros among them."""
    leaves, treedef = jax.tree.flatten(params)
    drawn = [
        normal(leaf.shape, seed + i) / np.sqrt(max(leaf.shape))
        for i, leaf in enumerate(leaves)
    ]
    return treedef.unflatten(drawn)


def assert_finite_gradients(loss, params, dtype):
    """The gradient exists in `dtype`, is finite and is not all zero."""
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    grads = jax.tree.leaves(compiled(jax.grad(loss))(params))
    assert all(g.dtype == dtype for g in grads)
    assert all(bool(jnp.isfinite(g.astype(jnp.float32)).all()) for g in grads)
    assert any(bool((g != 0).any()) for g in grads)
