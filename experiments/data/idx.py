"""The idx format of the MNIST release, plain or gzipped.

A file has three parts: a magic number (two zero bytes, a type code, the number of
axes), one big-endian 32-bit size for each axis, and the values in row-major order.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from experiments.data.files import Release

RELEASE = Release("the MNIST release")
_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08  # the only type code in the MNIST release
_MOST_AXES = 3
_MOST_BYTES = 60_000 * 28 * 28  # most bytes of values in a file of the release


def find_idx(folder: Path, name: str, wanted: str) -> Path:
    """Returns the file `name` of the MNIST release; `wanted` is for the error message.

    The function also finds the spelling `train-images.idx3-ubyte`, which some archives
    use. Both spellings may end in `.gz`; the plain file is preferred.
    """
    spellings = (name, name.replace("-idx", ".idx"))
    candidates = [folder / f"{s}{end}" for s in spellings for end in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} has no {name}. It must hold {wanted}.")


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Reads an idx file of unsigned bytes, in the shape that its header states.

    Gzip is recognised by content, not by name. `num_axes` is 3 for images and 1 for
    labels.
    """
    with RELEASE.open(path, 4 + 4 * _MOST_AXES + _MOST_BYTES) as file:
        zipped = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not zipped:
            return _read_stream(file, path, num_axes)
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                return _read_stream(stream, path, num_axes)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            found = f"is a broken gzip stream ({error})"
            raise RELEASE.error(path, found, "a complete gzip stream") from error


def _read_stream(
    stream: BinaryIO | gzip.GzipFile, path: Path, num_axes: int
) -> np.ndarray:
    """Reads the header and the data."""
    header_size = 4 + 4 * num_axes
    header = stream.read(header_size)
    magic, expected_magic = header[:4], bytes([0, 0, _UNSIGNED_BYTE, num_axes])
    wanted = f"0x{expected_magic.hex()}: unsigned bytes along {num_axes} axes"
    if len(magic) == 4 and magic != expected_magic:
        raise RELEASE.error(path, f"starts with 0x{magic.hex()}", wanted)
    if len(header) < header_size:
        found = f"ends inside its header, after {len(header)} bytes"
        raise RELEASE.error(path, found, f"{header_size} header bytes")
    shape = tuple(int(length) for length in np.frombuffer(header, ">u4", offset=4))
    num_bytes = math.prod(shape)
    if num_bytes > _MOST_BYTES:
        found = f"states the shape {shape}, of {num_bytes:,} bytes"
        raise RELEASE.error(path, found, f"{_MOST_BYTES:,} at most")
    wanted = f"{num_bytes} bytes after the header, for its stated shape {shape}"
    data = stream.read(num_bytes + 1)
    if len(data) < num_bytes:
        raise RELEASE.error(path, f"is cut short, at {len(data)} bytes of data", wanted)
    if len(data) > num_bytes:
        raise RELEASE.error(path, "goes on after its data", f"only {wanted}")
    return np.frombuffer(data, np.uint8).reshape(shape)
