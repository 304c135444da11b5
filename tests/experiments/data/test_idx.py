"""The idx reader: round trips, and an answer with words for every kind of damage."""

import gzip
import struct

import numpy as np
import pytest

from experiments.data.idx import find_idx, read_idx

ARRAY = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
HEADER = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4)
WHOLE = HEADER + ARRAY.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["digits", "digits.gz"])
def test_round_trip(tmp_path, idx_bytes, zipped, name):
    """read(write(x)) = x, and gzip is recognised by content, whatever the name."""
    path = tmp_path / name
    path.write_bytes(idx_bytes(ARRAY, zipped))
    found = read_idx(path, num_axes=3)
    np.testing.assert_array_equal(found, ARRAY)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("zipped", [False, True])
def test_no_values(tmp_path, idx_bytes, zipped):
    path = tmp_path / "labels"
    path.write_bytes(idx_bytes(np.zeros([0], np.uint8), zipped))
    assert read_idx(path, num_axes=1).shape == (0,)


DAMAGE = {
    "empty": (b"", "ends inside its header, after 0 bytes; expected 16"),
    "half a magic": (WHOLE[:3], "ends inside its header, after 3 bytes"),
    "half a header": (WHOLE[:9], "ends inside its header, after 9 bytes; expected 16"),
    "another format": (
        b"\x89PNG" + WHOLE,
        "starts with 0x89504e47; expected 0x00000803",
    ),
    "a pickle": (b"\x80\x05\x95\x00" + WHOLE, "starts with 0x80059500"),
    "floats": (b"\0\0\x0d\x03" + WHOLE[4:], "starts with 0x00000d03; expected"),
    "labels": (
        b"\0\0\x08\x01" + WHOLE[4:],
        "starts with 0x00000801; expected 0x00000803: unsigned bytes along 3 axes",
    ),
    "one byte short": (WHOLE[:-1], "is cut short, at 23 bytes .* expected 24 bytes"),
    "one byte more": (WHOLE + b"\0", "goes on after its data; expected only 24 bytes"),
    "huge claim": (
        HEADER[:4] + b"\xff" * 12,
        r"states the shape \(4294967295, .*; expected 47,040,000",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_file_is_refused_in_one_line(tmp_path, case, zipped):
    data, message = DAMAGE[case]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path, num_axes=3)
    assert str(path) in str(error.value)
    assert str(error.value).endswith("Copy it from the MNIST release again.")
    assert "\n" not in str(error.value)


def flip_byte(data: bytes, place: int) -> bytes:
    """Returns `data` with one byte changed."""
    changed = bytearray(data)
    changed[place] ^= 0xFF
    return bytes(changed)


ZIPPED = gzip.compress(WHOLE)
BROKEN_GZIP = {
    "cut in the data": ZIPPED[:-12],
    "cut in the checksum": ZIPPED[:-3],
    "bad checksum": flip_byte(ZIPPED, -8),
    "bad data": flip_byte(ZIPPED, 10),
    "not gzip after two bytes": ZIPPED[:2] + b"garbage garbage",
    "garbage after the stream": ZIPPED + b"garbage",
    "only a magic": ZIPPED[:2],
}


@pytest.mark.parametrize("case", BROKEN_GZIP)
def test_broken_gzip_is_refused(tmp_path, case):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(BROKEN_GZIP[case])
    with pytest.raises(ValueError, match="is a broken gzip stream"):
        read_idx(path, num_axes=3)


def test_header_is_checked_before_memory_is_taken(tmp_path):
    """16 TB are refused at once, which no file of the release has."""
    path = tmp_path / "images.gz"
    claim = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**20, 2**12, 2**12)
    path.write_bytes(gzip.compress(claim + bytes(1000)))
    with pytest.raises(ValueError, match="states the shape"):
        read_idx(path, num_axes=3)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_idx(tmp_path / "absent", num_axes=3)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("stem", ["train-images-idx3-ubyte", "train-images.idx3-ubyte"])
def test_find_accepts_every_spelling(tmp_path, stem, end):
    path = tmp_path / f"{stem}{end}"
    path.write_bytes(WHOLE)
    assert find_idx(tmp_path, "train-images-idx3-ubyte", "it") == path


def test_find_skips_folders(tmp_path):
    """Some archives wrap each file in a folder of the same name."""
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(FileNotFoundError, match=r"idx3-ubyte\. It must hold it\."):
        find_idx(tmp_path, "train-images-idx3-ubyte", "it")
