"""The Go daemon on a Debian machine, as its README has it: a program that no package has brought,
and a unit of its own in /etc."""

from __future__ import annotations

from pathlib import Path

PROGRAM = Path("/usr/bin/xapsd")
PUT_ASIDE = Path("/usr/bin/xapsd.before-xaps")
UNIT = Path("/etc/systemd/system/xapsd.service")
ENABLED = UNIT.parent / "multi-user.target.wants/xapsd.service"

GO_UNIT = """\
[Unit]
Description=Apple Push Notification Service
After=network.target

[Service]
User=xapsd
Group=xapsd
ExecStart=/usr/bin/xapsd
Restart=on-failure
MemoryDenyWriteExecute=true
NoNewPrivileges=true
PrivateDevices=true
PrivateTmp=true
ProtectHome=true
ProtectSystem=strict
SystemCallArchitectures=native
SystemCallFilter=@system-service
RestrictNamespaces=yes
RestrictSUIDSGID=yes
ReadWritePaths=/var/lib/xapsd

[Install]
WantedBy=multi-user.target
"""
"""With the settings that the one in its repository has, as far as they matter."""

STANDIN = """\
#!/bin/sh
# Plays the Go daemon's part.
echo "the Go daemon runs" >/var/lib/xapsd/go-was-here
exec sleep 1000000
"""


def remove() -> None:
    """Leave nothing of it. To be done when no package is installed that has such a program."""
    for path in (PROGRAM, PUT_ASIDE, ENABLED, UNIT, Path(f"{UNIT}.old")):
        path.unlink(missing_ok=True)
