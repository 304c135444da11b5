"""U-Net with a 1 x 1 convolution for each task (NYUv2, Cityscapes)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mtlopt.models.conv_norm import ConvNorm
from mtlopt.models.layers import Conv, max_pool
from mtlopt.models.shared_encoder import SharedEncoder


class DoubleConv(nnx.Module):
    """Conv 3x3 - BatchNorm - ReLU, twice."""

    def __init__(
        self, in_features: int, mid_features: int, out_features: int, *, rngs: nnx.Rngs
    ):
        self.layer1 = ConvNorm(in_features, mid_features, rngs=rngs)
        self.layer2 = ConvNorm(mid_features, out_features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in_features] to [..., out_features]."""
        return nnx.relu(self.layer2(nnx.relu(self.layer1(x))))


class UNetEncoder(nnx.Module):
    """The shared encoder of `UNet`: the way down, the way up, and skip connections."""

    def __init__(self, width: int, depth: int, in_channels: int, *, rngs: nnx.Rngs):
        # Upsampling keeps the channels. The lowest level has as many channels as the
        # level above, so both contribute equally many channels to the concatenation.
        sizes = [width * 2**i for i in range(depth)]
        sizes.append(sizes[-1])
        self.depth = depth
        self.down0 = DoubleConv(in_channels, width, width, rngs=rngs)
        for i in range(1, depth + 1):
            down = DoubleConv(sizes[i - 1], sizes[i], sizes[i], rngs=rngs)
            setattr(self, f"down{i}", down)
        for i in range(depth, 0, -1):
            joined, above = 2 * sizes[i - 1], sizes[max(i - 2, 0)]
            setattr(self, f"up{i}", DoubleConv(joined, joined // 2, above, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in_channels] to [batch, height, width, width]."""
        levels = [self.down0(x)]
        for i in range(1, self.depth + 1):
            levels.append(getattr(self, f"down{i}")(max_pool(levels[-1])))
        x = levels.pop()
        for i in range(self.depth, 0, -1):
            level = levels.pop()
            shape = (*level.shape[:3], x.shape[3])
            x = jax.image.resize(x, shape, "bilinear")
            x = getattr(self, f"up{i}")(jnp.concatenate([level, x], axis=-1))
        return x


class UNet(SharedEncoder):
    """A U-Net whose tasks share everything except a last 1 x 1 convolution.

    The encoder's levels have 64, 128, 256, 512 and 512 channels. Each level applies
    Conv 3x3 - BatchNorm - ReLU twice, with MaxPool 2x2 between levels. On the way up,
    each map is resized bilinearly and concatenated with the map of the level above. Two
    blocks of Conv 3x3 - BatchNorm - ReLU follow each concatenation. At the four levels,
    they return 256, 128, 64 and 64 channels. The latent is the last map, and heads
    return logits at the size of the images. The encoder has 17,262,912 parameters, and
    each output adds 65. Images may have any size; the size is halved four times,
    rounding down.

    The paper names the U-Net and the heads, but gives no further details. Channels,
    BatchNorm and the resizing follow the paper's published code, which differs from
    this network in three points. The published code gives convolutions a bias, which
    BatchNorm cancels. It uses batch statistics even in evaluation (`train=True`). It
    also resizes with the corners aligned. Kernels start from `lecun_normal` and biases
    from zero, as in Flax.

    Args:
        heads: For each task, the number of channels of its output; the default is for
            NYUv2. The seven classes of Cityscapes are seven tasks of one channel each.
        width: Channels of the first level.
        depth: Number of times that the map is halved.
        in_channels: Channels of the images.
        rngs: Source of the initial parameters.

    Examples:
        >>> def run(images):
        ...     model = UNet(rngs=nnx.Rngs(0))
        ...     return model.encode(images), model(images)
        >>> z, outputs = nnx.eval_shape(run, jnp.zeros([8, 288, 384, 3]))
        >>> z.shape, outputs["normals"].shape
        ((8, 288, 384, 64), (8, 288, 384, 3))

    References:
        Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
        Segmentation", MICCAI 2015, https://arxiv.org/abs/1505.04597. Used by
        Pascal, Michiardi, Bost, Huet, Zuluaga, "Improved Optimization Strategies for
        Deep Multi-Task Networks", 2021, section 4, https://arxiv.org/abs/2109.11678.
    """

    def __init__(
        self,
        heads: Mapping[str, int] | None = None,
        *,
        width: int = 64,
        depth: int = 4,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        if heads is None:
            heads = {"segmentation": 13, "depth": 1, "normals": 3}
        self.encoder = UNetEncoder(width, depth, in_channels, rngs=rngs)
        self.heads = nnx.Dict(
            {task: Conv(width, size, 1, rngs=rngs) for task, size in heads.items()}
        )
