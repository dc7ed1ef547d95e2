"""When Python looks for garbage that refers to itself: not while the daemon starts, and in small
parts afterwards.

Such a search stops everything. One among all that a daemon with 100,000 phones holds takes hundreds
of milliseconds; but nearly all of that lives for long, and hardly any of it is in cycles.
"""

from __future__ import annotations

import gc

YOUNG = 10_000
"""Objects that come before the youngest are looked at: a millisecond."""

MIDDLE = 2
"""Looks at the youngest before what survived them is looked at again: some milliseconds."""

OLD = 1000
"""Looks at these before everything is looked at."""


def hold() -> None:
    """What is there now lives on, and what comes is not looked at before :func:`release`. To be
    called before the reactor runs."""
    gc.collect()
    gc.freeze()
    gc.disable()


def release() -> None:
    """What has come meanwhile lives on; look at what comes from now on."""
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
    gc.enable()
