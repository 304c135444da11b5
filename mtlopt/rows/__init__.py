"""Gradients of the shared leaves, one row per task, computed only if necessary."""
