"""``xapsd.yaml`` to checked values; it never opens what they point to."""

from pathlib import Path

DEFAULT_PATH = Path("/etc/xapsd/xapsd.yaml")
