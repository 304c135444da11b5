"""T x T mathematics: arrays in, arrays out, no pytrees and no state."""
