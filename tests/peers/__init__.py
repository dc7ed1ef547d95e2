"""Real IMAP servers and HTTP/2 servers, started and ended by the tests."""

from __future__ import annotations

import os

from twisted.trial.unittest import SkipTest


def missing(what: str) -> Exception:
    """What to raise where a peer is not installed: in CI that is a failure, not a skip."""
    return RuntimeError(what) if os.environ.get("CI") else SkipTest(what)
