"""Aggregators turn task gradients into one update. Each method has its own file."""
