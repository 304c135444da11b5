"""LeNet and LeNet-5 for MultiMNIST."""

from collections.abc import Sequence

import jax
from flax import nnx

from mtlopt.models.layers import Conv
from mtlopt.models.masked_encoder import MaskedEncoder, Masks, check_masks, mask_units


class LeNetEncoder(nnx.Module):
    """The shared encoder of `LeNet`: two convolutions and a dense layer."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = Conv(1, 10, 5, pool=2, rngs=rngs)
        self.conv2 = Conv(10, 20, 5, pool=2, rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 20, 50, rngs=rngs)

    def __call__(self, x: jax.Array, masks: Masks | None = None) -> jax.Array:
        """Maps [batch, 28, 28, 1] to [batch, 50], using only units in `masks`."""
        _check_images(x)
        masks = check_masks(masks, ("conv1", "conv2", "dense"))
        x = mask_units(nnx.relu(self.conv1(x)), masks, "conv1")
        x = mask_units(nnx.relu(self.conv2(x)), masks, "conv2")
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return mask_units(x, masks, "dense")


class LeNet(MaskedEncoder):
    """Two 5 x 5 convolutions, a dense layer of 50, and a linear head for each task.

    The encoder is Conv 5x5, 10 - MaxPool 2x2 - ReLU - Conv 5x5, 20 - MaxPool 2x2 - ReLU
    - Dense 50 - ReLU (21,330 parameters). Each head is Dense `num_classes`. Kernels
    start from `lecun_normal` and biases from zero, as in Flax.

    Args:
        tasks: The tasks' names.
        num_classes: Outputs of each head.
        rngs: Source of the initial parameters.

    Examples:
        >>> import jax.numpy as jnp
        >>> def run(images):
        ...     model = LeNet(("left", "right"), rngs=nnx.Rngs(0))
        ...     return model.encode(images), model(images)
        >>> z, outputs = nnx.eval_shape(run, jnp.zeros([8, 28, 28, 1]))
        >>> z.shape, outputs["left"].shape
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


class LeNet5Encoder(nnx.Module):
    """The shared encoder of `LeNet5`: all of LeNet-5 except its output layer."""

    def __init__(self, *, rngs: nnx.Rngs):
        # Two pixels of zeros pad MNIST's 28 x 28 to the 32 x 32 that LeNet-5 reads.
        self.conv1 = Conv(1, 6, 5, padding=((2, 2), (2, 2)), pool=2, rngs=rngs)
        self.conv2 = Conv(6, 16, 5, pool=2, rngs=rngs)
        self.dense1 = nnx.Linear(5 * 5 * 16, 120, rngs=rngs)
        self.dense2 = nnx.Linear(120, 84, rngs=rngs)

    def __call__(self, x: jax.Array, masks: Masks | None = None) -> jax.Array:
        """Maps [batch, 28, 28, 1] to [batch, 84], using only units in `masks`."""
        _check_images(x)
        masks = check_masks(masks, ("conv1", "conv2", "dense1", "dense2"))
        x = mask_units(nnx.relu(self.conv1(x)), masks, "conv1")
        x = mask_units(nnx.relu(self.conv2(x)), masks, "conv2")
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        x = mask_units(x, masks, "dense1")
        return mask_units(nnx.relu(self.dense2(x)), masks, "dense2")


class LeNet5(MaskedEncoder):
    """LeNet-5 with an output layer for each task.

    The encoder is Conv 5x5, 6 - MaxPool 2x2 - ReLU - Conv 5x5, 16 - MaxPool 2x2 - ReLU
    - Dense 120 - ReLU - Dense 84 - ReLU (60,856 parameters). Each head is Dense
    `num_classes` (850 parameters for 10 classes). Filatov and Merkulov use LeNet-5 but
    do not list its layers. The layers here come from LeCun's paper of 1998, in their
    modern form. ReLU and max-pooling replace sigmoids and trained averages. All maps of
    the first layer connect to all maps of the second, and the output layer is linear.
    Kernels start from `lecun_normal` and biases from zero, as in Flax.

    Args:
        tasks: The tasks' names.
        num_classes: Outputs of each head.
        rngs: Source of the initial parameters.

    Examples:
        >>> import jax.numpy as jnp
        >>> def run(images):
        ...     return LeNet5(("left",), rngs=nnx.Rngs(0))(images)
        >>> nnx.eval_shape(run, jnp.zeros([8, 28, 28, 1]))
        {'left': ShapeDtypeStruct(shape=(8, 10), dtype=float32)}

    References:
        LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document
        Recognition", Proceedings of the IEEE, 1998. Used by
        Filatov, Merkulov, "Fast Line Search for Multi-Task Learning", 2021,
        https://arxiv.org/abs/2110.00874.
    """

    def __init__(
        self,
        tasks: Sequence[str] = ("left", "right"),
        num_classes: int = 10,
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = LeNet5Encoder(rngs=rngs)
        self.heads = nnx.Dict(
            {task: nnx.Linear(84, num_classes, rngs=rngs) for task in tasks}
        )


def _check_images(x: jax.Array) -> None:
    if x.shape[1:] != (28, 28, 1):
        raise ValueError(
            f"`x` must have shape [batch, 28, 28, 1], got shape {x.shape}."
        )
