"""The configuration's keys for credentials become the sources that they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger

from xaps.credentials.loading import FileSource, Parsed, Run, Source
from xaps.credentials.reading import read_p8, read_pem, read_pkcs12

if TYPE_CHECKING:
    from xaps.config.table import Config, CredentialSettings
    from xaps.credentials.apple.source import Ask

_DOMAINS = 3
"""Domains that are in the name of an entry."""

_log = Logger()


@attrs.frozen
class Configured:
    """An entry of ``credentials:``, or the one that the keys without that list are."""

    name: str
    """What administrators know it by: no other entry has it."""
    domains: frozenset[str]
    source: Source | None
    """``None``: the configuration names none and none is stored."""


def sources_from_config(
    config: Config, ask: Callable[[], Ask] | None = None, run: Run = maybeDeferred
) -> list[Configured]:
    """The sources that the configuration names, in its order; there is always an entry.

    That an entry names one file at most has been checked where the configuration was read.

    :param ask: tells how Apple's certificate service is asked, if there is an Apple ID; without it
        nothing is renewed.
    :param run: runs what takes a while, such as making keys, elsewhere.
    """
    sources: list[Source | None] = []
    stores = 0
    for entry in config.credentials:
        source = _file_source(entry)
        if source is not None:
            if entry.apple_id is not None:
                _log.info("{source} is used, not appleId", source=source.name)
        elif entry.apple_id is not None or len(config.credentials) == 1:
            source = _apple_source(config, entry, entry.apple_id if stores else None, ask, run)
            stores += 1
        sources.append(source)
    names = [
        _in_short(entry.domains) or ("no credential" if source is None else source.name)
        for entry, source in zip(config.credentials, sources, strict=True)
    ]
    return [
        Configured(
            # While a certificate moves to another topic, two entries have the same domains.
            f"{name} ({names[: at + 1].count(name)})" if names.count(name) > 1 else name,
            frozenset(entry.domains),
            source,
        )
        for at, (name, entry, source) in enumerate(
            zip(names, config.credentials, sources, strict=True)
        )
    ]


def _in_short(domains: Sequence[str]) -> str:
    more = len(domains) - _DOMAINS
    return ", ".join(domains[:_DOMAINS]) + (f" and {more} more" if more > 0 else "")


def _apple_source(
    config: Config,
    entry: CredentialSettings,
    stored_for: str | None,
    ask: Callable[[], Ask] | None,
    run: Run,
) -> Source | None:
    # Imported late: few have an Apple ID, and it would be a twentieth of the daemon's start.
    from xaps.credentials.apple.messages import Account  # noqa: PLC0415
    from xaps.credentials.apple.source import AppleIdSource  # noqa: PLC0415
    from xaps.credentials.apple.store import AppleStore  # noqa: PLC0415

    store = AppleStore(config.database_file.parent, stored_for)
    account = None
    if entry.apple_id is not None:
        account = Account(entry.apple_id, entry.apple_id_hashed_password or "")
    elif not store.exists():
        return None
    return AppleIdSource(
        store,
        account,
        entry.server_identity,
        entry.certificate_password,
        service=config.certificate_service,
        ask=None if ask is None else ask(),
        run=run,
    )


def _file_source(entry: CredentialSettings) -> Source | None:
    read: Callable[..., Parsed]
    if entry.certificate_file_pem is not None:
        name, read = "certificateFilePem", read_pem
        files = [entry.certificate_file_pem]
        if entry.certificate_file_pem_key is not None:
            files.append(entry.certificate_file_pem_key)
    elif entry.certificate_file_p12 is not None:
        name, read, files = "certificateFileP12", read_pkcs12, [entry.certificate_file_p12]
    elif entry.key_file_p8 is not None:
        name, files = "keyFileP8", [entry.key_file_p8]
        read = partial(
            read_p8,
            topic=entry.key_file_topic or "",
            key_id=entry.key_file_key_id or "",
            team_id=entry.key_file_team_id or "",
        )
    else:
        return None
    return FileSource(f"{name} {files[0]}", files, read, entry.certificate_password)
