"""Gradients of the shared leaves, a row for each task, and how not to make them."""
