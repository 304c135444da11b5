"""Weights in torchvision's names go where they belong, or the error names them."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtlopt.models import PyramidResNet, ResNet, load_resnet, resnet
from tests.models.networks import abstract, ones_like, random_params, split

DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "bfloat16": "BF16"}


def save(path, tensors):
    """Writes arrays as the format's specification says."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in tensors.items():
        offsets = [len(data), len(data) + value.nbytes]
        header[name] = {
            "dtype": DTYPES[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": offsets,
        }
        data += value.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def torchvision_shapes(blocks, convolutions, width, expansion):
    """Names and shapes of torchvision's ResNet, written from its layers' names."""
    shapes = {"fc.weight": (1000, 8 * width * expansion), "fc.bias": (1000,)}

    def add(conv, norm, out_features, in_features, size):
        shapes[f"{conv}.weight"] = (out_features, in_features, size, size)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{leaf}"] = (out_features,)

    add("conv1", "bn1", width, 3, 7)
    before = width
    for stage, num_blocks in enumerate(blocks, 1):
        for block in range(num_blocks):
            prefix, inner = f"layer{stage}.{block}", width * 2 ** (stage - 1)
            sizes = [before, *[inner] * (len(convolutions) - 1), inner * expansion]
            for i, size in enumerate(convolutions):
                names = f"{prefix}.conv{i + 1}", f"{prefix}.bn{i + 1}"
                add(*names, sizes[i + 1], sizes[i], size)
            if block == 0 and before != sizes[-1]:
                names = f"{prefix}.downsample.0", f"{prefix}.downsample.1"
                add(*names, sizes[-1], before, 1)
            before = sizes[-1]
    return shapes


def tensors_of(shapes, dtype=np.float32):
    """Different numbers everywhere, and the count that torchvision adds."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    tensors = {name: value.astype(dtype) for name, value in tensors.items()}
    return {**tensors, "bn1.num_batches_tracked": np.array(7)}


def small(rngs):
    return ResNet((1, 2), {"a": (2,)}, bottleneck=True, width=2, rngs=rngs)


TENSORS = tensors_of(torchvision_shapes((1, 2), (1, 3, 1), 2, 4))


@pytest.mark.parametrize(
    ("depth", "blocks", "convolutions", "expansion"),
    [(18, (2, 2, 2, 2), (3, 3), 1), (50, (3, 4, 6, 3), (1, 3, 1), 4)],
)
def test_names_and_shapes_are_torchvision(
    tmp_path, depth, blocks, convolutions, expansion
):
    """At an eighth of the width: every leaf of the encoder is one tensor."""
    network = abstract(lambda rngs: resnet(depth, {"a": (1,)}, width=8, rngs=rngs))
    shapes = torchvision_shapes(blocks, convolutions, 8, expansion)
    path = save(tmp_path / "weights", tensors_of(shapes))
    load_resnet(path, network)
    leaves = jax.tree.leaves(nnx.state(network.encoder))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    sizes = [leaf.size for leaf in leaves]
    fc = [name for name in shapes if name.startswith("fc.")]
    assert len(sizes) == len(shapes) - len(fc)
    assert sum(sizes) == sum(
        np.prod(shape) for name, shape in shapes.items() if name not in fc
    )


def test_numbers_go_where_they_belong(tmp_path):
    """Kernels are transposed, statistics are statistics, heads stay."""
    path = save(tmp_path / "weights", TENSORS)
    before, stats, merge = split(abstract(small))
    before = random_params(before)
    network = merge(before, ones_like(stats))
    load_resnet(path, network)
    params, stats = jax.device_get(split(network)[:2])
    jax.tree.map(np.testing.assert_array_equal, params["heads"], before["heads"])
    encoder, moving = params["encoder"], stats["encoder"]
    block, norms = encoder["stage2_block1"], moving["stage2_block1"]
    kernel = TENSORS["layer2.0.conv2.weight"]
    for i, j in np.ndindex(3, 3):
        actual = block["layer2"]["conv"]["kernel"][i, j]
        np.testing.assert_array_equal(actual, kernel[:, :, i, j].T)
    for actual, name in [
        (encoder["stem"]["norm"]["scale"], "bn1.weight"),
        (moving["stem"]["norm"]["mean"], "bn1.running_mean"),
        (block["layer3"]["norm"]["bias"], "layer2.0.bn3.bias"),
        (norms["layer1"]["norm"]["var"], "layer2.0.bn1.running_var"),
        (norms["shortcut"]["norm"]["var"], "layer2.0.downsample.1.running_var"),
        (encoder["stage2_block2"]["layer1"]["norm"]["scale"], "layer2.1.bn1.weight"),
    ]:
        np.testing.assert_array_equal(actual, TENSORS[name])


def test_convolution_is_torch(tmp_path):
    """The loaded stem computes the sum that PyTorch documents."""
    path = save(tmp_path / "weights", TENSORS)
    network = abstract(small)
    load_resnet(path, network)
    kernel = network.encoder.stem.conv.kernel[...]
    x = np.random.default_rng(1).random((7, 7, 3))
    expected = np.einsum("ijc,ocij->o", x, TENSORS["conv1.weight"])
    np.testing.assert_allclose(np.einsum("ijc,ijco->o", x, kernel), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", jnp.bfloat16])
def test_dtypes(tmp_path, dtype):
    """Whatever the file's, the leaves keep theirs."""
    tensors = tensors_of({n: v.shape for n, v in TENSORS.items() if v.ndim}, dtype)
    path = save(tmp_path / "weights", tensors)
    network = abstract(small)
    load_resnet(path, network)
    leaves = jax.tree.leaves(nnx.state(network.encoder))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    expected = tensors["bn1.weight"].astype(np.float32)
    np.testing.assert_array_equal(network.encoder.stem.norm.scale[...], expected)


def test_dilation_changes_no_shape(tmp_path):
    """A pyramid network takes a classifier's weights."""
    network = abstract(
        lambda rngs: PyramidResNet({"a": 1}, stages=(1, 2), width=2, rngs=rngs)
    )
    path = save(tmp_path / "weights", TENSORS)
    heads = nnx.as_pure(nnx.state(network.heads))
    load_resnet(path, network)
    assert nnx.as_pure(nnx.state(network.heads)) == heads
    kernel = network.encoder.stage2_block2.layer2.conv.kernel[...]
    expected = TENSORS["layer2.1.conv2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


def without(name):
    return {other: value for other, value in TENSORS.items() if other != name}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without("layer1.0.bn2.bias"), r"no tensor 'layer1.0.bn2.bias' for `encoder/s"),
        ({**TENSORS, "layer3.0.x": np.zeros(1, np.float32)}, "got 1 .*'layer3.0.x'"),
        (
            {**TENSORS, "bn1.weight": np.zeros(3, np.float32)},
            r"'bn1.weight' must fit `encoder/stem/norm/scale` of shape \(2,\), got.*3,",
        ),
        (
            {**TENSORS, "conv1.weight": np.zeros((3, 2, 7, 7), np.float32)},
            r"'conv1.weight' .* shape \(7, 7, 3, 2\), got shape \(3, 2, 7, 7\)",
        ),
    ],
    ids=["missing", "surplus", "misshapen", "transposed"],
)
def test_wrong_tensors_are_named(tmp_path, tensors, words):
    """And the network is as it was."""
    path = save(tmp_path / "weights", tensors)
    network = abstract(small)
    before = nnx.as_pure(nnx.state(network))
    with pytest.raises(ValueError, match=f"weights.*{words}"):
        load_resnet(path, network)
    assert nnx.as_pure(nnx.state(network)) == before


