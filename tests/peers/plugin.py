"""The plugin of xaps for Dovecot, compiled for the Dovecot that is installed."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.peers import missing

SOURCE = Path(__file__).parents[2] / "dovecot"
CONFIG = Path("/usr/lib/dovecot/dovecot-config")
"""What compiles plugins asks this."""
INSTALLED = Path("/usr/lib/dovecot/modules")
FLAGS = "-O1 -g -Werror -Wmissing-prototypes -Wshadow"


@functools.cache
def modules() -> Path:
    """A folder with Dovecot's own modules and the plugin, for this process.

    :raises twisted.trial.unittest.SkipTest: it cannot be compiled here, and this is not CI.
    """
    if not CONFIG.exists() or shutil.which("gcc") is None:
        raise missing("Dovecot's headers or a compiler are not installed (dovecot-dev, gcc, make)")
    folder = Path(tempfile.mkdtemp(prefix="xaps-modules-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    for path in INSTALLED.iterdir():
        if "xaps" not in path.name:  # installed by the package, perhaps
            (folder / path.name).symlink_to(path)
    subprocess.run(
        ["make", "-s", "-C", SOURCE, f"BUILD={folder}", f"CFLAGS={FLAGS}"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder
