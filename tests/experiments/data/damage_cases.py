"""Which files of which release are replaced by what, and the words of the error."""

import functools
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image

from experiments.data.wireless import WAVEFORMS
from tests.experiments.data.damages import (
    NOISE,
    PICKLE,
    POSTSCRIPT,
    SVG,
    Damage,
    Rogue,
    array,
    device,
    edited,
    folder,
    gzipped,
    half,
    jpeg,
    linked,
    lost,
    new_matlab,
    npy_header,
    npz,
    old_matlab,
    pipe,
    png,
    put,
    replaced,
    sparse,
    tiff,
    virtual,
    with_rest,
    zeros,
)
from tests.experiments.data.small_releases import (
    GIGA,
    PAIR,
    POSE,
    SIGNAL,
    VOCABULARY,
    hdf5,
    idx,
    image,
    matlab,
    npy,
    write_rooms,
)


class Case(NamedTuple):
    """A release, which of its files is replaced, by what, and words of the error."""

    release: str
    file: str
    name: str
    damage: Damage
    words: str

    def __str__(self):
        return f"{self.release}: {self.file.rpartition('/')[2]}: {self.name}"


FILES = {
    "mnist": ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    "cifar": ("data_batch_3.bin",),
    "celeba": ("img_align_celeba/1.jpg", "list_attr_celeba.txt"),
    "cityscapes": (
        "leftImg8bit/train/a/a_leftImg8bit.png",
        "gtFine/train/a/a_gtFine_instanceIds.png",
    ),
    "scenes": (
        "heads/seq-01/frame-000000.color.png",
        "heads/seq-01/frame-000000.pose.txt",
        "heads/TrainSplit.txt",
    ),
    "labelled": ("nyu_depth_v2_labeled.mat", "splits.mat"),
    "folders": ("train/depth/0.npy",),
    "packed": ("images.hdf5", "task_labels/pathology.npy", "splits/val.txt"),
    "loose": ("images/000001.tiff", "info.yaml"),
    "radio": ("RadComDynamic.hdf5",),
    "sts": ("sts-train.csv", "vocab.txt"),
}
HDF5 = ("nyu_depth_v2_labeled.mat", "images.hdf5", "RadComDynamic.hdf5")
# What may stand in the place of any file.
ANYTHING = {
    "empty": put(b""),
    "noise": put(NOISE),
    "a pickle": put(PICKLE),
    "PostScript": put(POSTSCRIPT),
    "ten gigabytes": sparse,
    "a folder": folder,
    "a pipe": pipe,
    "a device": device,
    "a link to nothing": lost,
}
IMAGES = {
    "celeba": ("img_align_celeba/1.jpg", "JPEG"),
    "cityscapes": ("leftImg8bit/train/a/a_leftImg8bit.png", "PNG"),
    "scenes": ("heads/seq-01/frame-000000.color.png", "PNG"),
    "loose": ("images/000001.tiff", "TIFF"),
}
FORMS = {
    "SVG": put(SVG),
    "half": half,
    **{form: put(image([218, 178, 3], form)) for form in ("GIF", "BMP", "WEBP", "ICO")},
}