def test_biased_convolutions_are_not_torchvision(tmp_path):
    network = abstract(
        lambda rngs: ResNet(
            (1, 2), {}, bottleneck=True, width=2, variant="keras", rngs=rngs
        )
    )
    path = save(tmp_path / "weights", TENSORS)
    with pytest.raises(ValueError, match=r"no tensor '.*conv\d.bias'"):
        load_resnet(path, network)


def entry(**changes):
    """A file of one tensor whose header says something else."""
    right = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({"bn1.weight": {**right, **changes}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "must be a safetensors file.*got 0 bytes"),
        (struct.pack("<Q", 2**60) + b"{}", "must be a safetensors file.*got 10 bytes"),
        (struct.pack("<Q", 4) + b"PK\x03\x04", "must be a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "must be a safetensors file"),
        (entry(dtype="U8"), "tensor 'bn1.weight' must have a dtype of F64, F32"),
        (entry(shape=[3]), "'bn1.weight' must .* got .*; it has 8 bytes"),
        (entry(shape=[-1, -2]), "'bn1.weight' must .* got .*; it has 8 bytes"),
        (entry(data_offsets=[0, 9]), "'bn1.weight' must .* exceed the 8 bytes of data"),
        (entry(data_offsets=[4]), "tensor 'bn1.weight' must have"),
        (entry(shape=None), "tensor 'bn1.weight' must have"),
    ],
    ids=[
        "empty",
        "cut",
        "no JSON",
        "no object",
        "dtype",
        "shape",
        "negative",
        "beyond",
        "one offset",
        "no shape",
    ],
)
def test_damage_is_named(tmp_path, data, words):
    """Truncated, another format, or a header that contradicts the data."""
    path = tmp_path / "weights"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"weights.*{words}"):
        load_resnet(path, abstract(small))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_resnet(tmp_path / "absent", abstract(small))
