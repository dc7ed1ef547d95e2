"""Bad conditions that only the kernel can make: a full disk, a file that may not be written."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SkipTest

NOBODY = 65534


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: like a disk that is full, but for this process alone
    and with the error EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """File permissions count, also when the tests are run by root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A file system of `size` bytes; only root can make one."""
    if os.geteuid() != 0:
        raise SkipTest("only root can mount a small file system")
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            raise SkipTest(f"no small file system can be mounted here: {mounted.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
