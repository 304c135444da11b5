"""Files of official releases: reading them, and the error for one that is not right.

Every message names the file, what is wrong with it and what was expected. Nothing is
unpickled.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np

# What Pillow calls them; releases up to 11 open 16-bit grey as either of the two.
_MODES = {
    "RGB": ("RGB",),
    "8-bit grey": ("L",),
    "16-bit grey": ("I;16", "I"),
}


def release_error(path: Path, found: str, expected: str, release: str) -> ValueError:
    """Returns the error for a file that is not what the official release holds.

    Args:
        path: the file.
        found: what is wrong with it, as a verb phrase.
        expected: what it must be.
        release: the name of the release that has the right file.

    Returns:
        The error, with a message of one line.
    """
    message = f"{path} {found}; expected {expected}. Copy it from {release} again."
    return ValueError(" ".join(message.split()))


def find_folder(data_dir: Path | str, wanted: str) -> Path:
    """Returns `data_dir` as a path.

    Args:
        data_dir: what the user gave.
        wanted: the folder that it must be, in words.

    Raises:
        FileNotFoundError: if it is no folder.
    """
    if not Path(data_dir).is_dir():
        raise FileNotFoundError(
            f"`data_dir` must be a folder, got {data_dir}. Give {wanted}."
        )
    return Path(data_dir)


def find_file(folder: Path, name: str, release: str) -> Path:
    """Returns `folder / name`.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} has no {name}. Copy it from {release}.")
    return folder / name


def stems(folder: Path, pattern: str) -> set[str]:
    """Returns the names of the files that match a pattern, without their ending.

    Args:
        folder: the folder; one that does not exist is empty.
        pattern: a glob; what follows its last `*` is the ending.

    Examples:
        >>> stems(Path(__file__).parent, "fi*.py")
        {'files'}
    """
    ending = pattern.rpartition("*")[2]
    return {
        path.relative_to(folder).as_posix().removesuffix(ending)
        for path in folder.glob(pattern)
    }


def check_companions(
    names: Collection[str], folder: Path, pattern: str, release: str
) -> None:
    """Checks that a folder holds one file for each name and no other.

    Args:
        names: the stems that the files must have.
        folder: the folder.
        pattern: see `stems`.
        release: the name of the release.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there is one more.
    """
    ending = pattern.rpartition("*")[2]
    found = stems(folder, pattern)
    missing = sorted(set(names) - found)
    if missing:
        path = folder / f"{missing[0]}{ending}"
        raise FileNotFoundError(
            f"{path.parent} has no {path.name}, and {len(missing) - 1} others of "
            f"{len(names)} are missing. Copy them from {release}."
        )
    extra = sorted(found.difference(names))
    if extra:
        what = f"is one of {len(found)} files with the ending {ending}"
        expected = f"{len(names)}, one for each image, and none of that name"
        raise release_error(folder / f"{extra[0]}{ending}", what, expected, release)


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file without blanks around them.

    Empty lines at the end are left out.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.rstrip().splitlines()]


def read_image(
    path: Path,
    kind: Literal["RGB", "8-bit grey", "16-bit grey"],
    shape: tuple[int, int],
    release: str,
) -> np.ndarray:
    """Reads one image with Pillow.

    Args:
        path: the file.
        kind: what a pixel must be.
        shape: the height and the width it must have.
        release: the name of the release.

    Returns:
        The image, `[height, width, 3]` or `[height, width]`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another kind or of another shape.
    """
    from PIL import Image

    find_file(path.parent, path.name, release)
    expected = f"{kind} (mode {_MODES[kind][0]}) and {shape}"
    try:
        with Image.open(path) as file:
            mode, found_shape = file.mode, file.size[::-1]
            fits = mode in _MODES[kind] and found_shape == shape
            # Not before its header is as expected: it may ask for any memory.
            image = np.asarray(file) if fits else None
    # Pillow raises any of these at bytes that are missing or make no sense.
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        LookupError,
        Image.DecompressionBombError,
    ) as error:
        found = f"cannot be read as an image ({error})"
        raise release_error(path, found, expected, release) from error
    if image is None:
        found = f"is an image of mode {mode} and shape {found_shape}"
        raise release_error(path, found, expected, release)
    return image


def read_array(path: Path, release: str) -> np.ndarray:
    """Reads one npy file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or holds Python objects, which are not unpickled.
    """
    find_file(path.parent, path.name, release)
    try:
        array = np.load(path, allow_pickle=False)
    # numpy raises any of these at bytes that are missing or make no sense.
    except (ValueError, OSError, EOFError, SyntaxError, TokenError) as error:
        found = f"cannot be read as a numpy array ({error})"
        raise release_error(path, found, "an npy file", release) from error
    if not isinstance(array, np.ndarray):
        raise release_error(path, "holds several arrays", "an npy file", release)
    return array


@contextlib.contextmanager
def open_hdf5(path: Path, expected: str, release: str) -> Iterator[Any]:
    """Opens an HDF5 file for reading.

    What goes wrong while it is read, a missing array too, is an error of the file.

    Args:
        path: the file.
        expected: what it must be, in words.
        release: the name of the release.

    Yields:
        The `h5py.File`.

    Raises:
        ImportError: if h5py is not installed.
        ValueError: if the file is damaged.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"{path} is read with h5py, which is not installed. Run "
            '`pip install "mtlopt[experiments]"`.'
        ) from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    # h5py raises either of these three at bytes that are missing or make no sense.
    except (OSError, RuntimeError, KeyError) as error:
        found = f"cannot be read as HDF5 ({error})"
        raise release_error(path, found, expected, release) from error
