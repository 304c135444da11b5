"""ResNet-18, 34 and 50, as in torchvision or as in Keras, with a head for each task."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mtlopt._checks import check_choice
from mtlopt.models.conv_norm import ConvNorm
from mtlopt.models.layers import max_pool
from mtlopt.models.mlp import Activation, Heads, make_heads
from mtlopt.models.shared_encoder import SharedEncoder
from mtlopt.models.stack_heads import stack_heads


class _Variant(NamedTuple):
    """Settings in which torchvision and Keras differ."""

    conv_norm: dict[str, Any]  # settings of `ConvNorm`
    stride_first: bool  # whether a bottleneck's first convolution has the stride
    head_init: nnx.Initializer


_VARIANTS = {
    "torchvision": _Variant(
        {"kernel_init": nnx.initializers.variance_scaling(2.0, "fan_out", "normal")},
        stride_first=False,
        head_init=nnx.initializers.lecun_normal(),
    ),
    "keras": _Variant(
        {
            "use_bias": True,  # although BatchNorm follows
            "momentum": 0.99,
            "epsilon": 1.001e-5,
            "kernel_init": nnx.initializers.glorot_uniform(),
        },
        stride_first=True,
        head_init=nnx.initializers.glorot_uniform(),
    ),
}

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ResidualBlock(nnx.Module):
    """Two or three convolutions with a shortcut around them.

    A block has two convolutions of 3 x 3. A bottleneck has three convolutions, of 1 x
    1, 3 x 3 and 1 x 1, and the last has four times as many channels as the other two.
    The shortcut is the identity if input and output have the same shape, and Conv 1 x 1
    otherwise.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        dilation: int,
        bottleneck: bool,
        variant: _Variant,
        *,
        rngs: nnx.Rngs,
    ):
        if bottleneck:
            kernels, widths = (1, 3, 1), (features, features, 4 * features)
            strides = (stride, 1, 1) if variant.stride_first else (1, stride, 1)
        else:
            kernels, widths, strides = (3, 3), (features, features), (stride, 1)
        sizes = (in_features, *widths)
        self.num_layers = len(kernels)
        for i in range(self.num_layers):
            layer = ConvNorm(
                sizes[i],
                sizes[i + 1],
                kernels[i],
                stride=strides[i],
                dilation=dilation,
                **variant.conv_norm,
                rngs=rngs,
            )
            setattr(self, f"layer{i + 1}", layer)
        same = stride == 1 and in_features == widths[-1]
        self.shortcut = (
            None
            if same
            else ConvNorm(
                in_features,
                widths[-1],
                1,
                stride=stride,
                **variant.conv_norm,
                rngs=rngs,
            )
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in_features] to [..., out_features]."""
        out = x
        for i in range(1, self.num_layers + 1):
            out = getattr(self, f"layer{i}")(out)
            if i < self.num_layers:
                out = nnx.relu(out)
        return nnx.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class ResNetEncoder(nnx.Module):
    """The shared encoder of `ResNet`: a stem, stages of blocks, a mean over pixels.

    Args:
        stages: Number of blocks in each stage.
        bottleneck: Whether blocks are bottlenecks.
        width: Channels of the stem and of the first stage.
        in_channels: Channels of the images.
        small_images: Whether the stem is the one for small images.
        dilated: Whether stages after the second dilate their kernels instead of halving
            the map. The map then has an eighth of the image's height and width.
        variant: "torchvision" or "keras".
        rngs: Source of the initial parameters.
    """

    def __init__(
        self,
        stages: Sequence[int],
        *,
        bottleneck: bool,
        width: int = 64,
        in_channels: int = 3,
        small_images: bool = False,
        dilated: bool = False,
        variant: str = "torchvision",
        rngs: nnx.Rngs,
    ):
        check_choice("variant", variant, tuple(_VARIANTS))
        settings = _VARIANTS[variant]
        kernel_size, stride = (3, 1) if small_images else (7, 2)
        self.stem = ConvNorm(
            in_channels,
            width,
            kernel_size,
            stride=stride,
            **settings.conv_norm,
            rngs=rngs,
        )
        self.small_images = small_images
        self.stages = tuple(stages)
        in_features, dilation = width, 1
        for i, num_blocks in enumerate(self.stages):
            features = width * 2**i
            spread = dilated and i > 1
            for j in range(num_blocks):
                stride = 2 if i > 0 and j == 0 and not spread else 1
                block = ResidualBlock(
                    in_features,
                    features,
                    stride,
                    dilation,
                    bottleneck,
                    settings,
                    rngs=rngs,
                )
                setattr(self, f"stage{i + 1}_block{j + 1}", block)
                in_features = 4 * features if bottleneck else features
                # The first block gets the map from the stage before, without dilation.
                if spread and j == 0:
                    dilation *= 2
        self.features = in_features

    def feature_map(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in_channels] to the last stage's output."""
        x = nnx.relu(self.stem(x))
        if not self.small_images:
            x = max_pool(x, 3, stride=2, padding=((1, 1), (1, 1)))
        for i, num_blocks in enumerate(self.stages):
            for j in range(num_blocks):
                x = getattr(self, f"stage{i + 1}_block{j + 1}")(x)
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in_channels] to [batch, features]."""
        return jnp.mean(self.feature_map(x), axis=(1, 2))


class ResNet(SharedEncoder):
    """A residual network with a dense head for each task; `resnet` builds usual sizes.

    The stem is Conv 7x7, stride 2 - BatchNorm - ReLU - MaxPool 3x3, stride 2. For small
    images, the stem is Conv 3x3 - BatchNorm - ReLU. Stage i has `width * 2**i`
    channels; the output of a bottleneck has four times as many. Every stage except
    stage 0 halves the image. The latent is the mean over pixels of the last stage.

    There are two variants:

    * `"torchvision"`: convolutions have no bias, and their kernels start from He's
      normal distribution (fan-out). The 3 x 3 convolution of a bottleneck has the
      stride. BatchNorm has momentum 0.9 and epsilon 1e-5. Heads start as in Flax, with
      `lecun_normal` and zero biases, unlike in PyTorch.
    * `"keras"`: convolutions have a bias, and their kernels start from
      `glorot_uniform`. The first convolution of a bottleneck has the stride. BatchNorm
      has momentum 0.99 and epsilon 1.001e-5. Keras has only the ResNets with
      bottlenecks.

    In both variants the running variance is the biased variance, see `BatchNorm`.

    Args:
        stages: Number of blocks in each stage.
        heads: For each task, the output sizes of the layers of its head; the last size
          is the number of outputs of the task. `(10,)` is a linear head.
        bottleneck: Whether blocks are bottlenecks.
        width: Channels of the stem and of the first stage.
        in_channels: Channels of the images.
        small_images: Whether the stem is the one for small images (CIFAR-10, CelebA).
        variant: `"torchvision"` or `"keras"`.
        head_activation: Elementwise function between the layers of a head.
        rngs: Source of the initial parameters.

    Raises:
        ValueError: If `variant` has another value.

    Examples:
        >>> def run(images):
        ...     model = ResNet((1,), {"a": (2,)}, width=4, rngs=nnx.Rngs(0))
        ...     return model.encode(images), model(images)
        >>> z, outputs = nnx.eval_shape(run, jnp.zeros([5, 8, 8, 3]))
        >>> z.shape, outputs["a"].shape
        ((5, 4), (5, 2))

    References:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
        Table 1, https://arxiv.org/abs/1512.03385.
    """

    def __init__(
        self,
        stages: Sequence[int],
        heads: Heads,
        *,
        bottleneck: bool = False,
        width: int = 64,
        in_channels: int = 3,
        small_images: bool = False,
        variant: str = "torchvision",
        head_activation: Activation = nnx.relu,
        rngs: nnx.Rngs,
    ):
        self.encoder = ResNetEncoder(
            stages,
            bottleneck=bottleneck,
            width=width,
            in_channels=in_channels,
            small_images=small_images,
            variant=variant,
            rngs=rngs,
        )
        self.heads = make_heads(
            self.encoder.features,
            heads,
            activation=head_activation,
            kernel_init=_VARIANTS[variant].head_init,
            rngs=rngs,
        )


def resnet(depth: int, heads: Heads, *, rngs: nnx.Rngs, **settings: Any) -> ResNet:
    """Builds a `ResNet` of 18, 34 or 50 layers.

    With a linear head of 1,000 classes these networks have 11,689,512, 21,797,672 and
    25,557,032 parameters, as in torchvision. For many one-vs-rest tasks, such as
    CIFAR-10's ten and CelebA's forty, stack the heads:
    `stack_heads(resnet(18, heads, ...))`.

    Args:
        depth: 18, 34 or 50; 50 has bottlenecks.
        heads: As in `ResNet`.
        rngs: Source of the initial parameters.
        **settings: Other arguments of `ResNet`.

    Returns:
        The network.

    Raises:
        ValueError: If `depth` has another value.

    Examples:
        >>> from mtlopt.models import stack_heads
        >>> heads = {str(i): (1,) for i in range(10)}
        >>> def build():
        ...     model = resnet(18, heads, small_images=True, rngs=nnx.Rngs(0))
        ...     return stack_heads(model)
        >>> model = nnx.eval_shape(build)  # allocates nothing
        >>> model.heads["stacked"].dense1.kernel.shape
        (10, 512, 1)
    """
    if depth not in _STAGES:
        raise ValueError(f"`depth` must be one of {tuple(_STAGES)}, got {depth!r}.")
    return ResNet(_STAGES[depth], heads, bottleneck=depth >= 50, rngs=rngs, **settings)


def mammography_resnet50(*, rngs: nnx.Rngs, width: int = 64) -> ResNet:
    """Builds ATE-SG's network for mammography: a ResNet-50 with a branch for each task.

    The trunk is Keras's ResNet-50 (23,587,712 numbers, of which 53,120 are BatchNorm
    statistics). Each task has Dense 512 - Dense 128 - Dense 32 with leaky ReLU, then 5,
    14 or 1 outputs (3,357,300 parameters in all). Heads return logits, so the loss must
    apply the paper's `sigmoid`. The paper's network also rescales grey images and
    copies them to three channels. Do this before you call the network here:
    `jnp.repeat(images / 255, 3, -1)`.

    Table 7 of the paper has three misprints. The row of the trunk counts the whole
    network (26,945,012). For the last layer, the table prints 1 parameter; the correct
    number is 33, as the table's sum of the branch shows. The second layer of each
    branch reads the first layer of its own branch, contrary to the table. The paper
    does not print the slope of the leaky ReLU; here it is Keras's default, 0.2.

    Args:
        rngs: Source of the initial parameters.
        width: Channels of the stem; 64 gives the paper's network.

    Returns:
        The network, with heads "task1", "task2" and "task3".

    Examples:
        >>> model = nnx.eval_shape(lambda: mammography_resnet50(rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
        26945012

    References:
        Bellavia, Della Santa, Papini, "ATE-SG: Alternate Through the Epochs Stochastic
        Gradient for Multi-Task Neural Networks", Optimization Methods and Software,
        2026, Table 7, https://doi.org/10.1080/10556788.2026.2659033.
    """
    outputs = {"task1": 5, "task2": 14, "task3": 1}
    return resnet(
        50,
        {task: (512, 128, 32, size) for task, size in outputs.items()},
        width=width,
        variant="keras",
        head_activation=_leaky_relu,
        rngs=rngs,
    )


def celeba_resnet18(
    num_attributes: int = 40, *, rngs: nnx.Rngs, width: int = 64
) -> ResNet:
    """Builds Aligned-MTL's network for the attributes of CelebA's faces.

    The network is ResNet-18 with the stem for small images (11,168,832 parameters).
    Each attribute has a linear head of two classes (1,026 parameters), and the heads
    are stacked. The paper reads 64 x 64 images. The paper's published code takes means
    over the four quarters of the last map, but Table 7 of the paper does not mention
    this. Here, as in ResNet, the latent is one mean over the map.

    Args:
        num_attributes: Number of heads.
        rngs: Source of the initial parameters.
        width: Channels of the stem; 64 gives the paper's network.

    Returns:
        The network, with one head "stacked".

    Examples:
        >>> model = nnx.eval_shape(lambda: celeba_resnet18(rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        11209872

    References:
        Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for
        Multi-Task Learning", CVPR 2023, Table 7, https://arxiv.org/abs/2305.19000.
    """
    heads = {f"attribute{i}": (2,) for i in range(num_attributes)}
    return stack_heads(resnet(18, heads, width=width, small_images=True, rngs=rngs))


def pose_resnet34(*, rngs: nnx.Rngs, width: int = 64) -> ResNet:
    """Builds Aligned-MTL's network for the pose of a camera (7-Scenes).

    The network is ResNet-34 (21,284,672 parameters) with two linear heads. One head
    returns the three coordinates of the translation (1,539 parameters), and the other
    returns the four components of the rotation's quaternion (2,052 parameters). The
    paper reads 224 x 224 crops. The loss must normalise the quaternion to a unit
    vector.

    The sizes of the outputs, 3 and 4, follow Table 7 of the paper; the text of the
    paper swaps them. The published code has a dense layer of 2,048 units and dropout
    before the heads, but the paper does not mention them.

    Args:
        rngs: Source of the initial parameters.
        width: Channels of the stem; 64 gives the paper's network.

    Returns:
        The network, with heads "translation" and "rotation".

    Examples:
        >>> model = nnx.eval_shape(lambda: pose_resnet34(rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        21288263

    References:
        Senushkin, Patakin, Kuznetsov, Konushin, "Independent Component Alignment for
        Multi-Task Learning", CVPR 2023, Table 7, https://arxiv.org/abs/2305.19000.
    """
    return resnet(34, {"translation": (3,), "rotation": (4,)}, width=width, rngs=rngs)


def _leaky_relu(x: jax.Array) -> jax.Array:
    return nnx.leaky_relu(x, 0.2)
