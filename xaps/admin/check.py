"""``--check``: whether what the configuration points to is there and usable, without starting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import attrs

from xaps.admin.cluster import no_psycopg
from xaps.admin.entries import other_topic
from xaps.admin.running import daemon_pid, listens
from xaps.admin.sandbox import UNIT, Sandbox, ask
from xaps.apns.tls import trust_root
from xaps.config.reading import Config, careless_secrets, risks
from xaps.config.table import KEYS, keys_of
from xaps.credentials.certificate import CredentialError, utc_text
from xaps.credentials.loading import SET_ONE, LoadResult, password_file, read_password
from xaps.credentials.sources import Configured, sources_from_config
from xaps.intake.cyrus.conf import ImapdConfError, read_imapd_conf
from xaps.listen.ports import EXPOSED, cannot_listen, is_local, usable
from xaps.listen.tls import TLSError, server_options
from xaps.listen.unix import ListenError, dovecot_group, group_id, join
from xaps.model import CertificateCredential
from xaps.registry.opening import BESIDE
from xaps.system.callbacks import NO_TLS, forbidden
from xaps.system.console import counted
from xaps.system.files import careless, let_read, read_file

RUNTIME = Path(Config().socket).parent
"""The folder of the sockets where nothing else is said, which systemd makes."""


SOCKETS = ("socket", "imapSocket", "cyrusSocket", "controlSocket")
"""The keys that name sockets."""


class Remark(str):
    """What is not wrong, and still worth telling."""


class _Warning(Remark):
    """What may be wrong."""


def _warning(text: str) -> _Warning:
    return _Warning(f"Warning: {text}")


def check(
    path: Path,
    config: Config,
    out: TextIO,
    *,
    strict: bool = False,
    ask_systemd: Callable[[], Sandbox | None] = ask,
) -> bool:
    """Tell `out` what is wrong, or that nothing is; returns whether something is wrong.

    :param path: the configuration file, to be named.
    :param strict: whether a warning is something wrong.
    """
    entries = sources_from_config(config)
    findings = [None if each.source is None else each.source.load(time.time()) for each in entries]
    found = [*_credentials(config, entries, findings), *_cyrus(config, findings)]
    checks = (
        _tls,
        _trust_roots,
        _addresses,
        _status_password,
        _groups,
        _database,
        _cluster,
        _sockets,
    )
    found += [text for each in checks for text in each(config)]
    found += _sandbox(config, ask_systemd())
    found += map(_warning, careless_secrets(path, config))
    if os.geteuid() == 0:
        found.append(
            _warning(
                "root may read everything, so this was not checked for the daemon's user: "
                "runuser -u xapsd -- xapsd --check"
            )
        )
    problems = [text for text in found if not isinstance(text, Remark)]
    warnings = sum(isinstance(text, _Warning) for text in found)
    out.writelines(f"{text}\n" for text in found if isinstance(text, Remark))
    out.writelines(f"{path}: {text}\n" for text in problems)
    told = counted(len(problems), "problem") if problems else "no problems found"
    if warnings:
        told += f", {counted(warnings, 'warning')}"
    out.write(f"{path}: {told}\n")
    return bool(problems or (strict and warnings))


def _credentials(
    config: Config, entries: Sequence[Configured], findings: Sequence[LoadResult | None]
) -> Iterator[str]:
    files = {str(file): key for key, file in _files(config)}
    for entry, finding in zip(entries, findings, strict=True):
        if entry.source is None or finding is None:
            yield f"no push credential is configured: {SET_ONE}"
            continue
        start = f"{entry.name}: " if len(entries) > 1 else ""
        yield from (_warning(f"{start}{warning}") for warning in finding.warnings)
        for error in finding.errors:
            # The error names the file.
            key = files.get(error.file, entry.source.name.partition(" ")[0])
            yield f"{start}{key}: {error}"
        credential = finding.credential
        if credential is not None:
            yield Remark(f"{start}Topic: {credential.topic}")
            if isinstance(credential, CertificateCredential):
                yield Remark(f"{start}Certificate valid until {utc_text(credential.not_after)}")
    if all(entry.domains for entry in entries):
        yield _warning(
            "credentials: every entry has domains, so phones of users of other domains, or of "
            "none, cannot register"
        )


def _files(config: Config) -> Iterator[tuple[str, Path]]:
    """The keys that name files to read, and these."""
    for prefix, settings in (("", config), ("cyrus.", config.cyrus)):
        yield from _paths(prefix, settings)
    for entry in config.credentials:
        yield from _paths("", entry)
        if (file := password_file(entry.certificate_password)) is not None:
            yield "certificatePassword", file
    if (file := password_file(config.status_password)) is not None:
        yield "statusPassword", file


def _paths(prefix: str, settings: attrs.AttrsInstance) -> Iterator[tuple[str, Path]]:
    for key in keys_of(type(settings)):
        value = getattr(settings, key.attribute)
        if isinstance(value, Path) and key.name != "databaseFile":
            yield prefix + key.name, value


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
    listened = [("listenAddr", config.listen_addr, config.port)]
    if config.tls_certfile is not None:
        listened.append(("tlsListenAddr", config.tls_listen_addr, config.tls_port))
    if config.metrics_addr is not None:
        listened.append(("metricsAddr", config.metrics_addr.host, config.metrics_addr.port))
    if config.status_addr is not None:
        listened.append(("statusAddr", config.status_addr.host, config.status_addr.port))
    risky = risks(config)
    for key, address, port in listened:
        if not address or address.startswith("systemd:"):
            continue
        by_default = KEYS[key].attribute not in config.set_in_file
        try:
            numbers, remarks = usable(key, address, port, by_default=by_default)
        except ListenError as error:
            yield str(error)
            continue
        yield from map(_warning, remarks)
        if key in risky and not all(map(is_local, numbers)):
            yield _warning(EXPOSED.format(key=key, risk=risky[key]))
        for number in numbers:
            yield from _port(config, key, number, port)


def _status_password(config: Config) -> Iterator[str]:
    try:
        read_password(config.status_password)
    except CredentialError as error:
        yield f"statusPassword: {error}"
    if (file := password_file(config.status_password)) is not None:
        for problem in careless(file, "password"):
            yield _warning(f"statusPassword: {problem}")


def _port(config: Config, key: str, number: str, port: int) -> Iterator[str]:
    found = cannot_listen(key, number, port)
    if found is None:
        return
    text, taken = found
    if not taken:
        yield text
        return
    try:
        pid = daemon_pid(config.control_socket)
        if pid is None or not listens(pid, port):
            # Without a control socket the daemon that runs cannot be told from another program.
            yield text if config.control_socket else _warning(f"{text}; no matter if it is xapsd")
    except OSError:
        yield _warning(f"{text}; no matter if it is xapsd, which this user may not look into")


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


def _cyrus(config: Config, findings: Sequence[LoadResult | None]) -> Iterator[str]:
    if not config.cyrus_socket:
        return
    if config.cyrus.imapd_conf is None:
        if len(config.credentials) > 1:
            yield _warning(
                "cyrusSocket: with several credentials xapsd must know which topic Cyrus gives "
                "phones: set cyrus.imapdConf"
            )
        return
    try:
        found = read_imapd_conf(config.cyrus.imapd_conf, config.cyrus_socket)
    except ImapdConfError as error:
        yield f"cyrus.imapdConf: {error}"
    else:
        yield from map(_warning, found.problems)
        ours = [each.credential for each in findings if each and each.credential]
        if wrong := other_topic(found.aps_topic, ours):
            yield f"cyrus.imapdConf: {wrong}"


def _cluster(config: Config) -> Iterator[str]:
    if config.database_url is None:
        return
    try:
        from xaps.cluster.database import DatabaseError, parsed, try_once  # noqa: PLC0415 - seldom
        from xaps.cluster.schema import prepare  # noqa: PLC0415 - likewise
    except ImportError as error:
        yield no_psycopg(error)
        return
    try:
        parsed(config.database_url)
    except DatabaseError as error:
        yield str(error)
        return
    try:
        try_once(config.database_url, prepare)
    except DatabaseError as error:
        # The daemon starts all the same; and root can be another role there.
        yield _warning(f"databaseUrl: {error}. Until that is mended this node works alone")


def _sockets(config: Config) -> Iterator[str]:
    # No more than warnings: systemd can make folders when it starts the service, as it does with
    # the one that is usual.
    for key in SOCKETS:
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


def _sandbox(config: Config, unit: Sandbox | None) -> Iterator[str]:
    """What the service could not do, not see or not write, whatever this user can."""
    if here := forbidden():
        yield here
    if unit is None:
        return
    if unit.without_tls and not here:
        yield NO_TLS.format(unit.without_tls)

    def told(text: str) -> str:
        if unit.in_force:
            return text
        return _warning(f"{text}. There is no {UNIT} yet; this is how the packaged one is")

    for key, file in _files(config):
        if why := unit.hides(file):
            hidden = f"the service does not see this folder ({why} in {UNIT})"
            yield told(f"{key}: {file}: {hidden}; move the file to /etc/xapsd")
    made = [(key, Path(getattr(config, KEYS[key].attribute))) for key in ("databaseFile", *SOCKETS)
            if str(getattr(config, KEYS[key].attribute)).startswith("/")]  # fmt: skip
    for key, file in made:
        if why := unit.hides(file):
            hidden = f"the service has another folder there than others ({why} in {UNIT})"
            usual = KEYS[key].default or "a path below /run/xapsd"
            yield told(f"{key}: {file}: {hidden}; choose another path, such as {usual}")
        elif not unit.may_write(file.parent):
            yield told(
                f"{key}: {file}: the service may not write to {file.parent} (ProtectSystem= in "
                f"{UNIT}); run 'systemctl edit xapsd', and write there a line [Service] and below "
                f"it the line ReadWritePaths={file.parent}"
            )


def _may(path: Path, needed: int) -> bool:
    # By what permissions count for, which is not who started sudo.
    return os.access(path, needed, effective_ids=True)
