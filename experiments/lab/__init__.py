"""The machine of all experiments; it knows none of them."""
