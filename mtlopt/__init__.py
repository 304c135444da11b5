"""Multi-task optimization in JAX: every method is an Optax transform."""
