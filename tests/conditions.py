"""Bad conditions that only the kernel can make: a full disk, a file that may not be written, a
host without IPv6."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SkipTest

NOBODY = 65534

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


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


@contextlib.contextmanager
def without_ipv6() -> Iterator[None]:
    """This host has only ``lo``, without IPv6."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    lose_ipv6()
    try:
        yield
    finally:
        _libc.setns(before, CLONE_NEWNET)
        os.close(before)


def lose_ipv6() -> None:
    """The same, for the rest of the process's life."""
    _unshare(CLONE_NEWNET)
    with socket.socket() as any_socket:
        up = struct.pack("16sh14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, up)
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")


def change_hosts(hosts: str) -> None:
    """For the rest of the process's life ``/etc/hosts`` is the file of that name."""
    _unshare(CLONE_NEWNS)
    _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
    if _libc.mount(hosts.encode(), b"/etc/hosts", None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), "cannot put another file in the place of /etc/hosts")


def _unshare(what: int) -> None:
    if _libc.unshare(what):
        raise SkipTest("only root can make a host of its own")
