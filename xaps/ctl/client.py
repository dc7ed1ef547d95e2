"""Asks the running daemon over its control socket; and how a command of ``xapsctl`` fails."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from xaps.config.reading import Config

BAD = 1
"""The exit status when the answer is no, or all is not well."""
UNUSABLE = 2
"""The exit status when the command line, the configuration or a file cannot be used."""

TIMEOUT = 60.0
"""Seconds to wait for an answer; a push that nobody answers is given up in half of it."""

OTHER_VERSION = "is it of the same version as xapsctl? If not: systemctl restart xapsd"
"""About an answer that is not understood. While it is upgraded, the old xapsd goes on to run."""


class CtlError(Exception):
    """The command has failed; the message is one line and says what to do.

    :param status: the exit status.
    """

    def __init__(self, message: str, status: int = UNUSABLE) -> None:
        super().__init__(message)
        self.status = status


class DaemonClient:
    """A daemon, by the path of its control socket. Every method blocks and raises
    :class:`CtlError`; arguments that are ``None`` are left out."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout

    def get(self, path: str, **query: str | None) -> Any:
        """The answer to a question."""
        # What a terminal sent need not be UTF-8.
        given = urlencode(_without_none(query), errors="surrogateescape")
        return json.loads(self.ask(f"{path}?{given}"))

    def post(self, path: str, **order: str | None) -> Any:
        """The answer to an order."""
        return json.loads(self.ask(path, json.dumps(_without_none(order))))

    def ask(self, path: str, order: str | None = None) -> str:
        """The answer as it is."""
        connection = http.client.HTTPConnection("xapsd")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(self._timeout)
            connection.sock.connect(str(self._path))
            connection.request("GET" if order is None else "POST", path, order)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise CtlError(f"{self._path}: {_why(self._path, error)}", os.EX_UNAVAILABLE) from None
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise CtlError(_error(answer.status, content), BAD)
        return content.decode()


def http_host(config: Config) -> str:
    """Where this machine's IMAP server reaches ``listenAddr``, as URLs have it.

    :raises CtlError: there is no ``listenAddr``.
    """
    address = config.listen_addr
    if not address:
        raise CtlError("listenAddr is empty in xapsd.yaml, so xapsd takes no notices by HTTP")
    if address.startswith("systemd:"):
        address = "::1"
    address = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(address, address)  # noqa: S104 - no listening
    return f"[{address}]" if ":" in address else address


def notify(config: Config, user: str, mailbox: str) -> bool:
    """Tell of new mail, as the Lua script in Dovecot does; whether a phone is to be pushed.

    :raises CtlError: xapsd was not told.
    """
    address = f"{http_host(config)}:{config.port}"
    where = f"http://{address}/notify"
    notice = json.dumps({"Username": user, "Mailbox": mailbox, "Events": ["MessageNew"]})
    secret = base64.b64encode(f"xapsd:{config.auth_token}".encode()).decode()
    headers = {"Authorization": f"Basic {secret}"} if config.auth_token else {}
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
    try:
        connection.request("POST", "/notify", notice, headers)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise CtlError(f"{where}: {error}; does xapsd run?", os.EX_UNAVAILABLE) from None
    finally:
        connection.close()
    if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.NO_CONTENT):
        raise CtlError(f"{where}: {content.decode(errors='replace').strip()}", BAD)
    return answer.status == http.HTTPStatus.OK


def _without_none(values: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _error(status: int, content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, LookupError, TypeError):
        return f"xapsd answered with status {status}; {OTHER_VERSION}"


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
        text = "you may not use this socket. Run xapsctl as root"
        with contextlib.suppress(OSError, KeyError):  # the group cannot be told
            status = path.stat()
            if status.st_gid and status.st_mode & stat.S_IWGRP:
                group = path.group()
                text += f", or join the group {group} (adduser USER {group})"
        return text
    return str(error)
