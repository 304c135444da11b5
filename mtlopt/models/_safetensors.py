"""Reads safetensors files: eight bytes of header length, a JSON header, numbers."""

import json
import math
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns all tensors of a file, by name; the arrays are read-only.

    Raises:
      ValueError: if the file is damaged; the message names the file and, if there is
        one, the tensor.
    """
    with open(path, "rb") as file:
        data = file.read()
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 + length:
            raise ValueError(f"got {len(data)} bytes")
        header = json.loads(data[8 : 8 + length])
        entries = {n: e for n, e in header.items() if n != "__metadata__"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} must be a safetensors file, which begins with eight bytes for the "
            f"length of a JSON object and this object; {error}. The file has another "
            "format or is incomplete."
        ) from error
    body = memoryview(data)[8 + length :]
    return {name: _tensor(path, name, body, entry) for name, entry in entries.items()}


def _tensor(path: Any, name: str, body: memoryview, entry: Any) -> np.ndarray:
    try:
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        shape = tuple(int(size) for size in entry["shape"])
        start, end = (int(offset) for offset in entry["data_offsets"])
        if not 0 <= start <= end <= len(body):
            raise ValueError(f"its data_offsets exceed the {len(body)} bytes of data")
        if (
            min(shape, default=0) < 0
            or math.prod(shape) * dtype.itemsize != end - start
        ):
            raise ValueError(f"it has {end - start} bytes")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: tensor {name!r} must have a dtype of {', '.join(_DTYPES)}, a "
            f"shape and data_offsets that match the shape, got {entry!r}; {error}."
        ) from error
    return np.frombuffer(body[start:end], dtype).reshape(shape)
