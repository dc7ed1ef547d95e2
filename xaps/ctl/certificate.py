"""``xapsctl certificate``: the configured credential, or those in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xaps.config import reading as configuration
from xaps.config.reading import ConfigError
from xaps.credentials.report import Report, report_files, report_source
from xaps.credentials.sources import source_from_config


def reports(file: Path, paths: Sequence[Path], now: float) -> list[Report]:
    """What is to be told.

    :param file: the configuration. With `paths` it is only looked into for
        ``certificatePassword``, and need not be there.
    :raises ConfigError: without `paths`, if the configuration is wrong.
    """
    if not paths:
        return [report_source(source_from_config(configuration.load(file)), now)]
    try:
        password = configuration.load(file).certificate_password
    except ConfigError:
        password = None
    return report_files(paths, password, now)
