"""Ways to compute convolution and max-pooling: two for CPU, one for other platforms.

XLA's CPU convolution is slow for few channels, and its gradients are slower still
inside `scan` and `cond`. For few channels, this module computes a convolution as a
matmul with a small banded ("Toeplitz") matrix. For more channels it uses XLA's
convolution, with gradients in a form that is fast inside and outside loops, see
`_canonical_conv.py`. Both ways are correct under every transform, forward mode
included.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtlopt.models._canonical_conv import Padding, canonical_conv

# If a convolution has at least this many channels and features, XLA's convolution is
# faster than the banded matmul. The second number holds if the banded matmul includes
# the pooling. Milliseconds for the value and both gradients on one Zen 4 core, outside
# / inside `scan`:
#                              canonical        banded
#   3x3    4-4    32x32 x 16   2.8 / 2.9      1.9 / 2.0
#   3x3    8-8    32x32 x 16   2.8 / 3.0      3.9 / 3.9
#   3x3    8-64   16x16 x 16   1.5 / 1.5      1.9 / 1.9
#   3x3   64-64   32x32 x 8     19 / 20        33 / 34
#   3x3  256-256    8x8 x 16    38 / 39        46 / 47
#   3x3  512-512    4x4 x 64   168 / 168      175 / 182
_CHANNELS = 8
_POOLED_CHANNELS = 16

# A row of a tile of the banded matmul is wide enough to fill this many matrix columns.
# Wider rows waste products on the zeros of the band. Narrower rows make the matmul too
# small, and cut its gradient into pieces too short to be copied fast. Value and
# gradient of LeNet's encoder (batch 256, one Zen 3 core) take these milliseconds for
# numbers of tiles per row (first layer, second layer): (1, 1) 50, (2, 1) 45, (3, 2) 39,
# (4, 2) 43, (6, 4) 53.
_MATRIX_COLUMNS = 80

# If one row of a tile holds at least this many numbers, the products with the kernel's
# rows are summed instead of placed side by side, and a backward pass in a loop computes
# the tiles again. Milliseconds for the value and both gradients on the same core,
# outside / inside `scan`:
#                             lax.conv     rows summed   rows side by side
#   3x3  64-64   32x32 x 8     60 / 728      76 / 54          90 / 73
#   3x3 256-256    8x8 x 16    86 / 1606     56 / 61          58 / 66
#   3x3  64-128  32x32/2 x 8   18 / 395      22 / 15          47 / 21
#   1x1  64-256  32x32 x 8     82 / 483      15 / 17          15 / 16
#   7x7   3-64   64x64/2 x 8   16 / 143      22 / 22          20 / 22
_LONG_ROW = 128

# If the tiles of the whole batch hold more numbers than this (32 MiB in float32), a
# loop runs over parts of the batch: its backward pass computes the tiles again, part by
# part. Without a loop, XLA on a CPU merges the two computations that `jax.checkpoint`
# requests, and keeps the tiles. A U-Net's step on 8 images of 288 x 384 takes 62.0 s
# and 7.8 GiB with the loop, 62.1 s and 18.1 GiB without. Small matmuls are slower in
# parts: a 3x3 convolution from 512 to 512 channels, on 64 images of 4x4, takes 300 ms
# in one part, 338 in two, and 434 in four.
_PART_NUMBERS = 2**23


def lax_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    dilation: int,
    padding: Padding,
    pool: int,
) -> jax.Array:
    """Convolves with `lax.conv_general_dilated`, then pools: for GPU and TPU."""
    out = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    no_padding = ((0, 0), (0, 0))
    return out if pool == 1 else window_max(out, pool, pool, no_padding)


def window_max(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Max-pools with `reduce_window`: for GPU and TPU."""
    return lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *padding, (0, 0)),
    )


