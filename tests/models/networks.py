"""What the networks' tests share: counts, and numbers without anything to compile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax


def normal(shape, seed=0, dtype=np.float32):
    """Standard normal numbers; from NumPy, which has nothing to compile."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def compiled(function):
    """`jax.jit` that compiles fast and runs slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def abstract(build):
    """The network without its numbers."""
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def split(module):
    """Parameters and statistics as nested dicts, and a function of such to a module."""
    graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    merge = functools.partial(nnx.merge, graphdef)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats), merge


def stats_of(module):
    """A module's BatchNorm statistics, a nested dict."""
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


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
        np.random.default_rng(seed + i).standard_normal(leaf.shape)
        / np.sqrt(max(leaf.shape))
        for i, leaf in enumerate(leaves)
    ]
    return treedef.unflatten([leaf.astype(np.float32) for leaf in drawn])


def ones_like(stats):
    """Statistics of the same shapes; from NumPy too."""
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), stats)


def reference_layer(x, params, stride=1, dilation=1, epsilon=1e-5):
    """Convolution by `lax.conv`, and BatchNorm in training mode."""
    kernel = params["conv"]["kernel"]
    pad = (kernel.shape[0] // 2 * dilation,) * 2
    x = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (pad, pad),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return reference_norm(x + params["conv"].get("bias", 0), params["norm"], epsilon)


def reference_norm(x, params, epsilon=1e-5):
    """BatchNorm in training mode."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.mean((x - mean) ** 2, axes)
    return (x - mean) / jnp.sqrt(var + epsilon) * params["scale"] + params["bias"]


def assert_finite_gradients(loss, params, dtype):
    """The gradient exists in `dtype`, is finite and is not all zero."""
    params = jax.tree.map(lambda p: np.asarray(p).astype(dtype), params)
    grads = jax.device_get(jax.tree.leaves(compiled(jax.grad(loss))(params)))
    assert all(g.dtype == dtype for g in grads)
    assert all(np.all(np.isfinite(g.astype(np.float32))) for g in grads)
    assert any(np.any(g != 0) for g in grads)
