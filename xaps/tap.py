"""``twistd xapsd``: its options."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from pathlib import Path

from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python import usage

from xaps.config import DEFAULT_PATH
from xaps.config.reading import ConfigError, careless_secrets, load
from xaps.system import console
from xaps.system.log import LineObserver, print_error
from xaps.system.logwriter import LogWriter
from xaps.system.shutdown import LAST_WORDS

_log = Logger()


class Options(usage.Options):
    """What ``twistd xapsd`` understands."""

    synopsis = "[options]"
    optParameters = [
        ["config", "c", str(DEFAULT_PATH), "The configuration file."],
    ]
    optFlags = [
        ["check", None, "Check the configuration and what it points to, and exit."],
        ["check-strict", None, "The same; a warning makes it fail, too."],
    ]
    foreground = False
    """Whether log lines go to standard output, in our form and at ``loglevel``."""
    longdesc = "Tells iPhones and iPads that new mail has arrived on a Dovecot or Cyrus server."

    def postOptions(self) -> None:
        """Read the configuration; what is wrong with it is told before anything else happens."""
        path = Path(self["config"])
        try:
            self.config = load(path)
        except ConfigError as error:
            print_error(str(error), console.opened(sys.stderr), os.environ)
            raise SystemExit(os.EX_CONFIG) from None
        if self["check"] or self["check-strict"]:
            from xaps.admin.check import check  # noqa: PLC0415 - the daemon needs none of it

            config, strict = self.config, bool(self["check-strict"])
            status = (0, os.EX_CONFIG)
            raise SystemExit(
                console.run("xapsd", lambda out, _: status[check(path, config, out, strict=strict)])
            )
        twistd = getattr(self, "parent", None)
        if twistd is not None and twistd.get("nodaemon"):
            self.foreground = not twistd.get("logger") and not twistd.get("logfile")
            if twistd.get("pidfile") == "twistd.pid":
                # In the foreground a supervisor knows the process; the working folder, often /,
                # need not be writable.
                twistd["pidfile"] = ""


def makeService(options: Options) -> Service:
    """The daemon, for twistd to start."""
    gc.disable()  # until all is ready: what is made now is kept, and looking through it takes long
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    from xaps.daemon import Daemon  # noqa: PLC0415 - the longest of the start

    # Timers go by this; by the time of day they would come an hour late when that is set back.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    log, flush_log = None, lambda seconds: None
    if options.foreground:
        writer = LogWriter(console.opened(sys.stdout))
        log, flush_log = LineObserver(options.config.loglevel, writer, os.environ), writer.flush
        atexit.register(flush_log, LAST_WORDS)
    for warning in careless_secrets(Path(options["config"]), options.config):
        _log.warn("{warning}", warning=warning)
    return Daemon(reactor, options.config, log, flush_log)
