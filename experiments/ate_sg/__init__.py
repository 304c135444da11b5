"""ATE-SG: Bellavia, Della Santa and Papini, 2026."""
