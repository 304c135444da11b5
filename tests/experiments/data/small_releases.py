"""Small whole releases of all data sets, and the loaders that read them."""

import io
import itertools
import struct

import h5py
import numpy as np
import scipy.io
from PIL import Image

from experiments.data.celeba import load_celeba
from experiments.data.cifar10 import load_cifar10
from experiments.data.cityscapes import load_cityscapes
from experiments.data.digits import load_digits
from experiments.data.mammography import load_mammography
from experiments.data.nyuv2 import load_nyuv2
from experiments.data.seven_scenes import load_seven_scenes
from experiments.data.sts import load_sts
from experiments.data.wireless import WAVEFORMS, load_wireless

GIGA = 10**9
NUM_EACH = 20  # images of a file of CIFAR-10, in place of 10,000

LOADERS = {
    "mnist": load_digits,
    "cifar": load_cifar10,
    "celeba": load_celeba,
    "cityscapes": lambda folder: load_cityscapes(folder, size=(8, 16)),
    "scenes": lambda folder: load_seven_scenes(folder, "heads", size=(8, 16)),
    "labelled": lambda folder: load_nyuv2(folder, size=(6, 8)),
    "folders": lambda folder: load_nyuv2(folder, size=(6, 8)),
    "packed": lambda folder: load_mammography(folder, side=8),
    "loose": lambda folder: load_mammography(folder, side=8),
    "radio": load_wireless,
    "sts": load_sts,
}


def image(shape, form, dtype=np.uint8):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(shape, dtype)).save(buffer, form)
    return buffer.getvalue()


def idx(shape, num=None, code=8):
    """An idx file that states a shape and holds `num` zeros, by default as stated."""
    header = bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return header + bytes(np.prod(shape) if num is None else num)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def hdf5(write):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write(file)
    return buffer.getvalue()


def matlab(**variables):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    return buffer.getvalue()


def write_rooms(file, num=2):
    """NYUv2's arrays; nothing is stored, so all read as 0."""
    for key, channels, kind in (("images", [3], "u1"), ("depths", [], "f4")):
        file.create_dataset(key, [num, *channels, 640, 480], kind)
    file.create_dataset("labels", [num, 640, 480], "u2")
    file.create_dataset("names", [1, 3], h5py.ref_dtype)


def write_signals(file, **replaced):
    for waveform, number in itertools.product(WAVEFORMS, range(2)):
        file[str((*waveform, 0, number))] = np.full(256, float(number))


SIGNAL = str((*WAVEFORMS[0], 0, 0))
ATTRIBUTES = " ".join(f"a{i}" for i in range(40)) + "\n"
POSE = "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n"
PAIR = "main\tMSR\t2012\t1\t5.0\ta b\tb a\n"


def write_releases(root):
    mammograms = {
        "info.yaml": b"id: mammo_calc\n",
        "splits/train.txt": b"images/000000.tiff\n",
        "splits/val.txt": b"images/000001.tiff\n",
        "splits/test.txt": b"images/000002.tiff\n",
        "task_labels/calc distribution.npy": npy(np.zeros([3, 5], int)),
        "task_labels/calc type.npy": npy(np.zeros([3, 14], int)),
        "task_labels/pathology.npy": npy(np.zeros(3, int)),
    }
    images = np.zeros([3, 224, 224], np.uint8)
    street, face = (1024, 2048), image([218, 178, 3], "JPEG")
    room = image([480, 640, 3], "PNG")
    records = bytes(NUM_EACH * 3073)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    releases = {
        "mnist": {
            "train-images-idx3-ubyte": idx([12, 28, 28]),
            "train-labels-idx1-ubyte": idx([12]),
            "t10k-images-idx3-ubyte": idx([2, 28, 28]),
            "t10k-labels-idx1-ubyte": idx([2]),
        },
        "cifar": dict.fromkeys(names, records),
        "celeba": {
            "img_align_celeba/1.jpg": face,
            "list_attr_celeba.txt": f"1\n{ATTRIBUTES}1.jpg{' -1' * 40}\n".encode(),
            "list_eval_partition.txt": b"1.jpg 0\n",
        },
        "cityscapes": {
            "leftImg8bit/train/a/a_leftImg8bit.png": image([*street, 3], "PNG"),
            "gtFine/train/a/a_gtFine_labelIds.png": image(street, "PNG"),
            "gtFine/train/a/a_gtFine_instanceIds.png": image(street, "PNG", np.uint16),
            "disparity/train/a/a_disparity.png": image(street, "PNG", np.uint16),
        },
        "scenes": {
            "heads/TrainSplit.txt": b"sequence1\n",
            "heads/TestSplit.txt": b"sequence2\n",
            "heads/seq-01/frame-000000.color.png": room,
            "heads/seq-01/frame-000000.pose.txt": POSE.encode(),
        },
        "labelled": {
            "nyu_depth_v2_labeled.mat": hdf5(write_rooms),
            "splits.mat": matlab(trainNdxs=[[1.0]], testNdxs=[[2.0]]),
            "classMapping40.mat": matlab(mapClass=[[1.0, 2.0, 3.0]]),
        },
        "folders": {
            "train/image/0.npy": npy(np.zeros([6, 8, 3])),
            "train/label/0.npy": npy(np.zeros([6, 8])),
            "train/depth/0.npy": npy(np.zeros([6, 8, 1])),
            "train/normal/0.npy": npy(np.zeros([6, 8, 3])),
        },
        "packed": {
            **mammograms,
            "images.hdf5": hdf5(lambda file: file.update({"images": images})),
        },
        "loose": {
            **mammograms,
            **{f"images/00000{i}.tiff": image([224, 224], "TIFF") for i in range(3)},
        },
        "radio": {"RadComDynamic.hdf5": hdf5(write_signals)},
        "sts": {
            "vocab.txt": VOCABULARY.encode(),
            "sts-train.csv": PAIR.encode(),
            "sts-test.csv": PAIR.encode(),
        },
    }
    for release, files in releases.items():
        for name, data in files.items():
            path = root / release / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
