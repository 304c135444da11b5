"""Small MNIST releases, written by the tests themselves."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

IdxBytes = Callable[..., bytes]


@pytest.fixture
def idx_bytes() -> IdxBytes:
    """Returns the function that encodes an array as idx; `zipped` gzips it."""

    def encode(array: np.ndarray, zipped: bool = False) -> bytes:
        header = bytes([0, 0, 8, array.ndim])
        header += struct.pack(f">{array.ndim}I", *array.shape)
        data = header + array.astype(np.uint8).tobytes()
        return gzip.compress(data) if zipped else data

    return encode


@pytest.fixture
def release(tmp_path: Path, idx_bytes: IdxBytes) -> dict[str, np.ndarray]:
    """Writes a release of 60 train and 20 test digits; returns its arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, num in (("train", 60), ("t10k", 20)):
        pixels = rng.integers(0, 256, [num, 28, 28], np.uint8)
        arrays[f"{part}-images-idx3-ubyte"] = pixels
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(num, dtype=np.uint8) % 10
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(idx_bytes(array))
    return arrays
