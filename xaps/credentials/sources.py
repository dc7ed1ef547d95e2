"""The configuration's keys for credentials become the source that they name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger

from xaps.credentials.apple.messages import Account
from xaps.credentials.apple.source import AppleIdSource, Ask
from xaps.credentials.apple.store import AppleStore
from xaps.credentials.loading import FileSource, Parsed, Run, Source
from xaps.credentials.reading import read_p8, read_pem, read_pkcs12

if TYPE_CHECKING:
    from xaps.config.reading import Config

_log = Logger()


def source_from_config(
    config: Config, ask: Ask | None = None, run: Run = maybeDeferred
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


def _file_source(config: Config) -> Source | None:
    read: Callable[..., Parsed]
    if config.certificate_file_pem is not None:
        name, read = "certificateFilePem", read_pem
        files = [config.certificate_file_pem]
        if config.certificate_file_pem_key is not None:
            files.append(config.certificate_file_pem_key)
    elif config.certificate_file_p12 is not None:
        name, read, files = "certificateFileP12", read_pkcs12, [config.certificate_file_p12]
    elif config.key_file_p8 is not None:
        name, files = "keyFileP8", [config.key_file_p8]
        read = partial(
            read_p8,
            topic=config.key_file_topic or "",
            key_id=config.key_file_key_id or "",
            team_id=config.key_file_team_id or "",
        )
    else:
        return None
    return FileSource(f"{name} {files[0]}", files, read, config.certificate_password)
