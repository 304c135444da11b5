"""Dense networks, such as the network for ATE-SG's synthetic problem (Table 1)."""

from collections.abc import Callable, Mapping, Sequence

import jax
from flax import nnx

from mtlopt.models._dense import dense_dot_general
from mtlopt.models.masked_encoder import MaskedEncoder, Masks, check_masks, mask_units

Activation = Callable[[jax.Array], jax.Array]
Heads = Mapping[str, Sequence[int]]

_GLOROT_UNIFORM = nnx.initializers.glorot_uniform()


class MLP(nnx.Module):
    """Dense layers with an activation between them, for trunks and heads.

    Biases start from zero. The layers are `dense1`, `dense2`, and so on.

    Args:
        sizes: Number of features of the input, then of each layer's output.
        activation: Elementwise function after every layer except the last.
        activate_last: Whether the activation also follows the last layer.
        kernel_init: Initializer of the kernels; the default is Keras's.
        rngs: Source of the initial kernels.

    Raises:
        ValueError: If there is no layer.

    Examples:
        >>> import jax.numpy as jnp
        >>> MLP([2, 512, 4], rngs=nnx.Rngs(0))(jnp.zeros([8, 2])).shape
        (8, 4)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Activation = nnx.relu,
        activate_last: bool = False,
        kernel_init: nnx.Initializer = _GLOROT_UNIFORM,
        rngs: nnx.Rngs,
    ):
        if len(sizes) < 2:
            raise ValueError(
                "`sizes` must hold the features of the input and of at least one "
                f"layer, got {tuple(sizes)}."
            )
        self.num_layers = len(sizes) - 1
        self.activation = activation
        self.activate_last = activate_last
        for i in range(self.num_layers):
            layer = nnx.Linear(
                sizes[i],
                sizes[i + 1],
                kernel_init=kernel_init,
                dot_general=dense_dot_general,
                rngs=rngs,
            )
            setattr(self, f"dense{i + 1}", layer)

    def __call__(self, x: jax.Array, masks: Masks | None = None) -> jax.Array:
        """Maps [..., sizes[0]] to [..., sizes[-1]], using only units in `masks`."""
        layers = [f"dense{i}" for i in range(1, self.num_layers + 1)]
        masks = check_masks(masks, layers)
        for layer in layers:
            x = getattr(self, layer)(x)
            if layer != layers[-1] or self.activate_last:
                x = self.activation(x)
            x = mask_units(x, masks, layer)
        return x


def make_heads(
    features: int,
    heads: Heads,
    *,
    activation: Activation = nnx.relu,
    kernel_init: nnx.Initializer = _GLOROT_UNIFORM,
    rngs: nnx.Rngs,
) -> nnx.Dict:
    """Makes an `MLP` for each task, with `features` inputs and the task's layers."""
    return nnx.Dict(
        {
            task: MLP(
                (features, *sizes),
                activation=activation,
                kernel_init=kernel_init,
                rngs=rngs,
            )
            for task, sizes in heads.items()
        }
    )


class MultiTaskMLP(MaskedEncoder):
    """A dense trunk with a dense branch for each task.

    The default arguments give ATE-SG's network for its synthetic problem, with
    1,580,037 parameters. The trunk has three layers of 512 units (526,848 parameters).
    Each task has two more layers of 512 and an output layer, with 4 logits for the
    quadrant (527,364 parameters) and 1 for the circle (525,825). ReLU follows every
    layer except the outputs. Parameters start as in Keras, with `glorot_uniform` and
    zero biases. Heads return logits, so the loss must apply the paper's `softmax`.

    Args:
        in_features: Features of the input.
        trunk: Sizes of the trunk's layers.
        heads: For each task, the sizes of its layers; the last size is its number of
            outputs.
        rngs: Source of the initial parameters.

    Examples:
        >>> import jax.numpy as jnp
        >>> heads = {"a": (8, 4), "b": (1,)}
        >>> def run(x):
        ...     model = MultiTaskMLP(trunk=(8,), heads=heads, rngs=nnx.Rngs(0))
        ...     return model.encode(x), model(x)
        >>> z, outputs = nnx.eval_shape(run, jnp.zeros([5, 2]))
        >>> z.shape, outputs["a"].shape
        ((5, 8), (5, 4))

    References:
        Bellavia, Della Santa, Papini, "ATE-SG: Alternate Through the Epochs Stochastic
        Gradient for Multi-Task Neural Networks", Optimization Methods and Software,
        2026, Table 1, https://doi.org/10.1080/10556788.2026.2659033.
    """

    def __init__(
        self,
        in_features: int = 2,
        trunk: Sequence[int] = (512, 512, 512),
        heads: Heads | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        if heads is None:
            heads = {"quad": (512, 512, 4), "circ": (512, 512, 1)}
        self.encoder = MLP((in_features, *trunk), activate_last=True, rngs=rngs)
        self.heads = make_heads(trunk[-1], heads, rngs=rngs)
