"""Fronts: one network for each preference, all trained in one program."""
