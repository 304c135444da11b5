"""Measures of task gradients; they do not change training."""
