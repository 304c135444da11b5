"""The idx format of the MNIST release, plain or gzipped.

A file is a magic number (two zero bytes, a type code, the number of axes), one
big-endian 32-bit size per axis, then the values in row-major order.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08  # the only type code in the MNIST release
# Deflate cannot shrink data by more than this, so a header that promises more than
# the file can hold is refused before memory is set aside for it.
_MAX_GZIP_RATIO = 1032


def find_idx(folder: Path, name: str) -> Path | None:
    """Returns the file of the MNIST release called `name`, or None.

    Args:
        folder: the folder to look in.
        name: the official name, for example `"train-images-idx3-ubyte"`. The spelling
            `train-images.idx3-ubyte`, which some archives use, is found too, and
            either may end in `.gz`. The plain file is preferred.

    Returns:
        The path of the first file that exists, or None.

    Examples:
        >>> print(find_idx(Path("no-such-folder"), "train-images-idx3-ubyte"))
        None
    """
    spellings = (name, name.replace("-idx", ".idx"))
    candidates = [folder / f"{s}{end}" for s in spellings for end in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Reads an idx file of unsigned bytes.

    Gzip is recognised by content, not by name. Nothing is unpickled, and no memory is
    set aside before the header agrees with the size of the file.

    Args:
        path: the file.
        num_axes: the number of axes it must have: 3 for images, 1 for labels.

    Returns:
        A read-only uint8 array with the shape that the header states.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, is not idx, holds another type or number of
            axes, is cut short, goes on after its data, or is a broken gzip stream.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     read_idx(path, num_axes=1)
        array([7, 2, 1], dtype=uint8)
    """
    size = path.stat().st_size
    if size == 0:
        raise _damaged(path, "is empty", "an idx file")
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not zipped:
            return _read_stream(file, path, num_axes, capacity=size)
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                return _read_stream(stream, path, num_axes, size * _MAX_GZIP_RATIO)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            found = f"is a broken gzip stream ({error})"
            raise _damaged(path, found, "a whole one") from error


def _read_stream(
    stream: BinaryIO | gzip.GzipFile, path: Path, num_axes: int, capacity: int
) -> np.ndarray:
    """Reads the header and the data; `capacity` bounds how many bytes there can be."""
    header_size = 4 + 4 * num_axes
    header = stream.read(header_size)
    magic, expected_magic = header[:4], bytes([0, 0, _UNSIGNED_BYTE, num_axes])
    wanted = f"the magic number 0x{expected_magic.hex()} in bytes 0 to 3"
    if len(magic) == 4 and magic != expected_magic:
        found = f"starts with 0x{magic.hex()}"
        if magic[:2] != b"\0\0":
            found += ", which is not idx"
        elif magic[2] != _UNSIGNED_BYTE:
            found += f", so its type code is 0x{magic[2]:02x} and not unsigned byte"
        else:
            found += f", so its number of axes is {magic[3]} and not {num_axes}"
        raise _damaged(path, found, wanted)
    if len(header) < header_size:
        found = f"ends inside its header, after {len(header)} bytes"
        raise _damaged(path, found, f"{header_size} header bytes")
    shape = tuple(int(length) for length in np.frombuffer(header, ">u4", offset=4))
    num_bytes = math.prod(shape)
    wanted = f"{num_bytes} bytes after the header, for the shape {shape} it states"
    if num_bytes > capacity - header_size:
        found = f"is cut short, at {capacity - header_size} bytes of data or fewer"
        raise _damaged(path, found, wanted)
    data = stream.read(num_bytes + 1)
    if len(data) < num_bytes:
        raise _damaged(path, f"is cut short, at {len(data)} bytes of data", wanted)
    if len(data) > num_bytes:
        raise _damaged(path, "goes on after its data", f"only {wanted}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _damaged(path: Path, found: str, expected: str) -> ValueError:
    """Returns the error for a file that is not what the release holds."""
    return ValueError(
        f"{path} {found}; expected {expected}. Copy the file from the MNIST release "
        "again."
    )
