"""Mathematics of T x T matrices: arrays in, arrays out, no pytrees and no state."""
