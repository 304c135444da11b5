"""State, weights and products that weightings and aggregators share."""
