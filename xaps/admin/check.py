"""``--check``: whether what the configuration points to is there and usable, without starting."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from xaps.apns.tls import trust_root
from xaps.config.reading import Config, careless_secrets
from xaps.config.table import KEYS
from xaps.credentials.certificate import utc_text
from xaps.credentials.loading import SET_ONE
from xaps.credentials.sources import source_from_config
from xaps.intake.cyrus.conf import ImapdConfError, read_imapd_conf
from xaps.listen.ports import usable
from xaps.listen.tls import TLSError, server_options
from xaps.listen.unix import ListenError, dovecot_group, group_id, join
from xaps.model import CertificateCredential
from xaps.registry.opening import BESIDE
from xaps.system import callbacks
from xaps.system.files import careless, let_read, read_file

RUNTIME = Path(Config().socket).parent
"""The folder of the sockets where nothing else is said, which systemd makes."""


class Remark(str):
    """What is not wrong, and still worth telling."""


def _warning(text: str) -> Remark:
    return Remark(f"Warning: {text}")


def check(path: Path, config: Config, out: TextIO) -> bool:
    """Tell `out` what is wrong, or that nothing is; returns whether something is wrong.

    :param path: the configuration file, to be named.
    """
    checks = (_credential, _tls, _trust_roots, _addresses, _groups, _database, _cyrus, _sockets)
    found = [text for each in checks for text in each(config)]
    found += callbacks.problems()
    found += map(_warning, careless_secrets(path, config))
    if os.geteuid() == 0:
        found.append(
            _warning(
                "root may read everything, so this was not checked for the daemon's user: "
                "runuser -u xapsd -- xapsd --check"
            )
        )
    problems = [text for text in found if not isinstance(text, Remark)]
    out.writelines(f"{text}\n" for text in found if isinstance(text, Remark))
    out.writelines(f"{path}: {text}\n" for text in problems or ["no problems found"])
    return bool(problems)


def _credential(config: Config) -> Iterator[str]:
    source = source_from_config(config)
    if source is None:
        yield f"no push credential is configured: {SET_ONE}"
        return
    finding = source.load(time.time())
    yield from map(_warning, finding.warnings)
    for error in finding.errors:
        # The error names the file.
        yield f"{source.name.partition(' ')[0]}: {error}"
    credential = finding.credential
    if credential is not None:
        yield Remark(f"Topic: {credential.topic}")
        if isinstance(credential, CertificateCredential):
            yield Remark(f"Certificate valid until {utc_text(credential.not_after)}")


def _tls(config: Config) -> Iterator[str]:
    if config.tls_certfile is None or config.tls_keyfile is None:
        return
    try:
        server_options(config.tls_certfile, config.tls_keyfile, config.tls_client_ca)
    except TLSError as error:
        yield str(error)
    for problem in careless(config.tls_keyfile, "private key"):
        yield _warning(f"tlsKeyfile: {problem}")


def _trust_roots(config: Config) -> Iterator[str]:
    file = config.apns_trust_roots
    if file is None:
        return
    try:
        trust_root(read_file(file))
    except PermissionError:
        yield f"apnsTrustRoots: {file}: permission denied; {let_read(file)}"
    except OSError as error:
        yield f"apnsTrustRoots: {file}: {error.strerror}"
    except ValueError as error:
        yield f"apnsTrustRoots: {file}: {error}"


def _addresses(config: Config) -> Iterator[str]:
    # Whether the port is free does not count: the daemon can be running.
    listened = [("listenAddr", config.listen_addr, config.port)]
    if config.tls_certfile is not None:
        listened.append(("tlsListenAddr", config.tls_listen_addr, config.tls_port))
    if config.metrics_addr is not None:
        listened.append(("metricsAddr", config.metrics_addr.host, config.metrics_addr.port))
    for key, address, port in listened:
        if not address or address.startswith("systemd:"):
            continue
        by_default = KEYS[key].attribute not in config.written
        try:
            yield from map(_warning, usable(key, address, port, by_default=by_default)[1])
        except ListenError as error:
            yield str(error)


def _groups(config: Config) -> Iterator[str]:
    for key in ("socketGroup", "imapSocketGroup", "cyrusSocketGroup", "controlSocketGroup"):
        group = getattr(config, KEYS[key].attribute)
        if group is None:
            continue
        try:
            ours = group_id(key, group) in (os.getegid(), *os.getgroups())
        except ListenError as error:
            yield str(error)
        else:
            if os.geteuid() != 0 and not ours:
                yield f"{key}: {group}: {join(group)}"
    if config.imap_socket and config.imap_socket_group is None and (advice := dovecot_group()[1]):
        yield _warning(f"imapSocket: {advice}")


def _database(config: Config) -> Iterator[str]:
    named = config.database_file
    folder = named.parent
    if not folder.is_dir():
        yield f"databaseFile: the folder {folder} does not exist: create it for the daemon's user"
    elif not _may(folder, os.W_OK | os.X_OK):
        yield (
            f"databaseFile: {folder} cannot be written by this user "
            "(run --check as the daemon's user)"
        )
    for file, needed in ((named, os.R_OK), (folder / BESIDE, os.R_OK | os.W_OK)):
        if file.exists() and not _may(file, needed):
            yield f"databaseFile: {file} belongs to another user: chown xapsd:xapsd {file}"


def _cyrus(config: Config) -> Iterator[str]:
    if not config.cyrus_socket or config.cyrus.imapd_conf is None:
        return
    try:
        found = read_imapd_conf(config.cyrus.imapd_conf, config.cyrus_socket)
    except ImapdConfError as error:
        yield f"cyrus.imapdConf: {error}"
    else:
        yield from map(_warning, found.problems)


def _sockets(config: Config) -> Iterator[str]:
    # No more than warnings: systemd can make folders when it starts the service, as it does with
    # the one that is usual.
    for key in ("socket", "imapSocket", "cyrusSocket", "controlSocket"):
        path = getattr(config, KEYS[key].attribute)
        folder = Path(path).parent
        if not path or path.startswith("systemd:") or folder == RUNTIME:
            continue
        if not folder.is_dir():
            yield _warning(
                f"{key}: the folder {folder} does not exist: make it for the daemon's user, or let "
                "systemd do it (RuntimeDirectory= in the unit)"
            )
        elif not _may(folder, os.W_OK | os.X_OK):
            yield _warning(f"{key}: {folder} cannot be written by this user")


def _may(path: Path, needed: int) -> bool:
    # By what permissions count for, which is not who started sudo.
    return os.access(path, needed, effective_ids=True)
