"""The test suite; run it with trial. It mirrors the package."""

import codecs
import os
import sys


def examples(number: int) -> int:
    """How many of hypothesis' examples a test is to try: all of them in CI, and a fourth elsewhere,
    where it is run again and again."""
    return number if os.environ.get("CI") else -(-number // 4)


if "twisted.trial" in sys.modules:  # and this is none of the programs that tests start
    # Python remembers for good that a codec could not be loaded. A test that gives up root's rights
    # may be the first to want this one, and unable to read the interpreter's files.
    codecs.lookup("idna")

    from hypothesis import HealthCheck, settings
    from twisted.python import log

    # A worker of ``trial -j`` sends each line that is logged to the first process, and awaits its
    # answer byte by byte: that takes longer than the tests themselves. Run without -j, trial writes
    # test.log.
    for observer in log.theLogPublisher.observers:
        log.removeObserver(observer)

    # However slow the machine is: none of these is a bug of ours.
    settings.register_profile(
        "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("any machine")
