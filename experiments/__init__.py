"""Experiments: one command for each paper table, ``python -m experiments NAME``."""
