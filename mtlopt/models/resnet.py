"""ResNet-18, 34 and 50, as in torchvision and as in Keras, with a head per task."""

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
    """What torchvision and Keras do differently."""

    conv_norm: dict[str, Any]  # settings of `ConvNorm`
    stride_first: bool  # a bottleneck's stride in its first convolution, not its second
    head_init: nnx.Initializer


_VARIANTS = {
    "torchvision": _Variant(
        {"kernel_init": nnx.initializers.variance_scaling(2.0, "fan_out", "normal")},
        stride_first=False,
        head_init=nnx.initializers.lecun_normal(),
    ),
    "keras": _Variant(
        {
            "use_bias": True,  # though BatchNorm follows
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
    """Two or three convolutions beside a shortcut.

    Two of 3 x 3, or the bottleneck of 1 x 1, 3 x 3 and 1 x 1 with four times as many
    channels. The shortcut is the identity where the shapes allow, else 1 x 1.
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
    """The shared part of `ResNet`: a stem, stages of blocks, the mean over pixels.

    Args:
        stages: As in `ResNet`, as are the other arguments.
        bottleneck: Whether blocks are bottlenecks.
        width: Channels of the stem and of the first stage.
        in_channels: Channels of the images.
        small_images: Whether the stem is the one for small images.
        dilated: Whether stages after the second spread their kernels instead of
            halving the map, which then is an eighth of an image in height and width.
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
                # The first block sees the map as the stage before left it.
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
    """A residual network with a dense head for each task; `resnet` names the sizes.

    The stem is Conv 7x7, stride 2 - BatchNorm - ReLU - MaxPool 3x3, stride 2, or Conv
    3x3 - BatchNorm - ReLU for small images. Stage i has `width * 2**i` channels, four
    times as many at the output of a bottleneck, and halves the image if i > 0. The
    latent is the mean over pixels of the last stage.

    Two variants:

    * `"torchvision"`: convolutions without bias that start from He's normal
      distribution over the fan-out, a bottleneck's stride in its 3 x 3 convolution,
      BatchNorm with momentum 0.9 and epsilon 1e-5. Heads start as in Flax,
      `lecun_normal` and zero biases, not as in PyTorch.
    * `"keras"`: convolutions with bias that start from `glorot_uniform`, a bottleneck's
      stride in its first convolution, BatchNorm with momentum 0.99 and epsilon
      1.001e-5. Keras has only bottlenecks.

    In both the running variance is the biased one, see `BatchNorm`.

    Args:
        stages: Number of blocks in each stage.
        heads: For each task the sizes of its layers on the latent, the last being its
            outputs: `(10,)` is a linear head.
        bottleneck: Whether blocks are bottlenecks.
        width: Channels of the stem and of the first stage.
        in_channels: Channels of the images.
        small_images: Whether the stem is the one for small images (CIFAR-10, CelebA).
        variant: `"torchvision"` or `"keras"`.
        head_activation: Elementwise function between the layers of a head.
        rngs: Source of the initial parameters.

    Raises:
        ValueError: If `variant` is neither.

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

    With a linear head of 1,000 classes they have torchvision's 11,689,512, 21,797,672
    and 25,557,032 parameters. For many one-vs-rest tasks, as CIFAR-10's ten and
    CelebA's forty, stack the heads: `stack_heads(resnet(18, heads, ...))`.

    Args:
        depth: 18, 34 or 50, the last of bottlenecks.
        heads: As in `ResNet`.
        rngs: Source of the initial parameters.
        **settings: Other arguments of `ResNet`.

    Returns:
        The network.

    Raises:
        ValueError: If there is no such depth.

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
    """Builds ATE-SG's network of the mammography problem, branches on a ResNet-50.

    Keras's ResNet-50 (23,587,712 numbers, of which 53,120 are BatchNorm statistics)
    and for each task Dense 512 - Dense 128 - Dense 32 with leaky ReLU, then its
    outputs, 5, 14 and 1 (3,357,300). The paper's `sigmoid` belongs to the loss: heads
    return logits. Its layers that rescale grey images and copy them to three channels
    have no parameters and are left to the caller: `jnp.repeat(images / 255, 3, -1)`.

    Three numbers of Table 7 are misprints: its row of the trunk counts the whole
    network (26,945,012); its last layer has 33 parameters, not 1, as the branch's sum
    says; and each branch's second layer reads its own first. The slope of the leaky
    ReLU is not printed: 0.2, Keras's default.

    Args:
        rngs: Source of the initial parameters.
        width: Channels of the stem; 64 is the paper's network.

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

    ResNet-18 with the stem for small images (11,168,832 parameters) and for each
    attribute a linear head of two classes (1,026), stacked. The paper reads 64 x 64
    images. Its published code takes means over the four quarters of the last map where
    its Table 7 says nothing; here, as in ResNet, it is one mean over the map.

    Args:
        num_attributes: Number of heads.
        rngs: Source of the initial parameters.
        width: Channels of the stem; 64 is the paper's network.

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

    ResNet-34 (21,284,672 parameters) and two linear heads, three coordinates of the
    translation (1,539) and four of the rotation's quaternion (2,052). The paper reads
    224 x 224 crops. To make the quaternion a unit vector is left to the loss.

    Table 7 has these outputs; the text exchanges the 3 and the 4. The published code
    has a dense layer of 2,048 and dropout before the heads, of which the paper says
    nothing.

    Args:
        rngs: Source of the initial parameters.
        width: Channels of the stem; 64 is the paper's network.

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
