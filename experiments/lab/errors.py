"""Mistakes of the user. The module imports nothing, so it needs no packages."""


class UsageError(Exception):
    """A mistake of the user: shown as one line, without a traceback."""


def one_line(message: object) -> str:
    """Joins the lines of a message to one line."""
    return " ".join(str(message).split())
