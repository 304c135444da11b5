"""A network of 1-D convolutions, for the wireless signals of ATE-SG (Table 4)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtlopt.models.layers import Conv1d
from mtlopt.models.mlp import Heads, make_heads
from mtlopt.models.shared_encoder import SharedEncoder

_KERNEL_SIZE = 4  # not printed in the paper; it follows from the parameter counts


class SignalEncoder(nnx.Module):
    """The shared encoder of `SignalNet`: convolutions, then the maximum over time."""

    def __init__(self, features: Sequence[int], *, rngs: nnx.Rngs):
        sizes = (2, *features)
        self.num_layers = len(features)
        for i in range(self.num_layers):
            layer = Conv1d(
                sizes[i],
                sizes[i + 1],
                _KERNEL_SIZE,
                padding="SAME",
                kernel_init=nnx.initializers.glorot_uniform(),
                rngs=rngs,
            )
            setattr(self, f"conv{i + 1}", layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, 2 * length] to [batch, features[-1]]."""
        if x.ndim != 2 or x.shape[1] % 2:
            raise ValueError(
                "`x` must have shape [batch, 2 * length], with each complex number in "
                f"two neighbouring entries, got shape {x.shape}."
            )
        x = x.reshape(x.shape[0], -1, 2)
        for i in range(1, self.num_layers + 1):
            x = nnx.relu(getattr(self, f"conv{i}")(x))
        return jnp.max(x, axis=1)


class SignalNet(SharedEncoder):
    """Three convolutions over time and a dense branch for each task.

    The default arguments give ATE-SG's network for wireless signals, with 26,382
    parameters. The 256 numbers of a signal become 128 steps of 2 channels. The encoder
    is Conv 4, 64 - ReLU - Conv 4, 32 - ReLU - Conv 4, 32 - ReLU - maximum over time
    (12,928 parameters). Each task has Dense 64 - ReLU - Dense 64 - ReLU - Dense, with 6
    outputs for the modulations (6,662 parameters) and 8 for the types of signal
    (6,792). Convolutions have "SAME" padding; the paper's parameter counts imply the
    kernel size 4. Parameters start as in Keras, with `glorot_uniform` and zero biases.
    Heads return logits, so the loss must apply the paper's `softmax`.

    Args:
        features: Channels of each convolution's output.
        heads: For each task, the sizes of its layers; the last size is its number of
            outputs.
        rngs: Source of the initial parameters.

    Examples:
        >>> def run(signals):
        ...     model = SignalNet((8, 4), {"a": (4, 6), "b": (8,)}, rngs=nnx.Rngs(0))
        ...     return model.encode(signals), model(signals)
        >>> z, outputs = nnx.eval_shape(run, jnp.zeros([5, 256]))
        >>> z.shape, outputs["a"].shape
        ((5, 4), (5, 6))

    References:
        Bellavia, Della Santa, Papini, "ATE-SG: Alternate Through the Epochs Stochastic
        Gradient for Multi-Task Neural Networks", Optimization Methods and Software,
        2026, Table 4, https://doi.org/10.1080/10556788.2026.2659033.
    """

    def __init__(
        self,
        features: Sequence[int] = (64, 32, 32),
        heads: Heads | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        if heads is None:
            heads = {"mod": (64, 64, 6), "sig": (64, 64, 8)}
        self.encoder = SignalEncoder(features, rngs=rngs)
        self.heads = make_heads(features[-1], heads, rngs=rngs)
