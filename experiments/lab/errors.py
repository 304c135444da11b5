"""Mistakes of the user. It imports nothing, so that a missing package is one too."""


class UsageError(Exception):
    """A mistake of the user: shown as one line, without a traceback."""


def one_line(message: object) -> str:
    """Joins a message's lines, so that it stays one line."""
    return " ".join(str(message).split())
