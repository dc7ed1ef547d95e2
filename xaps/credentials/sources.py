"""The configuration's keys for credentials become the source that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from twisted.logger import Logger

from xaps.credentials.apple.messages import Account
from xaps.credentials.apple.source import AppleIdSource, Ask, Run, run_here
from xaps.credentials.apple.store import AppleStore
from xaps.credentials.filesource import p8_source, p12_source, pem_source
from xaps.credentials.finding import Source

_log = Logger()


class CredentialSettings(Protocol):
    """The configuration's keys for credentials."""

    @property
    def certificate_file_pem(self) -> Path | None: ...
    @property
    def certificate_file_pem_key(self) -> Path | None: ...
    @property
    def certificate_file_p12(self) -> Path | None: ...
    @property
    def certificate_password(self) -> str | None: ...
    @property
    def key_file_p8(self) -> Path | None: ...
    @property
    def key_file_topic(self) -> str | None: ...
    @property
    def key_file_key_id(self) -> str | None: ...
    @property
    def key_file_team_id(self) -> str | None: ...
    @property
    def apple_id(self) -> str | None: ...
    @property
    def apple_id_hashed_password(self) -> str | None: ...
    @property
    def server_identity(self) -> Path | None: ...
    @property
    def certificate_service(self) -> str: ...
    @property
    def database_file(self) -> Path: ...


def source_from_config(
    config: CredentialSettings, ask: Ask | None = None, run: Run = run_here
) -> Source | None:
    """The source that the configuration names; ``None``: it names none and none is stored.

    That it names one file at most has been checked where the configuration was read.

    :param ask: how Apple's certificate service is asked; without it nothing is renewed.
    :param run: runs what takes a while, such as making keys, elsewhere.
    """
    source = _file_source(config)
    if source is not None:
        if config.apple_id is not None:
            _log.info("{source} is used, not appleId", source=source.name)
        return source
    store = AppleStore(config.database_file.parent)
    account = None
    if config.apple_id is not None:
        account = Account(config.apple_id, config.apple_id_hashed_password or "")
    elif not store.exists():
        return None
    return AppleIdSource(
        store,
        account,
        config.server_identity,
        config.certificate_password,
        service=config.certificate_service,
        ask=ask,
        run=run,
    )


def _file_source(config: CredentialSettings) -> Source | None:
    if config.certificate_file_pem is not None:
        return pem_source(
            config.certificate_file_pem,
            config.certificate_file_pem_key,
            config.certificate_password,
        )
    if config.certificate_file_p12 is not None:
        return p12_source(config.certificate_file_p12, config.certificate_password)
    if config.key_file_p8 is not None:
        return p8_source(
            config.key_file_p8,
            config.certificate_password,
            topic=config.key_file_topic or "",
            key_id=config.key_file_key_id or "",
            team_id=config.key_file_team_id or "",
        )
    return None
