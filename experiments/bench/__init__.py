"""Benchmarks: ratios of times from one run, so that the machine's speed cancels."""
