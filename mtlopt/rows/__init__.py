"""Gradients of the shared parameters, one row per task, computed only if necessary."""
