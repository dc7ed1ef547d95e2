"""How work of one kind fares: counted where it is done, judged every few seconds."""

from __future__ import annotations


class Work:
    """What is done and what fails. One failure is no trouble, and as a rule one success amid
    failures is not the end of it: trouble is what fails between two looks, and between later ones.

    :param cause: one word for it, for monitoring.
    :param text: what is the matter if it fails, for people; the reason of the last failure is
        added.
    :param patience: seconds; if given, there is no trouble before it has failed for so long
        without one success.
    :ivar done: how often it succeeded. Whoever does it counts it up, which costs next to nothing.
    :ivar since: when trouble began, by the looks.
    """

    def __init__(self, cause: str, text: str, *, patience: float = 0.0) -> None:
        self.cause = cause
        self._text = text
        self._patience = patience
        self.done = 0
        self._failed = 0
        self._reason: object = ""
        self._seen = (0, 0)
        self.since: float | None = None
        self._last = 0.0

    def fail(self, reason: object) -> None:
        """It failed.

        :param reason: why, and what to do, for people.
        """
        self._failed += 1
        self._reason = reason

    def look(self, now: float) -> None:
        """Judge what has happened since the last look."""
        done, failed = self._seen
        self._seen = self.done, self._failed
        fails, succeeds = self._failed > failed, self.done > done
        if succeeds and (self._patience or not fails):
            self.since = None
        elif fails:
            self.since = now if self.since is None else self.since
            self._last = now

    @property
    def trouble(self) -> str | None:
        """What is the matter; ``None``: nothing that lasts."""
        if self.since is None or self._last == self.since:
            return None
        if self._last - self.since < self._patience:
            return None
        return f"{self._text}: {self._reason}"
