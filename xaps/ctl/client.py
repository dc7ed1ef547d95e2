"""Asks the running daemon over its control socket; and how a command of ``xapsctl`` fails."""

from __future__ import annotations

import grp
import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

BAD = 1
"""The exit status when the answer is no, or all is not well."""
UNUSABLE = 2
"""The exit status when the command line, the configuration or a file cannot be used."""

TIMEOUT = 60.0
"""Seconds to wait for an answer; a push that nobody answers is given up in half of it."""


class CtlError(Exception):
    """The command has failed; the message is one line and says what to do.

    :param status: the exit status.
    """

    def __init__(self, message: str, status: int = UNUSABLE) -> None:
        super().__init__(message)
        self.status = status


class DaemonClient:
    """A daemon, by the path of its control socket. Every method blocks and raises
    :class:`CtlError`."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout

    def get(self, path: str, **query: str) -> Any:
        """The answer to a question."""
        # What a terminal sent need not be UTF-8.
        return json.loads(self.text(f"{path}?{urlencode(query, errors='surrogateescape')}"))

    def text(self, path: str) -> str:
        """The answer to a question, as it is."""
        return self._request("GET", path, None)

    def post(self, path: str, **order: object) -> Any:
        """The answer to an order."""
        given = {name: value for name, value in order.items() if value is not None}
        return json.loads(self._request("POST", path, json.dumps(given)))

    def _request(self, method: str, path: str, body: str | None) -> str:
        connection = _UnixConnection(self._path, self._timeout)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise CtlError(f"{self._path}: {_why(self._path, error)}", os.EX_UNAVAILABLE) from None
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise CtlError(_error(answer.status, content), BAD)
        return content.decode()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("xapsd", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _error(status: int, content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, LookupError, TypeError):
        return f"xapsd answered with status {status}; is it of the same version as xapsctl?"


def _why(path: Path, error: Exception) -> str:
    """Why the daemon at `path` cannot be asked, and what to do about it."""
    if isinstance(error, http.client.HTTPException):
        return "what listens there is not xapsd, or has ended during the answer"
    if isinstance(error, TimeoutError):
        return "xapsd does not answer; journalctl -u xapsd may say why"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return (
            "there is no such socket. Does xapsd run (systemctl status xapsd), and is "
            "this its controlSocket? --config or --socket name another one"
        )
    if isinstance(error, ConnectionRefusedError):
        return (
            "nobody listens there: xapsd has ended. journalctl -u xapsd says why, "
            "systemctl start xapsd starts it"
        )
    if isinstance(error, PermissionError):
        group = _group(path)
        member = f", or join the group {group} (adduser USER {group})" if group else ""
        return f"you may not use this socket. Run xapsctl as root{member}"
    return str(error)


def _group(path: Path) -> str:
    """The name of the socket's group; empty if that cannot be told, or does not help."""
    try:
        status = path.stat()
        if status.st_gid and status.st_mode & 0o20:
            return grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        pass
    return ""
