"""Pretrained weights of ResNets from a safetensors file with torchvision's names."""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtlopt.models._safetensors import read_safetensors

# torchvision's classifier, which the heads replace, and its counters of batches.
_UNUSED = re.compile(r"fc\.(weight|bias)|.*\.num_batches_tracked")

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def load_resnet(path: str | os.PathLike[str], model: Any) -> None:
    """Puts pretrained weights into the encoder of a ResNet.

    The function works for `ResNet` and `PyramidResNet` of any depth in their
    torchvision variant, for example with weights from ImageNet. Heads stay as they are;
    the file's own classifier, `fc`, is not used. For torchvision's weights, scale
    images to values between 0 and 1, subtract (0.485, 0.456, 0.406) and divide by
    (0.229, 0.224, 0.225).

    Args:
        path: A safetensors file with torchvision's names, such as "conv1.weight" and
            "layer1.0.bn1.running_mean". Only numbers are read from the file; nothing is
            unpickled.
        model: The network. The file's numbers replace the parameters and statistics of
            its encoder. If the network holds shapes, as from `nnx.eval_shape`, the
            shapes in the encoder become arrays.

    Raises:
        ValueError: If the file is damaged, lacks a tensor of the encoder, has a tensor
            that the encoder does not have, or has one of another shape.

    Examples:
        >>> from flax import nnx
        >>> from mtlopt.models import pose_resnet34
        >>> model = nnx.eval_shape(lambda: pose_resnet34(rngs=nnx.Rngs(0)))
        >>> load_resnet("resnet34.safetensors", model)
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'resnet34.safetensors'
    """
    tensors = read_safetensors(path)
    used = set()

    def load(tree_path: Any, leaf: Any) -> jax.Array:
        keys = tuple(key.key for key in tree_path)
        name = _torch_name(keys)
        if name not in tensors:
            raise ValueError(
                f"{path} must hold the encoder of a ResNet in torchvision's names, got "
                f"no tensor {name!r} for `encoder/{'/'.join(keys)}`."
            )
        used.add(name)
        value = tensors[name]
        if keys[-1] == "kernel" and value.ndim == 4:
            value = np.transpose(value, (2, 3, 1, 0))  # from [out, in, rows, columns]
        if value.shape != leaf.shape:
            raise ValueError(
                f"{path}: tensor {name!r} must fit `encoder/{'/'.join(keys)}` of shape "
                f"{leaf.shape}, got shape {tensors[name].shape}. The network has "
                "another depth or width."
            )
        return jnp.asarray(value, leaf.dtype)

    encoder = nnx.as_pure(nnx.state(model.encoder))
    loaded = jax.tree_util.tree_map_with_path(load, encoder)
    surplus = [name for name in tensors if name not in used]
    surplus = [name for name in surplus if not _UNUSED.fullmatch(name)]
    if surplus:
        raise ValueError(
            f"{path} must hold the tensors of the encoder only, got {len(surplus)} for "
            f"which the encoder has no leaf, such as {surplus[0]!r}. The network has "
            "another depth."
        )
    nnx.update(model.encoder, loaded)


def _torch_name(keys: tuple[str, ...]) -> str:
    """Translates a path such as ("stage1_block2", "layer3", "norm", "mean")."""
    *module, kind, leaf = keys
    leaf = _LEAVES[leaf]
    if module == ["stem"]:
        return f"{'conv1' if kind == 'conv' else 'bn1'}.{leaf}"
    block, layer = module
    stage, number = re.findall(r"\d+", block)
    if layer == "shortcut":
        name = f"downsample.{0 if kind == 'conv' else 1}"
    else:
        name = f"{'conv' if kind == 'conv' else 'bn'}{layer.removeprefix('layer')}"
    return f"layer{stage}.{int(number) - 1}.{name}.{leaf}"
