"""Comparisons of methods on real problems: molecules, equations and genes."""
