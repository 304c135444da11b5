"""Experiments: one command a paper table, ``python -m experiments NAME``."""
