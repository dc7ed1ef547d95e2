"""Whether a sandbox forbids what the daemon cannot do without: TLS, for each callback of which
pyOpenSSL (by cffi) makes a little code, in memory that is writable and executable.

systemd forbids that with ``MemoryDenyWriteExecute=`` (systemd.exec(5)), which the Go daemon's own
unit has. Twisted would find out with the first connection, and a daemon that cannot connect looks
as if it waited for Apple.
"""

from __future__ import annotations

from OpenSSL import SSL

NO_TLS = (
    "the systemd unit ({}): MemoryDenyWriteExecute= forbids memory that is writable and "
    "executable, without which pyOpenSSL cannot do TLS: no push could be sent. The unit of the "
    "Go daemon has it. Move that unit away, so that the one of this xapsd counts, or take the "
    "line out; then: systemctl daemon-reload; systemctl restart xapsd"
)
"""What is wrong with a unit, and what to do; to be given its files."""


def forbidden() -> str | None:
    """Why this process cannot do TLS, and what to do, in one line; ``None`` where it can."""
    try:
        SSL.Context(SSL.TLS_METHOD).set_info_callback(lambda *_: None)
    except MemoryError:
        return NO_TLS.format("'systemctl cat xapsd' shows its files")
    return None
