"""Mistakes of the user, such as a missing package.

The module imports nothing, so that it works without any package.
"""


class UsageError(Exception):
    """A mistake of the user: shown as one line, without a traceback."""


def one_line(message: object) -> str:
    """Joins the lines of a message to one line."""
    return " ".join(str(message).split())
