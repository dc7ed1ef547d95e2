"""How ``xapsctl`` ends when it does not end well."""

from __future__ import annotations

BAD = 1
"""The answer is no, or all is not well."""
UNUSABLE = 2
"""The command line, the configuration or a file cannot be used."""
UNREACHABLE = 69
"""There is no daemon to ask (EX_UNAVAILABLE of sysexits.h)."""


class CtlError(Exception):
    """The command has failed; the message is one line and says what to do.

    :param status: the exit status.
    """

    def __init__(self, message: str, status: int = UNUSABLE) -> None:
        super().__init__(message)
        self.status = status
