"""Experiments on images: dense predictions, attributes, poses."""
