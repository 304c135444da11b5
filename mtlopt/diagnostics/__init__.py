"""Measures of task gradients, which do not change training."""
