"""LeNet for MultiMNIST (Senushkin et al., 2023, Table 7)."""

from collections.abc import Sequence

import jax
from flax import nnx

from mtlopt.models.layers import Conv


class LeNetEncoder(nnx.Module):
    """The shared part of `LeNet`: two convolutions and a dense layer."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = Conv(1, 10, 5, pool=2, rngs=rngs)
        self.conv2 = Conv(10, 20, 5, pool=2, rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 20, 50, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, 28, 28, 1] to [batch, 50]."""
        if x.shape[1:] != (28, 28, 1):
            raise ValueError(
                f"`x` must have shape [batch, 28, 28, 1], got shape {x.shape}."
            )
        x = nnx.relu(self.conv1(x))
        x = nnx.relu(self.conv2(x))
        return nnx.relu(self.dense(x.reshape(x.shape[0], -1)))


class LeNet(nnx.Module):
    """Two 5 x 5 convolutions, a dense layer of 50, and a linear head for each task.

    The encoder is Conv 5x5, 10 - MaxPool 2x2 - ReLU - Conv 5x5, 20 - MaxPool 2x2 -
    ReLU - Dense 50 - ReLU (21,330 parameters), each head Dense `num_classes`. Kernels
    start from `lecun_normal`, biases from zero, as in Flax.

    Args:
        tasks: The tasks' names.
        num_classes: Outputs of each head.
        rngs: Source of the initial parameters.

    Examples:
        >>> import jax.numpy as jnp
        >>> model = LeNet(("left", "right"), rngs=nnx.Rngs(0))
        >>> z = model.encode(jnp.zeros([8, 28, 28, 1]))
        >>> z.shape, model.heads["left"](z).shape
        ((8, 50), (8, 10))

    References:
        Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for
        Multi-Task Learning", CVPR 2023, Table 7, https://arxiv.org/abs/2305.19000.
    """

    def __init__(
        self,
        tasks: Sequence[str] = ("left", "right"),
        num_classes: int = 10,
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = LeNetEncoder(rngs=rngs)
        self.heads = nnx.Dict(
            {task: nnx.Linear(50, num_classes, rngs=rngs) for task in tasks}
        )

    def encode(self, x: jax.Array) -> jax.Array:
        """Maps images [batch, 28, 28, 1] to the latent representation [batch, 50]."""
        return self.encoder(x)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Maps images [batch, 28, 28, 1] to logits [batch, num_classes] by task."""
        z = self.encode(x)
        return {task: head(z) for task, head in self.heads.items()}
