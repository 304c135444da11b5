"""Flax NNX networks of the papers, used functionally."""
