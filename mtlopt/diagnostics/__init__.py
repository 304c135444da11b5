"""Read-only measures of task gradients."""
