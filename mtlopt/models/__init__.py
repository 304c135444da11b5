"""Flax NNX networks of the papers, used functionally."""

from mtlopt.models.functional import Functional, functional
from mtlopt.models.layers import Conv, conv2d, conv2d_max_pool, max_pool
from mtlopt.models.lenet import LeNet

__all__ = [
    "Conv",
    "Functional",
    "LeNet",
    "conv2d",
    "conv2d_max_pool",
    "functional",
    "max_pool",
]