def sliced_max(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Max-pools by taking the maximum of strided slices: for CPU."""
    x = lax.pad(
        x,
        np.array(-np.inf, x.dtype),
        ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)),
    )
    height, width = ((size - window) // stride + 1 for size in x.shape[1:3])
    return first_max(
        [
            _slice_rows_columns(x, (i, j), (height, width), stride)
            for i in range(window)
            for j in range(window)
        ]
    )


def first_max(parts: Sequence[jax.Array]) -> jax.Array:
    """Takes the elementwise maximum; if entries are equal, the first gets the gradient.

    `jnp.maximum` would split the gradient between equal entries. A select is as fast as
    `jnp.maximum`, keeps only masks for the backward pass, and passes NaN on.
    """
    return functools.reduce(lambda a, b: jnp.where((b > a) | jnp.isnan(b), b, a), parts)


def cpu_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    dilation: int,
    padding: Padding,
    pool: int,
) -> jax.Array:
    """Convolves, then pools, in the way that is faster for the shape."""
    settings = {"stride": stride, "dilation": dilation, "padding": padding}
    if not _canonical_is_faster(x, kernel, pool):
        return banded_conv(x, kernel, **settings, pool=pool)
    wide = at_least_float32(x.dtype)
    out = canonical_conv(x.astype(wide), kernel.astype(wide), **settings)
    out = out.astype(x.dtype)
    return out if pool == 1 else sliced_max(out, pool, pool, ((0, 0), (0, 0)))


def _canonical_is_faster(x: jax.Array, kernel: jax.Array, pool: int) -> bool:
    """Whether XLA has fast code for the shape and dtype, and can use it (no mesh)."""
    rows, columns, channels, features = kernel.shape
    return (
        min(channels, features) >= (_POOLED_CHANNELS if pool > 1 else _CHANNELS)
        and rows * columns > 1
        and at_least_float32(x.dtype) == jnp.float32
        and jax.device_count() == 1
        and all(jax.typeof(each).sharding.mesh.empty for each in (x, kernel))
    )


def banded_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    dilation: int,
    padding: Padding,
    pool: int,
) -> jax.Array:
    """Convolves by a banded matmul and max-pools its output: for CPU.

    The output is cut into tiles, `pool` rows high and `w` columns wide. Each tile needs
    `(w - 1) stride + (k - 1) dilation + 1` columns of the input, and the same formula
    gives the rows. One matrix, the same for all tiles, maps these inputs to the tile's
    `pool * w * features` outputs. Its columns are ordered by their place in the pooling
    window, so that pooling is a maximum of contiguous parts. A tile of one column needs
    only k columns, and leaves out the columns that a dilated kernel skips. Likewise, a
    tile of one row leaves out rows. If the tiles of a batch are large, the batch is
    convolved in parts, one after the other.
    """
    dtype = x.dtype
    # CPUs multiply half precision in float32 anyway; this also sums in float32.
    compute = at_least_float32(dtype)
    kernel = kernel.astype(compute)
    rows, columns, channels, features = kernel.shape
    batch = x.shape[0]
    height, width = (
        ((size + sum(pad) - dilated_size(k, dilation)) // stride + 1) // pool * pool
        for size, pad, k in zip(x.shape[1:3], padding, (rows, columns), strict=True)
    )

    num_tiles = _num_tiles(width, columns, features)
    tile = math.ceil(width / (num_tiles * pool)) * pool
    num_tiles = math.ceil(width / tile)
    reach = (tile - 1) * stride + dilated_size(columns, dilation)
    gap = dilation if tile == 1 else 1
    row_gap = dilation if pool == 1 else 1
    tile_in = (reach - 1) // gap + 1
    rows_in = ((pool - 1) * stride + dilated_size(rows, dilation) - 1) // row_gap + 1

    def tiles_under(x: jax.Array, i: int) -> jax.Array:
        """Returns row i of each tile.

        The shape is [images * height / pool * num_tiles, tile_in * channels].
        """
        i *= row_gap
        row_step, step = pool * stride, tile * stride
        x = x[:, i : i + (height // pool - 1) * row_step + 1 : row_step]
        last = (num_tiles - 1) * step + 1
        if num_tiles <= tile_in:  # As few slices as possible, to compile fast.
            cut = [x[:, :, j : j + reach : gap] for j in range(0, last, step)]
            x = jnp.stack(cut, axis=2)
        else:
            cut = [x[:, :, j : j + last : step] for j in range(0, reach, gap)]
            x = jnp.stack(cut, axis=3)
        return x.reshape(-1, tile_in * channels)

    def concatenated(x: jax.Array) -> jax.Array:
        tiles = jnp.concatenate([tiles_under(x, i) for i in range(rows_in)], axis=-1)
        return tiles @ matrix.reshape(rows_in * tile_in * channels, -1)

    def summed(x: jax.Array) -> jax.Array:
        terms = (
            tiles_under(x, i) @ matrix[i].reshape(tile_in * channels, -1)
            for i in range(rows_in)
        )
        return functools.reduce(jnp.add, terms)

    def convolve(x: jax.Array) -> jax.Array:
        """Maps padded images to [images, out_height, out_width, features]."""
        # Use `split`, because gradients of slices are padded and added up, which is
        # slow.
        places = jnp.split(multiply(x), pool**2, axis=1)
        pooled = first_max(places).reshape(
            -1, height // pool, num_tiles * tile // pool, features
        )
        return pooled[:, :, : width // pool].astype(dtype)

    dilations = dilation // row_gap, dilation // gap
    matrix = _banded_matrix(kernel, tile, tile_in, stride, dilations, pool)
    long = tile_in * channels >= _LONG_ROW
    multiply = jax.checkpoint(summed) if long else concatenated

    # With a kernel of one pixel the patches are the image itself.
    patch = 0 if rows == columns == 1 else rows_in * tile_in * channels
    num_parts, per_part = _parts(batch, height // pool * num_tiles * patch)
    # Add zeros around the images, for tiles that extend beyond the edge, and for the
    # images that the last part lacks.
    top_bottom, (left, right) = padding
    read = (num_tiles - 1) * tile * stride + reach
    right = max(right, read - left - x.shape[2])
    fill = num_parts * per_part - batch
    pads = ((0, fill), top_bottom, (left, right), (0, 0))
    x = jnp.pad(x.astype(compute), pads)
    if num_parts == 1:
        return convolve(x)
    x = x.reshape(num_parts, per_part, *x.shape[1:])
    out = lax.map(jax.checkpoint(convolve), x)
    return out.reshape(-1, *out.shape[2:])[:batch]


def at_least_float32(dtype: Any) -> Any:
    """Returns a float dtype, or float32 for half precision.

    `jnp.promote_types` refuses half precision if `jax_numpy_dtype_promotion` is
    "strict".
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def dilated_size(size: int, dilation: int) -> int:
    """Returns the number of pixels that a dilated kernel of `size` spans."""
    return (size - 1) * dilation + 1


def on_platform(
    cpu: Callable[..., jax.Array], other: Callable[..., jax.Array], *args: Any
) -> jax.Array:
    """Calls `cpu` or `other`, depending on the platform for which JAX compiles.

    The choice is made when a program is lowered, so it costs nothing at run time:
    LeNet's step takes as much time and memory as with a direct call of `cpu`.
    """
    return lax.platform_dependent(*args, cpu=cpu, default=other)


def _num_tiles(width: int, columns: int, features: int) -> int:
    if columns == 1:  # Without overlap, wider tiles only multiply by zeros.
        return width
    return min(width, max(1, width * features // _MATRIX_COLUMNS))


def _parts(batch: int, numbers: int) -> tuple[int, int]:
    """Returns how many equal parts a batch has and their size.

    `numbers` counts the numbers in the tiles of one image.
    """
    if jax.device_count() > 1:  # a part might lie on one device only
        return 1, batch
    most = max(1, _PART_NUMBERS // max(1, numbers))
    num_parts = max(1, math.ceil(batch / most))
    return num_parts, math.ceil(batch / num_parts)


def _banded_matrix(
    kernel: jax.Array,
    tile: int,
    tile_in: int,
    stride: int,
    dilation: tuple[int, int],
    pool: int,
) -> jax.Array:
    """Returns [rows_in, tile_in, channels, pool, pool, tile // pool, features].

    The array is the matrix of a tile of `pool` rows and `tile` columns, banded in rows
    and in columns. `dilation` holds the dilations of rows and columns.
    """
    band = np.zeros((kernel.shape[1], tile_in, tile), kernel.dtype)
    for column in range(kernel.shape[1]):
        for out in range(tile):
            band[column, out * stride + column * dilation[1], out] = 1
    band = band.reshape(*band.shape[:2], tile // pool, pool)
    one_row = jnp.einsum("hkco,kiqp->hicpqo", kernel, band)
    no_pad = [(0, 0, 0)] * (one_row.ndim - 1)
    zero = np.zeros((), kernel.dtype)
    rows = [
        lax.pad(
            one_row,
            zero,
            [(p * stride, (pool - 1 - p) * stride, dilation[0] - 1), *no_pad],
        )
        for p in range(pool)
    ]
    return jnp.stack(rows, axis=3)


def _slice_rows_columns(
    x: jax.Array, start: tuple[int, int], shape: tuple[int, int], stride: int
) -> jax.Array:
    (i, j), (height, width) = start, shape
    limit = (
        x.shape[0],
        i + (height - 1) * stride + 1,
        j + (width - 1) * stride + 1,
        x.shape[3],
    )
    return lax.slice(x, (0, i, j, 0), limit, (1, stride, stride, 1))
