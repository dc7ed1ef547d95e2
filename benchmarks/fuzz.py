"""``make fuzz``: look for bytes that break a parser, led by what they reach (atheris).

::

    python -m benchmarks.fuzz TARGET [--runs N] [--seed N] [--folder DIR]

The targets are in `tests.fuzzing`. What was found to lead somewhere is kept in the folder, and
taken up by the next run; an input that breaks something is written there as ``TARGET-crash-...``.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from pathlib import Path

NAMES = ("lines", "http", "imap", "session", "configuration")
LONGEST = 1024
"""Bytes of an input: enough for any message, and short ones take less time."""


def main() -> None:
    """Run it as the command line says; atheris ends the process."""
    parser = argparse.ArgumentParser(prog="benchmarks.fuzz")
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    parser.add_argument("--folder", type=Path, default=Path("_fuzz"))
    options = parser.parse_args()
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["xaps"]):
        fuzzing = importlib.import_module("tests.fuzzing")
    corpus = options.folder / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(fuzzing.seeds(options.target)):
        (corpus / f"seed-{number}").write_bytes(seed[:LONGEST])
    arguments = [
        sys.argv[0],
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={options.folder}/{options.target}-",
        "-timeout=10",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup(arguments, fuzzing.TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
