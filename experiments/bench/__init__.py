"""Benchmarks: ratios measured in one run, so that the machine's speed cancels."""
