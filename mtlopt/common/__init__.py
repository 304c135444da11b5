"""Below weightings and aggregators: the state, weights and products they share."""
