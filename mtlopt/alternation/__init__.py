"""Alternation: blocks of parameters, or tasks, that move in turn."""
