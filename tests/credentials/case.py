"""The sources that the configuration's keys name."""

from __future__ import annotations

from pathlib import Path

from xaps.config.table import Config, CredentialSettings
from xaps.credentials.loading import Source
from xaps.credentials.sources import sources_from_config


def _source(entry: CredentialSettings) -> Source:
    (configured,) = sources_from_config(Config(credentials=(entry,)))
    assert configured.source is not None
    return configured.source


def pem_source(certificate: Path, key: Path | None, password: str | None = None) -> Source:
    return _source(
        CredentialSettings(
            certificate_file_pem=certificate,
            certificate_file_pem_key=key,
            certificate_password=password,
        )
    )


def p12_source(file: Path, password: str | None = None) -> Source:
    return _source(CredentialSettings(certificate_file_p12=file, certificate_password=password))


def p8_source(
    file: Path, password: str | None = None, *, topic: str, key_id: str, team_id: str
) -> Source:
    return _source(
        CredentialSettings(
            key_file_p8=file,
            key_file_topic=topic,
            key_file_key_id=key_id,
            key_file_team_id=team_id,
            certificate_password=password,
        )
    )
