"""Aggregators: task gradients in, one update out. One file a method."""
