"""The code that all experiments share; it depends on no single experiment."""
