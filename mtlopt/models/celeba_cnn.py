"""A convolutional network of nine layers for the attributes of faces (CelebA)."""

import jax
import jax.numpy as jnp
from flax import nnx

from mtlopt.models.conv_norm import ConvNorm
from mtlopt.models.layers import BatchNorm, max_pool
from mtlopt.models.mlp import Heads, make_heads
from mtlopt.models.shared_encoder import SharedEncoder


class CelebaEncoder(nnx.Module):
    """The shared encoder of `CelebaCNN`: seven convolutions and two dense layers."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        sizes = [3, *(width * factor for factor in (1, 2, 2, 4, 4, 8, 8))]
        for i in range(7):
            layer = ConvNorm(sizes[i], sizes[i + 1], rngs=rngs)
            setattr(self, f"conv{i + 1}", layer)
        self.dense1, self.dense2 = (
            nnx.Linear(8 * width, 8 * width, use_bias=False, rngs=rngs)
            for _ in range(2)
        )
        self.norm1, self.norm2 = (BatchNorm(8 * width) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, 3] to [batch, 8 * width]."""
        for i in range(1, 8):
            x = nnx.relu(getattr(self, f"conv{i}")(x))
            if i in (1, 3, 5):
                x = max_pool(x)
        x = jnp.mean(x, axis=(1, 2))
        x = nnx.relu(self.norm1(self.dense1(x)))
        return nnx.relu(self.norm2(self.dense2(x)))


class CelebaCNN(SharedEncoder):
    """Seven convolutions, two dense layers, and dense heads for tasks or task groups.

    The encoder is Conv 3x3, 64 - MaxPool 2x2 - Conv 128 - Conv 128 - MaxPool - Conv 256
    - Conv 256 - MaxPool - Conv 512 - Conv 512 - mean over pixels - Dense 512 - Dense
    512, with BatchNorm and ReLU after each layer (5,176,640 parameters). In the
    paper, images have 64 x 64 pixels, and there is one output for each attribute. Some
    of the paper's experiments use 40 heads with one output each, and others use fewer
    heads with several outputs each. `stack_heads` stacks heads of the same sizes. Heads
    return logits, so the loss must apply the paper's `sigmoid`.

    The paper names "a fully shallow 9-layer convolutional network". The layers here
    follow the paper's published code, with two differences. The published code has
    biases in the two dense layers, which BatchNorm cancels. The published code also
    uses batch statistics in evaluation (`train=True`). Kernels start from
    `lecun_normal` and biases from zero, as in Flax.

    Args:
        heads: For each task, the sizes of its layers on the latent; the last size is
            its number of outputs. `(1,)` is a linear head for one attribute.
        width: Channels of the first convolution.
        rngs: Source of the initial parameters.

    Examples:
        >>> groups = {"hair": (3,), "smile": (1,)}
        >>> def run(faces):
        ...     model = CelebaCNN(groups, rngs=nnx.Rngs(0))
        ...     return model.encode(faces), model(faces)
        >>> z, outputs = nnx.eval_shape(run, jnp.zeros([256, 64, 64, 3]))
        >>> z.shape, outputs["hair"].shape
        ((256, 512), (256, 3))

    References:
        Pascal, Michiardi, Bost, Huet, Zuluaga, "Improved Optimization Strategies for
        Deep Multi-Task Networks", 2021, section 4.3, https://arxiv.org/abs/2109.11678.
    """

    def __init__(self, heads: Heads, *, width: int = 64, rngs: nnx.Rngs):
        self.encoder = CelebaEncoder(width, rngs=rngs)
        init = nnx.initializers.lecun_normal()
        self.heads = make_heads(8 * width, heads, kernel_init=init, rngs=rngs)
