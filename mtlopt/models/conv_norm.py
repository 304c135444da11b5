"""Convolution and BatchNorm, the parts of residual and dense networks."""

from typing import Any

import jax
from flax import nnx

from mtlopt.models.layers import BatchNorm, Conv


class ConvNorm(nnx.Module):
    """A convolution with BatchNorm; it divides the image size by its stride.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        kernel_size: Size of the square kernel, an odd number.
        stride: As in `conv2d`.
        dilation: As in `conv2d`.
        use_bias: Whether the convolution has a bias, which BatchNorm cancels.
        momentum: As in `BatchNorm`.
        epsilon: As in `BatchNorm`.
        rngs: Source of the initial kernel.
        **settings: Other arguments of `Conv`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        use_bias: bool = False,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
        **settings: Any,
    ):
        pad = kernel_size // 2 * dilation
        self.conv = Conv(
            in_features,
            out_features,
            kernel_size,
            stride=stride,
            dilation=dilation,
            padding=((pad, pad), (pad, pad)),
            use_bias=use_bias,
            rngs=rngs,
            **settings,
        )
        self.norm = BatchNorm(out_features, momentum=momentum, epsilon=epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in_features] to [..., out_features]."""
        return self.norm(self.conv(x))
