"""The convolution, pooling and normalisation layers of all networks here.

The platform and the shape decide how convolution and pooling are computed (see
`_formulations.py`). Arrays are `[batch, height, width, channels]`, and kernels are
`[rows, columns, channels, features]`.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mtlopt._checks import as_int, check_choice, check_fraction, check_positive
from mtlopt.models._formulations import (
    Padding,
    at_least_float32,
    cpu_conv,
    dilated_size,
    lax_conv,
    on_platform,
    sliced_max,
    window_max,
)

PaddingLike = str | Sequence[tuple[int, int]]

_LECUN_NORMAL = nnx.initializers.lecun_normal()


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: PaddingLike = "VALID",
) -> jax.Array:
    r"""Convolves images with a kernel (cross-correlation, as usual in deep learning).

    .. math:: y_{nijo} = b_o + \sum_{hwc} x_{n,\, is+hd,\, js+wd,\, c}\, K_{hwco}

    Here s is the stride and d the dilation. On CPU, the convolution and its gradients
    are as fast inside `scan` and `cond` as outside; with few channels they are computed
    as a matmul with a banded matrix. Other platforms use `lax.conv`.

    Args:
        x: Images, [batch, height, width, channels].
        kernel: [rows, columns, channels, features].
        bias: [features], or None for no bias.
        stride: Step between outputs, in both directions.
        dilation: Step between the pixels under the kernel, in both directions.
        padding: "VALID", "SAME", or `((top, bottom), (left, right))` rows and columns
            of zeros.

    Returns:
        [batch, out_height, out_width, features], of the promoted dtype.

    Raises:
        ValueError: If the shapes do not fit together.

    Examples:
        >>> image = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> conv2d(image, jnp.ones([2, 2, 1, 1]))[0, :, :, 0]
        Array([[ 8., 12.],
               [20., 24.]], dtype=float32)
    """
    return _conv_pool(x, kernel, bias, stride, dilation, padding, pool=1)


def conv2d_max_pool(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    stride: int = 1,
    padding: PaddingLike = "VALID",
    window: int = 2,
) -> jax.Array:
    """Computes `max_pool(conv2d(x, kernel, bias), window)`, faster on CPU.

    On CPU, the banded matmul for few channels includes the pooling.

    Args:
        x: Images, [batch, height, width, channels].
        kernel: [rows, columns, channels, features].
        bias: [features], or None for no bias.
        stride: Step between outputs of the convolution, in both directions.
        padding: Padding of the convolution, as in `conv2d`.
        window: Size of the square pooling windows, which do not overlap.

    Returns:
        [batch, pooled_height, pooled_width, features]; windows that would cross the
        edge are dropped. If several maxima are equal, the first in row-major order gets
        the gradient.

    Raises:
        ValueError: If the shapes do not fit together.

    Examples:
        >>> image = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> conv2d_max_pool(image, jnp.ones([2, 2, 1, 1]), jnp.ones([1]))
        Array([[[[25.]]]], dtype=float32)
    """
    return _conv_pool(x, kernel, bias, stride, 1, padding, pool=window)


def max_pool(
    x: jax.Array,
    window: int = 2,
    *,
    stride: int | None = None,
    padding: PaddingLike = "VALID",
) -> jax.Array:
    """Takes the maximum over square windows.

    If several maxima are equal, the first in row-major order gets the gradient.

    Args:
        x: Images, [batch, height, width, channels].
        window: Size of the windows.
        stride: Step between windows. None means `window`, so that they do not overlap.
        padding: As in `conv2d`, but with minus infinity instead of zeros.

    Returns:
        [batch, pooled_height, pooled_width, channels]; windows that would cross the
        edge are dropped.

    Raises:
        ValueError: If a window is larger than the padded image.

    Examples:
        >>> image = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> max_pool(image)[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    stride = window if stride is None else stride
    _check_images(x)
    as_int("window", window)
    as_int("stride", stride)
    pads = _pads(x, padding, (window, window), stride)
    _check_fits("window", (window, window), "the padded image", x, pads)
    return on_platform(
        functools.partial(sliced_max, window=window, stride=stride, padding=pads),
        functools.partial(window_max, window=window, stride=stride, padding=pads),
        x,
    )


def conv1d(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    stride: int = 1,
    padding: str = "VALID",
) -> jax.Array:
    """Convolves sequences with a kernel, as `conv2d` does with images one row high.

    Args:
        x: Sequences, [batch, length, channels].
        kernel: [size, channels, features].
        bias: [features], or None for no bias.
        stride: Step between outputs.
        padding: "VALID" or "SAME". If "SAME" needs an odd number of zeros, the larger
            half is on the right, as in Keras.

    Returns:
        [batch, out_length, features], of the promoted dtype.

    Raises:
        ValueError: If the shapes do not fit together.

    Examples:
        >>> conv1d(jnp.arange(4.0).reshape(1, 4, 1), jnp.ones([2, 1, 1]))[0, :, 0]
        Array([1., 3., 5.], dtype=float32)
    """
    check_choice("padding", padding, ("VALID", "SAME"))
    if x.ndim != 3:
        raise ValueError(
            f"`x` must have shape [batch, length, channels], got shape {x.shape}."
        )
    if kernel.ndim != 3 or kernel.shape[1] != x.shape[2]:
        raise ValueError(
            f"`kernel` must have shape [size, channels, features] with {x.shape[2]} "
            f"channels, as `x` has, got shape {kernel.shape}."
        )
    images = x[:, None]
    return conv2d(images, kernel[None], bias, stride=stride, padding=padding)[:, 0]


class Conv(nnx.Module):
    """Convolution with a bias, and optionally with max-pooling after it.

    The bias starts from zero.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        kernel_size: Size of the square kernel.
        stride: As in `conv2d`.
        dilation: As in `conv2d`.
        padding: As in `conv2d`.
        pool: Size of the pooling windows that follow; 1 means no pooling.
        use_bias: Whether there is a bias. Leave it out before `BatchNorm`, which
            cancels it.
        kernel_init: Initializer of the kernel; the default has variance
            `1 / fan_in`, as in Flax.
        rngs: Source of the initial kernel.

    Examples:
        >>> def run(images):
        ...     return Conv(1, 10, 5, pool=2, rngs=nnx.Rngs(0))(images)
        >>> nnx.eval_shape(run, jnp.zeros([8, 28, 28, 1])).shape
        (8, 12, 12, 10)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: PaddingLike = "VALID",
        pool: int = 1,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = _LECUN_NORMAL,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros([out_features])) if use_bias else None
        self.stride = stride
        self.dilation = dilation
        # A tuple, because a module's static fields are hashed.
        self.padding = padding if isinstance(padding, str) else _as_pairs(padding)
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, in_features] to [..., out_features]."""
        bias = None if self.bias is None else self.bias[...]
        return _conv_pool(
            x,
            self.kernel[...],
            bias,
            self.stride,
            self.dilation,
            self.padding,
            pool=self.pool,
        )


class Conv1d(nnx.Module):
    """Convolution of sequences, plus a bias that starts from zero.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        kernel_size: Size of the kernel.
        stride: As in `conv1d`.
        padding: As in `conv1d`.
        kernel_init: Initializer of the kernel; the default has variance
            `1 / fan_in`, as in Flax.
        rngs: Source of the initial kernel.

    Examples:
        >>> def run(sequences):
        ...     return Conv1d(2, 64, 4, padding="SAME", rngs=nnx.Rngs(0))(sequences)
        >>> nnx.eval_shape(run, jnp.zeros([8, 128, 2])).shape
        (8, 128, 64)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: str = "VALID",
        kernel_init: nnx.Initializer = _LECUN_NORMAL,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros([out_features]))
        self.stride = stride
        self.padding = padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, length, in_features] to [batch, out_length, out_features]."""
        kernel, bias = self.kernel[...], self.bias[...]
        return conv1d(x, kernel, bias, stride=self.stride, padding=self.padding)


class BatchNorm(nnx.Module):
    r"""Normalises each channel over the batch, or by the statistics of past batches.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta

    The scale :math:`\gamma` and the offset :math:`\beta` of each channel are trained.
    In training mode, :math:`\mu` and :math:`\sigma^2` are the mean and the biased
    variance over all axes except the last. The running statistics move from mean 0 and
    variance 1 by `running = momentum * running + (1 - momentum) * batch`. In evaluation
    mode, the running statistics are used instead. A module's `train()` and `eval()`
    switch the mode of all layers inside it.

    Statistics are computed and kept in float32, and the output has the dtype of the
    input; `nnx.BatchNorm` widens half precision to float32. The running variance is the
    biased variance, as in Flax. PyTorch and Keras's fused layer keep n / (n - 1) times
    the biased variance.

    Args:
        features: Number of channels.
        momentum: Fraction of the running statistics that remains after a batch.
        epsilon: Number added to the variance.

    Examples:
        >>> norm = BatchNorm(1, momentum=0.9)
        >>> norm(jnp.array([[1.0], [3.0]]))[:, 0].round(3)
        Array([-1.,  1.], dtype=float32)
        >>> norm.mean[...], norm.var[...]
        (Array([0.2], dtype=float32), Array([1.], dtype=float32))
        >>> norm.eval()
        >>> norm(jnp.array([[0.2], [1.2]]))[:, 0].round(3)
        Array([0., 1.], dtype=float32)

    References:
        Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by
        Reducing Internal Covariate Shift", ICML 2015, https://arxiv.org/abs/1502.03167.
    """

    def __init__(self, features: int, *, momentum: float = 0.9, epsilon: float = 1e-5):
        check_fraction("momentum", momentum)
        check_positive("epsilon", epsilon)
        self.scale = nnx.Param(jnp.ones([features]))
        self.bias = nnx.Param(jnp.zeros([features]))
        self.mean = nnx.BatchStat(jnp.zeros([features]))
        self.var = nnx.BatchStat(jnp.ones([features]))
        self.momentum = momentum
        self.epsilon = epsilon
        self.use_running_average = False  # `train()` and `eval()` set this attribute

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., features] to the same shape and dtype."""
        wide = x.astype(at_least_float32(x.dtype))
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(wide, axes), jnp.var(wide, axes)
            self._move(self.mean, mean)
            self._move(self.var, var)
        mean, var, scale, bias = (
            value.astype(wide.dtype)
            for value in (mean, var, self.scale[...], self.bias[...])
        )
        out = (wide - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias
        return out.astype(x.dtype)

    def _move(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        old = running[...]
        batch = lax.stop_gradient(batch).astype(old.dtype)
        running.set_value(self.momentum * old + (1 - self.momentum) * batch)


def _conv_pool(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    stride: int,
    dilation: int,
    padding: PaddingLike,
    pool: int,
) -> jax.Array:
    _check_images(x)
    if kernel.ndim != 4 or kernel.shape[2] != x.shape[3]:
        raise ValueError(
            "`kernel` must have shape [rows, columns, channels, features] with "
            f"{x.shape[3]} channels, as `x` has, got shape {kernel.shape}."
        )
    if bias is not None and bias.shape != kernel.shape[3:]:
        raise ValueError(
            f"`bias` must have shape {kernel.shape[3:]}, one number for each feature "
            f"of `kernel`, got shape {bias.shape}."
        )
    as_int("stride", stride)
    as_int("dilation", dilation)
    as_int("window", pool)
    rows, columns = kernel.shape[:2]
    size = dilated_size(rows, dilation), dilated_size(columns, dilation)
    pads = _pads(x, padding, size, stride)
    _check_fits("kernel", size, "the padded image", x, pads)
    reach = (size[0] + (pool - 1) * stride, size[1] + (pool - 1) * stride)
    _check_fits("window", reach, "the convolved image", x, pads)

    dtype = jnp.result_type(x, kernel)
    settings = {"stride": stride, "dilation": dilation, "padding": pads, "pool": pool}
    out = on_platform(
        functools.partial(cpu_conv, **settings),
        functools.partial(lax_conv, **settings),
        x.astype(dtype),
        kernel.astype(dtype),
    )
    # Adding a bias commutes with the maximum, and is cheaper after pooling.
    return out if bias is None else out + bias


def _as_pairs(padding: Sequence[tuple[int, int]]) -> Padding:
    try:
        (top, bottom), (left, right) = padding
        pairs = (
            (operator.index(top), operator.index(bottom)),
            (operator.index(left), operator.index(right)),
        )
    except (TypeError, ValueError):
        pairs = ((-1, -1), (-1, -1))
    if min(min(pair) for pair in pairs) < 0:
        raise ValueError(
            '`padding` must be "VALID", "SAME" or ((top, bottom), (left, right)), got '
            f"{padding!r}."
        )
    return pairs


def _pads(
    x: jax.Array, padding: PaddingLike, window: tuple[int, int], stride: int
) -> Padding:
    if not isinstance(padding, str):
        return _as_pairs(padding)
    if padding not in ("VALID", "SAME"):
        return _as_pairs(cast(Any, padding))  # raises
    pads = lax.padtype_to_pads(x.shape[1:3], window, (stride, stride), padding)
    return _as_pairs(cast(Sequence[tuple[int, int]], pads))


def _check_images(x: jax.Array) -> None:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            "`x` must be a float array of shape [batch, height, width, channels], got "
            f"{x.dtype} of shape {x.shape}."
        )


def _check_fits(
    name: str, window: tuple[int, int], inside: str, x: jax.Array, pads: Padding
) -> None:
    padded = tuple(
        size + sum(pad) for size, pad in zip(x.shape[1:3], pads, strict=True)
    )
    if window[0] > padded[0] or window[1] > padded[1]:
        raise ValueError(
            f"`{name}` must not be larger than {inside}, got {name} reaching over "
            f"{window[0]} x {window[1]} pixels of {padded[0]} x {padded[1]}."
        )
