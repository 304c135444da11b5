"""State, weights and inner products that weightings and aggregators share."""
