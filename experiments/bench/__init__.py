"""Benchmarks: ratios measured in one run, so that the machine cancels."""
