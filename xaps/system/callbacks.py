"""Whether a sandbox forbids what the daemon cannot do without: TLS, for each callback of which
pyOpenSSL (by cffi) makes a little code, in memory that is writable and executable.

systemd forbids that with ``MemoryDenyWriteExecute=`` (systemd.exec(5)), which the Go daemon's own
unit has. Twisted would find out with the first connection, and a daemon that cannot connect looks
as if it waited for Apple.
"""

from __future__ import annotations

import shutil
import subprocess

from OpenSSL import SSL

_PROPERTIES = "--property=MemoryDenyWriteExecute,FragmentPath,DropInPaths"
_TIMEOUT = 10.0
"""Seconds that systemctl may take."""

_WHY = (
    "MemoryDenyWriteExecute= forbids memory that is writable and executable, without which "
    "pyOpenSSL cannot do TLS: no push could be sent. The unit of the Go daemon has it. Move "
    "that unit away, so that the one of this xapsd counts, or take the line out; then: "
    "systemctl daemon-reload; systemctl restart xapsd"
)


def forbidden() -> str | None:
    """Why this process cannot do TLS, and what to do, in one line; ``None`` where it can."""
    try:
        SSL.Context(SSL.TLS_METHOD).set_info_callback(lambda *_: None)
    except MemoryError:
        return f"the systemd unit ('systemctl cat xapsd' shows its files): {_WHY}"
    return None


def problems() -> list[str]:
    """The same for ``--check``, which people run outside of the service: what keeps this process
    from TLS, or would keep the service from it, as far as systemd can be asked."""
    here = forbidden()
    if here is not None:
        return [here]
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return []
    try:
        said = subprocess.run(  # noqa: S603 - systemd's own program
            [systemctl, "show", _PROPERTIES, "xapsd.service"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    unit = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if unit.get("MemoryDenyWriteExecute") != "yes":
        return []
    files = " ".join(filter(None, (unit.get("FragmentPath"), unit.get("DropInPaths"))))
    return [f"the systemd unit ({files}): {_WHY}"]
