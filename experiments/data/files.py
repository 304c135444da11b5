"""Opens files of official releases, and reports files that are wrong.

A loader opens regular files only, and reads each file only in the format of the
release. Before it allocates memory, it compares the size that a file states with what
the file and the release can hold. Nothing is unpickled. Every error is one line that
says which file is wrong, what is wrong and what was expected.
"""

import contextlib
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

# Pillow's names of pixel types; Pillow up to 11 opens 16-bit grey as either type.
_MODES = {"RGB": ("RGB",), "8-bit grey": ("L",), "16-bit grey": ("I;16", "I")}
_LINE = 160  # largest average number of bytes in a line of text
_HEADER = 2**20  # largest number of bytes of an image or an array besides its values
_CHUNK = 2**26  # largest number of bytes of a piece in which HDF5 reads
# Largest number of bytes of a MATLAB file. NYUv2's files have 10 KiB, and their
# compression, deflate, shrinks data by a factor of at most 1032.
_MATLAB = 2**16


class ReleaseError(ValueError):
    """A file differs from the file in the official release."""


@dataclass(frozen=True)
class Release:
    """The official release of a data set; `name` appears in messages."""

    name: str

    def __str__(self) -> str:
        return self.name

    def error(self, path: Path, found: str, expected: str) -> ReleaseError:
        """Returns the error: `found` says what is wrong, `expected` what must be."""
        message = f"{path} {found}; expected {expected}. Copy it from {self} again."
        printable = (letter if letter.isprintable() else " " for letter in message)
        return ReleaseError(" ".join("".join(printable).split()))

    def open(self, path: Path, most: int) -> BinaryIO:
        """Opens a regular file, or a link to one, of at most `most` bytes.

        Raises a FileNotFoundError if there is none, and a ReleaseError if it is a
        folder, a pipe, a device, or too large.
        """
        if not path.exists():
            raise FileNotFoundError(
                f"{path.parent} has no {path.name}. Copy it from {self}."
            )
        if not path.is_file():
            raise self.error(path, "is not a regular file", "one")
        size = path.stat().st_size
        if size > most:
            raise self.error(path, f"has {size:,} bytes", f"{most:,} at most")
        return path.open("rb")

    @contextlib.contextmanager
    def parsing(self, path: Path, form: str, expected: str) -> Iterator[None]:
        """Turns any error of a parser into an error about the file."""
        try:
            yield
        except ReleaseError:
            raise
        # Invalid bytes may raise any error, even a MemoryError.
        except Exception as error:
            found = f"cannot be read as {form} ({str(error)[:200]})"
            raise self.error(path, found, expected) from error

    def lines(self, path: Path, most: int) -> list[str]:
        """Returns the lines of a UTF-8 text, at most `most`; drops empty last ones."""
        with self.open(path, most * _LINE) as file:
            data = file.read()
        num = data.count(b"\n")
        if num > most:
            raise self.error(path, f"has {num:,} lines", f"{most:,} at most")
        try:
            lines = [line.removesuffix("\r") for line in data.decode().split("\n")]
        except UnicodeDecodeError as error:
            found = f"is not UTF-8 at byte {error.start}"
            raise self.error(path, found, "a text file") from error
        while lines and not lines[-1].strip():
            lines.pop()
        return lines

    def image(
        self,
        path: Path,
        form: Literal["JPEG", "PNG", "TIFF"],  # whatever the name
        kind: Literal["RGB", "8-bit grey", "16-bit grey"],
        shape: tuple[int, int],  # required height and width
    ) -> np.ndarray:
        """Reads one image, `[height, width, 3]` or `[height, width]`."""
        from PIL import Image

        expected = f"{kind} (mode {_MODES[kind][0]}) and {shape}"
        with (
            self.open(path, 4 * math.prod(shape) + _HEADER) as file,
            self.parsing(path, f"a {form} image", expected),
            # By default Pillow tries all formats, and lets Ghostscript run PostScript.
            Image.open(file, formats=(form,)) as image,
        ):
            if image.mode in _MODES[kind] and image.size[::-1] == shape:
                return np.asarray(image)
            found = f"is an image of mode {image.mode} and shape {image.size[::-1]}"
            raise self.error(path, found, expected)

    def array(self, path: Path, most: int) -> np.ndarray:
        """Reads an npy file of at most `most` values.

        The header must state the size of the data that follow. Python objects are
        refused.
        """
        with (
            self.open(path, 8 * most + _HEADER) as file,
            self.parsing(path, "a numpy array", "an npy file"),
        ):
            version = np.lib.format.read_magic(file)
            if version != (1, 0):  # later ones state the size of their header too
                raise ValueError(f"version {version}")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            stated = math.prod(shape) * dtype.itemsize
            follow = path.stat().st_size - file.tell()
            if stated != follow:
                raise ValueError(
                    f"{dtype} {shape} takes {stated:,} bytes, and {follow:,} follow"
                )
            file.seek(0)
            return np.load(file, allow_pickle=False)

    @contextlib.contextmanager
    def hdf5(self, path: Path, expected: str) -> Iterator[Any]:
        """Opens an HDF5 file; `dataset` reads its arrays.

        Any error while the file is open is reported as an error of the file.
        """
        try:
            import h5py
        except ImportError as error:
            raise ImportError(
                f"{path} is read with h5py, which is not installed. Run "
                '`pip install "mtlopt[experiments]"`.'
            ) from error
        self.open(path, 2**63).close()  # any size, because it is read in pieces
        with self.parsing(path, "HDF5", expected), h5py.File(path, "r") as file:
            yield file

    def dataset(self, path: Path, file: Any, key: str) -> Any:
        """Returns an array of an HDF5 file, but reads none of its values yet.

        The array must be in the file itself, because a link or a virtual array may lead
        to any file.
        """
        import h5py

        linked = isinstance(file.get(key, getlink=True), h5py.HardLink)
        entry: Any = file[key] if linked else None
        if not isinstance(entry, h5py.Dataset) or entry.is_virtual or entry.external:
            expected = "the array in the file itself"
            raise self.error(path, f"holds no array {key!r}", expected)
        chunk = math.prod(entry.chunks or ()) * entry.dtype.itemsize
        if chunk > _CHUNK:
            found = f"holds {key!r} in pieces of {chunk:,} bytes"
            raise self.error(path, found, f"{_CHUNK:,} at most")
        return entry

    def matlab(self, path: Path, key: str) -> np.ndarray:
        """Reads a variable of an older MATLAB file: a flat array of finite numbers."""
        import scipy.io

        with (
            self.open(path, _MATLAB) as file,
            self.parsing(path, "a MATLAB file", f"one with {key}"),
        ):
            # A cell array would allocate the memory that its shape states.
            kinds = {name: kind for name, _, kind in scipy.io.whosmat(file)}
            if not re.fullmatch(r"double|single|u?int\d+", kinds[key]):
                raise self.error(path, f"holds {key} as {kinds[key]}", "numbers")
            array = scipy.io.loadmat(file, variable_names=[key])[key].ravel()
        if array.dtype.kind not in "uif" or not np.isfinite(array).all():
            raise self.error(path, f"holds {key} {array.dtype}", "finite numbers")
        return array

    def check_companions(
        self, names: Collection[str], folder: Path, pattern: str, *, alone: bool = True
    ) -> None:
        """Checks that a folder holds one file for each name and, if `alone`, no other.

        The names are the names, without endings, of files that match the pattern, see
        `stems`.
        """
        ending = pattern.rpartition("*")[2]
        found = stems(folder, pattern)
        missing, extra = sorted(set(names) - found), sorted(found.difference(names))
        if missing:
            path = folder / f"{missing[0]}{ending}"
            raise FileNotFoundError(
                f"{path.parent} has no {path.name}, and {len(missing) - 1} others of "
                f"{len(names)} are missing. Copy them from {self}."
            )
        if alone and extra:
            what = f"is one of {len(found)} files with the ending {ending}"
            expected = f"{len(names)}, one for each image, and no file of this name"
            raise self.error(folder / f"{extra[0]}{ending}", what, expected)


def find_folder(data_dir: Path | str, wanted: str) -> Path:
    """Returns `data_dir` if it is a folder; `wanted` describes the right folder."""
    if not Path(data_dir).is_dir():
        raise FileNotFoundError(
            f"`data_dir` must be a folder, got {data_dir}. Give {wanted}."
        )
    return Path(data_dir)


def stems(folder: Path, pattern: str) -> set[str]:
    """Returns the names, without endings, of the files that match a pattern.

    The ending is the part of the pattern after the last `*`. For a folder that does not
    exist, the result is empty.
    """
    ending = pattern.rpartition("*")[2]
    return {
        path.relative_to(folder).as_posix().removesuffix(ending)
        for path in folder.glob(pattern)
    }
