"""Gradients of the shared leaves, a row for each task, made only if necessary."""
