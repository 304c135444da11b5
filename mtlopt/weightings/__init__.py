"""Weightings scale the task gradients. Each method has its own file."""
