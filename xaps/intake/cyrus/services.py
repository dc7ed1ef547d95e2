"""Which of the services in Cyrus IMAP's ``cyrus.conf`` phones and new mail come to.

Source of the syntax: ``master/masterconf.c`` of Cyrus IMAP 3.6.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from xaps.system.files import read_file

_COMMENT = re.compile("#.*")
_SECTION = re.compile(r"^\s*SERVICES\b[^{}]*\{(.*?)\}", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_SERVICE = re.compile(
    r'^[^\S\n]*([a-z0-9]+)[^\S\n](?:.*\s)?cmd=(?:"([^"\n]*)"|(\S+))', re.MULTILINE | re.IGNORECASE
)


@attrs.frozen
class Service:
    name: str
    for_phones: bool
    """It is ``imapd``; otherwise ``lmtpd``, which takes new mail."""


USUAL = (Service("imap", True), Service("imaps", True), Service("lmtpunix", False))
"""Those of nearly every server."""


def read_services(path: Path) -> list[Service]:
    """The services that tell the daemon something, the one that phones use first: that is the first
    that begins with TLS (``imapd -s``), or else the first ``imapd``.

    :return: nothing if the file cannot be read, or is not one that Cyrus starts with.
    """
    try:
        text = _COMMENT.sub("", read_file(path).decode("utf-8", "replace"))
    except OSError:
        return []
    section = _SECTION.search(text)
    tls: list[Service] = []
    plain: list[Service] = []
    mail: list[Service] = []
    for name, quoted, word in _SERVICE.findall(section[1] if section else ""):
        program, *arguments = (quoted or word).split() or [""]
        program = program.rpartition("/")[2]
        if program == "imapd":
            (tls if "-s" in arguments else plain).append(Service(name.lower(), True))
        elif program == "lmtpd":
            mail.append(Service(name.lower(), False))
    return tls + plain + mail
