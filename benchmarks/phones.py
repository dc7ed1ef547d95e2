"""Phones by the thousand, for the benchmarks."""

from __future__ import annotations

import json

from tests.peers.daemon import Daemon


def token(number: int) -> str:
    """The device token of the phone with that number."""
    return f"{number:064x}"


def import_phones(daemon: Daemon, count: int) -> None:
    """Give a daemon that was not started yet one phone each for users ``u0``, ``u1``, ..., by the
    Go daemon's ``database.json``."""
    users = {
        f"u{number}": {
            "Accounts": {
                f"ACCOUNT-{number}": {"DeviceToken": token(number), "Mailboxes": ["INBOX"]}
            }
        }
        for number in range(count)
    }
    path = daemon.folder / "database.json"
    path.write_text(json.dumps({"Users": users}))
    daemon.settings["databaseFile"] = str(path)
