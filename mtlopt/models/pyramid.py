"""A dilated ResNet with a pyramid-pooling head for each task (Cityscapes)."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtlopt.models.conv_norm import ConvNorm
from mtlopt.models.layers import Conv
from mtlopt.models.resnet import ResNetEncoder
from mtlopt.models.shared_encoder import SharedEncoder

_GRIDS = (1, 2, 3, 6)  # number of cells in height and in width


class PyramidHead(nnx.Module):
    """Joins a map with its means over coarse grids, then applies two convolutions.

    Args:
        in_features: Channels of the map.
        features: Channels of each pooled map and of the hidden layer.
        out_features: Channels of the output.
        rngs: Source of the initial parameters.
    """

    def __init__(
        self, in_features: int, features: int, out_features: int, *, rngs: nnx.Rngs
    ):
        for grid in _GRIDS:
            setattr(self, f"grid{grid}", ConvNorm(in_features, features, 1, rngs=rngs))
        joined = in_features + len(_GRIDS) * features
        self.hidden = ConvNorm(joined, features, rngs=rngs)
        self.out = Conv(features, out_features, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in_features] to [..., out_features]."""
        parts = [x]
        for grid in _GRIDS:
            part = nnx.relu(getattr(self, f"grid{grid}")(grid_means(x, grid)))
            shape = (*x.shape[:3], part.shape[3])
            parts.append(jax.image.resize(part, shape, "bilinear", antialias=False))
        return self.out(nnx.relu(self.hidden(jnp.concatenate(parts, axis=-1))))


class PyramidResNet(SharedEncoder):
    """A ResNet without the mean over pixels, with a pyramid-pooling head for each task.

    The default arguments give ResNet-50 with the three heads for Cityscapes (92,740,694
    parameters, 23,508,032 of them shared). The heads predict depth, the two offsets to
    an instance's centre, and 19 classes. As in PSPNet, the last two stages dilate their
    kernels instead of halving the map. So the latent and the outputs have an eighth of
    the image's height and width. A head takes means over grids of 1, 2, 3 and 6 cells
    in each direction. Each grid is followed by Conv 1x1, 512 - BatchNorm - ReLU and a
    bilinear resize. The head concatenates the four results and the latent, and applies
    Conv 3x3, 512 - BatchNorm - ReLU - Conv 1x1. Each head has its own BatchNorm
    statistics.

    The text of the Aligned-MTL paper calls this network a UNet; the paper's Table 7 and
    its published code have pyramid pooling. The sizes in the heads and the dilation
    come from the code, because the table prints only names and blocks. Heads return
    logits. If the labels have the size of the image, the loss must resize the logits.
    The heads' kernels start from `lecun_normal`, as in Flax.

    Args:
        heads: For each task, the number of channels of its output.
        stages: As in `ResNet`.
        bottleneck: As in `ResNet`.
        width: As in `ResNet`; the hidden layers of heads have `8 * width` channels.
        in_channels: Channels of the images.
        rngs: Source of the initial parameters.

    Examples:
        >>> def run(images):
        ...     model = PyramidResNet({"a": 2}, rngs=nnx.Rngs(0))
        ...     return model.encode(images), model(images)
        >>> z, outputs = nnx.eval_shape(run, jnp.zeros([8, 256, 512, 3]))
        >>> z.shape, outputs["a"].shape
        ((8, 32, 64, 2048), (8, 32, 64, 2))

    References:
        Zhao, Shi, Qi, Wang, Jia, "Pyramid Scene Parsing Network", CVPR 2017,
        https://arxiv.org/abs/1612.01105. Used by
        Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for
        Multi-Task Learning", CVPR 2023, Table 7, https://arxiv.org/abs/2305.19000, and
        Filatov, Merkulov, "Fast Line Search for Multi-Task Learning", 2021,
        https://arxiv.org/abs/2110.00874.
    """

    def __init__(
        self,
        heads: Mapping[str, int] | None = None,
        *,
        stages: Sequence[int] = (3, 4, 6, 3),
        bottleneck: bool = True,
        width: int = 64,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        if heads is None:
            heads = {"depth": 1, "instance": 2, "semantic": 19}
        self.encoder = ResNetEncoder(
            stages,
            bottleneck=bottleneck,
            width=width,
            in_channels=in_channels,
            dilated=True,
            rngs=rngs,
        )
        self.heads = nnx.Dict(
            {
                task: PyramidHead(self.encoder.features, 8 * width, size, rngs=rngs)
                for task, size in heads.items()
            }
        )

    def encode(self, x: jax.Array) -> jax.Array:
        """Maps images [batch, height, width, in_channels] to the last stage's map."""
        return self.encoder.feature_map(x)


def grid_means(x: jax.Array, grid: int) -> jax.Array:
    """Takes the mean over each cell of a grid: [batch, grid, grid, channels].

    If the border of a cell cuts through a pixel, the cell includes the pixel, as in
    PyTorch's adaptive pooling. So neighbouring cells may overlap, and no cell is empty.
    """
    rows, columns = (_cell_weights(size, grid) for size in x.shape[1:3])
    rows, columns = (jnp.asarray(part, x.dtype) for part in (rows, columns))
    return jnp.einsum("ir,brsc,js->bijc", rows, x, columns)


def _cell_weights(size: int, grid: int) -> np.ndarray:
    """Returns [grid, size]; row i holds each pixel's share in the mean of cell i."""
    pixel = np.arange(size)
    cell = np.arange(grid)[:, None]
    touched = (pixel + 1) * grid > cell * size
    touched &= pixel * grid < (cell + 1) * size
    return touched / touched.sum(axis=1, keepdims=True)
