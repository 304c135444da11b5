"""Flax NNX networks of the papers, used functionally."""

from mtlopt.models.bert import Bert, bert
from mtlopt.models.conv1d import SignalNet
from mtlopt.models.functional import (
    Functional,
    FunctionalWithStats,
    functional,
    functional_with_stats,
    stack_heads,
)
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
from mtlopt.models.resnet import ResNet, mammography_resnet50, resnet

__all__ = [
    "MLP",
    "BatchNorm",
    "Bert",
    "Conv",
    "Conv1d",
    "Functional",
    "FunctionalWithStats",
    "LeNet",
    "LeNet5",
    "MultiTaskMLP",
    "ResNet",
    "SignalNet",
    "bert",
    "conv1d",
    "conv2d",
    "conv2d_max_pool",
    "functional",
    "functional_with_stats",
    "mammography_resnet50",
    "max_pool",
    "resnet",
    "stack_heads",
]
