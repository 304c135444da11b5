"""Data sets: official releases when a folder is given, honest stand-ins otherwise."""
