"""Flax NNX networks of the papers whose methods mtlopt implements."""

try:
    import flax  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "mtlopt.models needs Flax, which is not installed: "
        'pip install "mtlopt[models]". '
        "The rest of mtlopt works without it.",
        name=error.name,
    ) from error

from mtlopt.models._dense import dense_dot_general
from mtlopt.models.bert import Bert, bert
from mtlopt.models.celeba_cnn import CelebaCNN
from mtlopt.models.conv1d import SignalNet
from mtlopt.models.layers import (
    BatchNorm,
    Conv,
    Conv1d,
    conv1d,
    conv2d,
    conv2d_max_pool,
    max_pool,
)
from mtlopt.models.lenet import LeNet, LeNet5
from mtlopt.models.mlp import MLP, MultiTaskMLP
from mtlopt.models.pretrained import load_resnet
from mtlopt.models.pyramid import PyramidResNet
from mtlopt.models.resnet import (
    ResNet,
    celeba_resnet18,
    mammography_resnet50,
    pose_resnet34,
    resnet,
)
from mtlopt.models.stack_heads import stack_heads
from mtlopt.models.unet import UNet

__all__ = [
    "MLP",
    "BatchNorm",
    "Bert",
    "CelebaCNN",
    "Conv",
    "Conv1d",
    "LeNet",
    "LeNet5",
    "MultiTaskMLP",
    "PyramidResNet",
    "ResNet",
    "SignalNet",
    "UNet",
    "bert",
    "celeba_resnet18",
    "conv1d",
    "conv2d",
    "conv2d_max_pool",
    "dense_dot_general",
    "load_resnet",
    "mammography_resnet50",
    "max_pool",
    "pose_resnet34",
    "resnet",
    "stack_heads",
]
