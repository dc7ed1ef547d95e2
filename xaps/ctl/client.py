"""Asks the running daemon over its control socket."""

from __future__ import annotations

import errno
import grp
import http.client
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from xaps.ctl.errors import BAD, UNREACHABLE, CtlError

TIMEOUT = 60.0
"""Seconds to wait for an answer; a push that nobody answers is given up in half of it."""


class DaemonClient:
    """A daemon, by the path of its control socket. Every method blocks and raises
    :class:`~xaps.ctl.errors.CtlError`."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout

    def get(self, path: str, **query: str) -> Any:
        """The answer to a question."""
        # What a terminal sent need not be UTF-8.
        return json.loads(self.text(f"{path}?{urlencode(query, errors='surrogateescape')}"))

    def text(self, path: str) -> bytes:
        """The answer to a question, as it is."""
        return self._request("GET", path, None)

    def post(self, path: str, **order: object) -> Any:
        """The answer to an order."""
        given = {name: value for name, value in order.items() if value is not None}
        return json.loads(self._request("POST", path, json.dumps(given)))

    def _request(self, method: str, path: str, body: str | None) -> bytes:
        connection = _UnixConnection(self._path, self._timeout)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
        except TimeoutError:
            raise CtlError(
                f"{self._path}: xapsd does not answer; journalctl -u xapsd may say why",
                UNREACHABLE,
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise CtlError(_why_not(self._path, error), UNREACHABLE) from None
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise CtlError(_error(answer.status, content), BAD)
        return content


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


def _why_not(path: Path, error: Exception) -> str:
    if isinstance(error, http.client.HTTPException):
        return f"{path}: what listens there is not xapsd, or has ended during the answer"
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR):
        return (
            f"{path}: there is no such socket. Does xapsd run (systemctl status xapsd), and is "
            "this its controlSocket? --config or --socket name another one"
        )
    if number == errno.ECONNREFUSED:
        return (
            f"{path}: nobody listens there: xapsd has ended. journalctl -u xapsd says why, "
            "systemctl start xapsd starts it"
        )
    if number in (errno.EACCES, errno.EPERM):
        group = _group(path)
        member = f", or join the group {group} (adduser USER {group})" if group else ""
        return f"{path}: you may not use this socket. Run xapsctl as root{member}"
    return f"{path}: {error}"


def _group(path: Path) -> str:
    """The name of the socket's group; empty if that cannot be told, or does not help."""
    try:
        status = path.stat()
        return (
            grp.getgrgid(status.st_gid).gr_name if status.st_gid and status.st_mode & 0o20 else ""
        )
    except (OSError, KeyError):
        return ""
