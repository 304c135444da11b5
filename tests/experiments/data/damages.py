"""What may stand in the place of a file: damaged, mislabelled and boastful ones.

Each `Damage` writes to a path, and knows the bytes that were there.
"""

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from tests.experiments.data.small_releases import GIGA

Damage = Callable[[Path, bytes], object]


def put(data) -> Damage:
    return lambda path, old: path.write_bytes(data)


def half(path, old):
    path.write_bytes(old[: len(old) // 2])


def with_rest(data) -> Damage:
    """Other bytes at the start."""
    return lambda path, old: path.write_bytes(data + old[len(data) :])


def sparse(path, old):
    """Ten gigabytes, the first of them as before, that take no room on the disk."""
    path.write_bytes(old)
    os.truncate(path, 10 * GIGA)


def folder(path, old):
    path.mkdir()


def pipe(path, old):
    os.mkfifo(path)


def device(path, old):
    path.symlink_to("/dev/zero")


def lost(path, old):
    path.symlink_to(path.with_name("nowhere"))


def replaced(old_part, new_part) -> Damage:
    def damage(path, old):
        assert old_part in old
        path.write_bytes(old.replace(old_part, new_part))

    return damage


def zeros(wbits, blocks=1024) -> bytes:
    """A gibibyte of zeros, deflated block by block; the stream has no end."""
    packer = zlib.compressobj(wbits=wbits)
    first, block = (
        packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
        for _ in range(2)
    )
    return first + (blocks - 1) * block


def gzipped(data) -> bytes:
    return zlib.compress(data, wbits=31)


def png(width, height, data=b"", depth=8, colour=2) -> bytes:
    """A PNG file that states a size and holds `data` for its pixels."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(path, old):
    """The largest size that the format has."""
    start = old.index(b"\xff\xc0") + 5
    path.write_bytes(old[:start] + b"\xff" * 4 + old[start + 4 :])


def tiff(tags) -> bytes:
    """A TIFF file of 224 x 224 grey pixels, but for some of its tags."""
    fields = {256: 224, 257: 224, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 224}
    fields = {**fields, 279: 224 * 224, **tags}
    entries = [
        struct.pack(
            "<HHII", tag, 4, *(value if isinstance(value, tuple) else (1, value))
        )
        for tag, value in sorted(fields.items())
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(500)


def npy_header(shape, kind="<f8", version=(1, 0), length=None, data=b"") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text = text.ljust(118) + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", length or len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def npz(path, old):
    """An archive with a member of a gibibyte."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("0.npy", "w") as member,
    ):
        member.write(npy_header((2**30,), "|u1"))
        for _ in range(64):
            member.write(bytes(2**20))


class Rogue:
    """Runs a program when it is unpickled."""

    def __reduce__(self):
        return os.system, ("true",)


def edited(change) -> Damage:
    """The HDF5 file after a change to it."""

    def damage(path, old):
        path.write_bytes(old)
        with h5py.File(path, "a") as file:
            change(file)

    return damage


def array(key, *shape, kind="u1", **options) -> Damage:
    def change(file):
        del file[key]
        file.create_dataset(key, shape, kind, **options)

    return edited(change)


def linked(key, link) -> Damage:
    def change(file):
        del file[key]
        file[key] = link

    return edited(change)


def virtual(key, shape, kind) -> Damage:
    def change(file):
        del file[key]
        layout = h5py.VirtualLayout(shape, kind)
        layout[:] = h5py.VirtualSource("/dev/zero", "x", shape)
        file.create_virtual_dataset(key, layout)

    return edited(change)


def old_matlab(rows) -> bytes:
    """A file of MATLAB 4 with a variable `mapClass` of many rows."""
    return struct.pack("<5i", 0, rows, 2**30, 0, 9) + b"mapClass\0" + bytes(99)


def element(kind, content, size=None) -> bytes:
    return struct.pack("<II", kind, size or len(content)) + content


def new_matlab(mclass, bomb=b"") -> bytes:
    """A file of MATLAB 5 with a variable of a class that states 1e9 rows and bytes."""
    flags, shape = struct.pack("<II", mclass, 0), struct.pack("<ii", GIGA, 1)
    matrix = element(6, flags) + element(5, shape) + element(1, b"mapClass")
    whole = element(14, matrix + element(9, bytes(8), GIGA), GIGA)
    if bomb:
        packer = zlib.compressobj()
        packed = packer.compress(whole) + packer.flush(zlib.Z_FULL_FLUSH)
        whole = element(15, packed + bomb)
    return b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + whole


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 640 480\n%%EndComments\n"
POSTSCRIPT += b"%%BeginPreview: 1 1 1 1\n%%EndPreview\nshowpage\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="178" height="218"></svg>'
NOISE = np.random.default_rng(0).bytes(5000)
PICKLE = pickle.dumps(Rogue())
