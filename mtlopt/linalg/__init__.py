"""Functions of T x T matrices for T tasks, on plain arrays and without state."""
