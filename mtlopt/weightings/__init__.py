"""Weightings: task gradients in, scaled task gradients out. One file a method."""