SPECIAL = {
    ("mnist", "train-images-idx3-ubyte"): {
        "1e9 images": (put(idx([GIGA, 28, 28], 99)), "states the shape"),
        "1e9 rows": (put(idx([1, GIGA, GIGA], 99)), "states the shape"),
        "one image more": (put(idx([13, 28, 28], 12 * 784)), "is cut short"),
        "1e9 images, zipped": (put(gzipped(idx([GIGA, 28, 28], 9))), "states the sh"),
        "zip bomb": (put(zeros(31)), "starts with 0x00000000"),
        "zip bomb of images": (
            put(gzipped(idx([12, 28, 28])) + zeros(31)),
            "goes on after its data",
        ),
        "floats": (put(idx([12, 28, 28], code=13)), "starts with 0x00000d03"),
        "two axes": (put(idx([12, 784])), "starts with 0x00000802"),
        "labels for images": (put(idx([12])), "starts with 0x00000801"),
    },
    ("mnist", "t10k-labels-idx1-ubyte"): {
        "letters": (put(idx([2], 0) + b"\0\x0a"), "the label 10 at position 1"),
        "1e9 labels": (put(idx([GIGA], 2)), "states the shape"),
    },
    ("cifar", "data_batch_3.bin"): {
        "label 255": (with_rest(b"\xff"), "the label 255 at image 0"),
        "half": (half, "bytes; expected 61,460"),
    },
    ("celeba", "img_align_celeba/1.jpg"): {
        "65,535 x 65,535 pixels": (jpeg, "cannot be read as a JPEG image"),
        "original size": (put(image([512, 512, 3], "JPEG")), r"shape (512, 512)"),
    },
    ("celeba", "list_attr_celeba.txt"): {
        "1e9 images": (replaced(b"1\n", b"1000000000\n"), "begins with '1000000000'"),
        "1e9 for a value": (replaced(b" -1", b" 1000000000"), "that are 1 or -1"),
        "path for a name": (
            replaced(b"1.jpg", b"/dev/zero"),
            "list_eval_partition.txt has the line '1.jpg 0'",
        ),
        "half a character": (replaced(b"a0", b"\xc3"), "is not UTF-8 at byte 2"),
        "two million lines": (put(b"\n" * 2_000_000 + b"x"), "2,000,000 lines"),
        "one endless line": (put(b"x" * 20_000_000), "has -1 lines of images"),
    },
    ("cityscapes", "leftImg8bit/train/a/a_leftImg8bit.png"): {
        "2e9 x 2e9 pixels": (put(png(2 * GIGA, 2 * GIGA)), "cannot be read as a PNG"),
        "1e9 x 1 pixels": (put(png(GIGA, 1)), "cannot be read as a PNG"),
        "no pixels": (put(png(2048, 1024)), "cannot be read as a PNG"),
        "a gigabyte of text": (
            replaced(b"IDAT", b"zTXtx\0\0" + zeros(15, 999)),
            "cannot be read as a PNG",
        ),
    },
    ("cityscapes", "gtFine/train/a/a_gtFine_instanceIds.png"): {
        "2e9 x 2e9 pixels": (put(png(2 * GIGA, 2 * GIGA, b"", 16, 0)), "cannot be"),
        "8 bits": (put(image((1024, 2048), "PNG")), "of mode L"),
        "33 x 1000 + 7 too many": (
            lambda path, old: Image.fromarray(
                np.full((1024, 2048), 35007, np.uint16)
            ).save(path),
            "holds the id 35007",
        ),
    },
    ("scenes", "heads/seq-01/frame-000000.pose.txt"): {
        "NaN": (replaced(b"1", b"nan"), "holds no pose"),
        "1e400": (replaced(b"1", b"1e400"), "holds no pose"),
        "1e300": (replaced(b"1", b"1e300"), "holds no pose"),
        "words": (put(b"a b c d\n" * 4), "cannot be read as numbers"),
        "five columns": (put(b"1 0 0 0 0\n" * 4), "holds no pose"),
        "uneven rows": (put(b"1 0 0\n" + POSE.encode()), "cannot be read as numbers"),
    },
    ("scenes", "heads/TrainSplit.txt"): {
        "a number of 5,000 digits": (put(b"sequence" + b"9" * 5000), "names 0 seq"),
        "a path": (put(b"sequence../../1"), "names 0 sequences in 1 lines"),
    },
    ("labelled", "nyu_depth_v2_labeled.mat"): {
        "1e9 images": (
            put(hdf5(functools.partial(write_rooms, num=GIGA))),
            "splits.mat names 1 + 1 images; expected each of the 1000000000",
        ),
        "1e9 names": (
            array("names", GIGA, kind=h5py.ref_dtype),
            "the 1000000000 names",
        ),
        "1e9 rows": (array("depths", 2, GIGA, GIGA, kind="f4"), "holds depths float32"),
        "pieces of 1e9 bytes": (
            array(
                "labels",
                2,
                640,
                480,
                kind="u2",
                chunks=(2, 640, 10**6),
                maxshape=(None,) * 3,
            ),
            "in pieces of 2,560,000,000 bytes",
        ),
        "another file": (
            linked("images", h5py.ExternalLink("/dev/zero", "x")),
            "holds no array 'images'",
        ),
        "a link to itself": (linked("labels", h5py.SoftLink("/labels")), "no array"),
        "bytes of a device": (
            array("depths", 2, 640, 480, kind="f4", external=[("/dev/zero", 0, 2**31)]),
            "holds no array 'depths'",
        ),
        "a virtual array": (
            virtual("labels", (2, 640, 480), "u2"),
            "no array 'labels'",
        ),
        "a folder of arrays": (
            edited(lambda file: file.pop("images") and file.create_group("images")),
            "no array 'images'",
        ),
        "a number": (linked("images", np.uint8(3)), "tuple index out of range"),
        "old MATLAB": (put(matlab(images=[1.0])), "cannot be read as HDF5"),
    },
    ("labelled", "splits.mat"): {
        "NaN": (put(matlab(trainNdxs=[[np.nan]], testNdxs=[[2.0]])), "finite numbers"),
        "a half": (put(matlab(trainNdxs=[[1.5]], testNdxs=[[2.0]])), "names 1 + 1"),
        "1e18": (put(matlab(trainNdxs=[[1e18]], testNdxs=[[2.0]])), "names 1 + 1"),
        "words": (put(matlab(trainNdxs=["a"], testNdxs=["b"])), "as char"),
    },
    ("labelled", "classMapping40.mat"): {
        "1e9 numbers of MATLAB 4": (put(old_matlab(GIGA)), "as a MATLAB file"),
        "1e9 numbers": (put(new_matlab(6)), "as a MATLAB file"),
        "1e9 cells": (put(new_matlab(1)), "holds mapClass as cell"),
        "1e9 numbers, zipped": (put(new_matlab(6, zeros(-15, 50))), "as a MATLAB"),
        "zip bomb": (put(new_matlab(6, zeros(-15))), "65,536 at most"),
        "1e6 numbers": (put(matlab(mapClass=np.ones(10**6))), "65,536 at most"),
        "class 1e9": (put(matlab(mapClass=[[1.0, 2.0, 1e9]])), "to 1000000000.0"),
    },
    ("folders", "train/depth/0.npy"): {
        "1e9 values": (put(npy_header((GIGA,))), "takes 8,000,000,000 bytes, and 0"),
        "1e18 values": (put(npy_header((GIGA, GIGA))), "bytes, and 0 follow"),
        "1e9 bytes a value": (put(npy_header((1,), f"|S{GIGA}")), "and 0 follow"),
        "-1 values": (put(npy_header((-1, -1), data=bytes(8))), "as a numpy array"),
        "a header of 4e9 bytes": (
            put(npy_header((6, 8), version=(2, 0), length=2**32 - 1)),
            "version (2, 0)",
        ),
        "Python objects": (put(npy(np.array([Rogue()], object))), "as a numpy array"),
        "an archive": (npz, "as a numpy array"),
        "half": (half, "takes 384 bytes, and 128 follow"),
        "NaN": (put(npy(np.full([6, 8, 1], np.nan))), "values from nan to nan"),
        "infinity": (put(npy(np.full([6, 8, 1], np.inf))), "values from inf to inf"),
        "words": (put(npy(np.full([6, 8, 1], "a"))), "expected numbers (6, 8, 1)"),
        "one axis": (put(npy(np.zeros(48))), "holds float64 (48,)"),
        "complex": (put(npy(np.zeros([6, 8, 1], complex))), "holds complex128"),
    },
    ("packed", "task_labels/pathology.npy"): {
        "1e9 labels": (put(npy_header((GIGA,), "<i8")), "bytes, and 0 follow"),
        "label 1e9": (put(npy(np.array([0, 1, GIGA]))), "the label 1000000000"),
        "floats": (put(npy(np.zeros(3))), "holds float64 (3,)"),
    },
    ("packed", "splits/val.txt"): {
        "image 1e9": (put(b"images/1000000000.tiff"), "holds the line"),
        "a path": (put(b"images/../../0.tiff"), "holds the line"),
    },
    ("packed", "images.hdf5"): {
        "1e9 images": (array("images", GIGA, 224, 224), "holds images uint8 (10000"),
        "pieces of 1e9 bytes": (
            array("images", 3, 224, 224, chunks=(3, 224, 10**7), maxshape=(None,) * 3),
            "in pieces of 6,720,000,000 bytes",
        ),
        "another file": (
            linked("images", h5py.ExternalLink("/dev/zero", "x")),
            "holds no array 'images'",
        ),
    },
    ("loose", "images/000001.tiff"): {
        "1e9 x 1e9 pixels": (put(tiff({256: GIGA, 257: GIGA})), "cannot be read as a"),
        "1e9 strips": (put(tiff({273: (GIGA, 8)})), "cannot be read as a TIFF image"),
        "1e9 bytes a strip": (put(tiff({279: GIGA})), "cannot be read as a TIFF"),
        "tiles of 1e9": (
            put(tiff({259: 8, 322: GIGA, 323: GIGA, 324: 8, 325: 99})),
            "cannot be read as a TIFF image",
        ),
    },
    ("radio", "RadComDynamic.hdf5"): {
        "1e9 values": (array(SIGNAL, GIGA, kind="f8"), "holds float64 (1000000000,)"),
        "pieces of 1e9 bytes": (
            array(SIGNAL, 256, kind="f8", chunks=(10**8,), maxshape=(None,)),
            "in pieces of 800,000,000 bytes",
        ),
        "another file": (
            linked(SIGNAL, h5py.ExternalLink("/dev/zero", "x")),
            "holds no array",
        ),
        "NaN": (linked(SIGNAL, np.full(256, np.nan)), "not finite"),
        "words": (linked(SIGNAL, [b"a"] * 256), "256 real numbers"),
        "half": (half, "cannot be read as HDF5"),
        "a number of 5,000 digits": (
            edited(
                lambda file: file.move(
                    SIGNAL, str((*WAVEFORMS[0], 0, 0))[:-2] + "9" * 5000 + ")"
                )
            ),
            "holds",
        ),
    },
    ("sts", "sts-train.csv"): {
        "score 1e9": (replaced(b"5.0", b"1e9"), "the score '1e9' in line 1"),
        "score NaN": (replaced(b"5.0", b"nan"), "the score 'nan' in line 1"),
        "two fields": (put(b"a\tb\n"), "has 2 fields in line 1"),
        "half a character": (replaced(b"a b", b"\xe2\x82"), "is not UTF-8"),
        "100,000 lines": (
            put(PAIR.encode() * 10**5),
            "100,000 lines; expected 25,000 at most",
        ),
    },
    ("sts", "vocab.txt"): {
        "no special tokens": (put(b"a\nb\n"), "has no [PAD], [UNK], [CLS], [SEP]"),
        "a token twice": (put(VOCABULARY.encode() * 2), "5 lines that repeat"),
        "a million lines": (put(b"\n" * 10**6 + b"a"), "1,000,000 lines"),
    },
}


def all_cases() -> list[Case]:
    cases = [
        Case(release, file, name, damage, "")
        for release, files in FILES.items()
        for file in files
        for name, damage in ANYTHING.items()
        # Of HDF5, whose data may be followed by anything, it is a whole file.
        if not (damage is sparse and file in HDF5)
    ]
    cases += [
        Case(release, file, name, damage, f"cannot be read as a {form} image")
        for release, (file, form) in IMAGES.items()
        for name, damage in FORMS.items()
    ]
    cases += [
        Case(release, file, name, damage, words)
        for (release, file), special in SPECIAL.items()
        for name, (damage, words) in special.items()
    ]
    return cases


CASES = all_cases()
