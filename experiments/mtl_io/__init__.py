"""Individual optimizers: Pascal et al., 2021."""
