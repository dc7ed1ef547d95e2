"""The HTTP/2 server of node (Debian's ``nodejs``): not ours, in C (nghttp2) and JavaScript. What it
answers and what it can be told stands in ``h2server.js``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests import pki
from tests.peers import missing
from tests.peers.child import ROOT, Child


class NodeServer:
    """One server on 127.0.0.1, with a certificate for ``localhost``. Everything
    blocks.

    :param folder: an empty folder for its files.
    """

    def __init__(self, folder: Path, authority: pki.Authority) -> None:
        program = shutil.which("node")
        if program is None:
            raise missing("node is not installed (Debian: nodejs)")
        folder = folder.absolute()
        certificate, key = authority.server().write(folder, "server")
        script = ROOT / "tests" / "peers" / "h2server.js"
        self._child = Child([program, script, key, certificate], folder)
        self.port: int = json.loads(self._child.wait_for('"port"'))["port"]

    def tell(self, **wanted: Any) -> None:
        self._child.send_line(json.dumps(wanted))

    @property
    def told(self) -> list[dict[str, Any]]:
        """What it has printed: its port, requests, errors, and SETTINGS acknowledged."""
        return [json.loads(line) for line in self._child.lines]

    def close(self) -> None:
        self._child.close()
