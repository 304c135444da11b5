"""A convolution whose derivatives run as fast as the convolution on a CPU with XLA.

XLA on a CPU has fast code for one form of convolution: images `[batch, height, width,
channels]` and a kernel `[rows, columns, channels, features]`. XLA rewrites other forms
to this form, but not inside `scan`, `while` and `cond`. JAX writes the gradients of a
convolution in another form, in which the channels, for example, take the place of the
batch. So inside `scan`, a kernel's gradient is 50 times slower than with the fast code.
For a 3 x 3 kernel from 16 to 16 channels and 16 images of 32 x 32, it takes 98
milliseconds instead of 1.8 on one core. This module transposes the axes instead of
renaming them.

The convolution is a primitive of its own, linear in each of its two arguments. For such
a primitive, JAX derives forward and reverse mode of any order, and `vmap`, from two
transposition rules and a batching rule.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Padding = tuple[tuple[int, int], tuple[int, int]]  # negative numbers crop

_conv_p = Primitive("mtlopt_conv")


def canonical_conv(
    x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int, padding: Padding
) -> jax.Array:
    """Convolves with `lax.conv_general_dilated`; all derivatives use it too.

    Args:
        x: `[batch, height, width, channels]`.
        kernel: `[rows, columns, channels, features]`, of the same dtype.
        stride: Step between outputs.
        dilation: Step between the pixels under the kernel.
        padding: Zeros around the image.
    """
    settings = {"stride": stride, "dilation": dilation, "padding": padding}
    return _conv_p.bind(x, kernel, **settings)


def _conv(
    x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int, padding: Padding
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@_conv_p.def_abstract_eval
def _abstract(
    x: Any, kernel: Any, *, stride: int, dilation: int, padding: Padding
) -> Any:
    height, width = (
        (size + sum(pad) - (rows - 1) * dilation - 1) // stride + 1
        for size, rows, pad in zip(x.shape[1:3], kernel.shape, padding, strict=False)
    )
    return x.update(shape=(x.shape[0], height, width, kernel.shape[3]))


_conv_p.def_impl(jax.jit(_conv, static_argnames=("stride", "dilation", "padding")))
mlir.register_lowering(_conv_p, mlir.lower_fun(_conv, multiple_results=False))


def _gradient_of_image(
    g: jax.Array,
    x: Any,
    kernel: jax.Array,
    *,
    stride: int,
    dilation: int,
    padding: Padding,
) -> jax.Array:
    """Convolves `g` with the flipped kernel, split into one part for each stride phase.

    The stride phase r runs from 0 to `stride - 1`. Row `b stride + r` of the kernel
    multiplies pixel `q stride + r` of the padded image for output `q - b`. So one
    convolution computes all phases, and each phase has its own output features.
    """
    batch, height, width, channels = x.aval.shape
    if stride > 1:
        kernel, dilation = _phases(kernel, stride, dilation), 1
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    pads, starts = [], []
    for axis, size in enumerate((height, width)):
        reach = (kernel.shape[axis] - 1) * dilation
        first = padding[axis][0] // stride
        last = (padding[axis][0] + size - 1) // stride
        low = reach - first
        pads.append((low, last - first + 1 + reach - g.shape[axis + 1] - low))
        starts.append(padding[axis][0] - first * stride)
    out = canonical_conv(g, turned, stride=1, dilation=dilation, padding=_pairs(pads))
    if stride == 1:
        return out
    out = out.reshape(*out.shape[:3], stride, stride, channels)
    rows, columns = out.shape[1] * stride, out.shape[2] * stride
    out = out.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, channels)
    top, left = starts
    return out[:, top : top + height, left : left + width]


def _phases(kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Returns [rows / stride, columns / stride, stride * stride * channels, features].

    Zeros between the kernel's rows replace the dilation. Zeros below the last row make
    the number of rows a multiple of the stride.
    """
    sizes = [(size - 1) * dilation + 1 for size in kernel.shape[:2]]
    fill = [(0, -size % stride, dilation - 1) for size in sizes]
    zero = np.zeros((), kernel.dtype)
    kernel = lax.pad(kernel, zero, (*fill, (0, 0, 0), (0, 0, 0)))
    rows, columns, channels, features = kernel.shape
    shape = rows // stride, stride, columns // stride, stride, channels, features
    kernel = kernel.reshape(shape).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(*kernel.shape[:2], -1, features)


def _gradient_of_kernel(
    g: jax.Array,
    x: jax.Array,
    kernel: Any,
    *,
    stride: int,
    dilation: int,
    padding: Padding,
) -> jax.Array:
    """Convolves `x` with `g`: exchanges the axes of images and channels."""
    pads = []
    for axis in (0, 1):
        low = padding[axis][0]
        spread = (g.shape[axis + 1] - 1) * stride
        reach = (kernel.aval.shape[axis] - 1) * dilation + spread + 1
        pads.append((low, reach - x.shape[axis + 1] - low))
    image, kernel = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
    steps = {"stride": dilation, "dilation": stride}
    out = canonical_conv(image, kernel, **steps, padding=_pairs(pads))
    return out.transpose(1, 2, 0, 3)


ad.defbilinear(_conv_p, _gradient_of_image, _gradient_of_kernel)


def _batched(
    args: Sequence[jax.Array], axes: Sequence[Any], **settings: Any
) -> tuple[jax.Array, int]:
    """Runs one convolution if one argument is batched, one per entry if both are."""
    x, kernel = args
    convolve = functools.partial(canonical_conv, **settings)
    if axes[1] is None:
        x = jnp.moveaxis(x, axes[0], 0)
        out = convolve(x.reshape(-1, *x.shape[2:]), kernel)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0
    if axes[0] is None:
        kernel = jnp.moveaxis(kernel, axes[1], 3)
        out = convolve(x, kernel.reshape(*kernel.shape[:3], -1))
        return out.reshape(*out.shape[:3], *kernel.shape[3:]), 3
    x, kernel = (jnp.moveaxis(a, axis, 0) for a, axis in zip(args, axes, strict=True))
    return lax.map(lambda pair: convolve(*pair), (x, kernel)), 0


batching.primitive_batchers[_conv_p] = _batched


def _pairs(pads: Sequence[tuple[int, int]]) -> Padding:
    return pads[0], pads[1]
