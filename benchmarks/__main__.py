"""``make bench``: what notices and pushes cost, beside a plain reference and against a bar.

::

    python -m benchmarks [--rows cpu-64,unknown] [--runs 3]

Each row is the best and the median of some runs. What depends on the machine is measured as its
ratio to the reference (``benchmarks/reference.py``) in the same run, at 64 connections or at one;
the bar is a ratio then too (see `THERE`). It ends with 1 if a bar is not held.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from benchmarks.rows import GROUPS, ONCE, plain
from benchmarks.stage import Stage

THERE = {
    "cpu-64": 384e-6,
    "cpu-1": 468e-6,
    "rate-64": 1 / 384e-6,
    "rate-1": 1926,
    "p50": 64 * 384e-6,
}
"""What the reference takes where the bars were found, beside the daemon in Go, in seconds or in a
second, with the newest packages (Debian 12's take a quarter less). With 64 connections, 0.65 of
Go's 65 us are 0.11 of it. It has one processor, so there are no more notices than that, and its
connections wait for each other. With one connection it takes what xapsd took before it had frames
of its own (measured in turns: 0.7 to 1.2 times as much), which was 468 us there, 1926 a second."""


@attrs.frozen
class Row:
    title: str
    unit: str
    bar: float | None
    """In its unit, or as a ratio where there is a row of the reference; ``None``: it has none."""
    reference: str = ""
    most: bool = True
    """Whether the bar is the most that is allowed, or the least."""


def go(title: str, unit: str, bar: float, reference: str, *, most: bool = True) -> Row:
    """:param bar: in seconds or in a second, where the bars were found."""
    return Row(title, unit, bar / THERE[reference], reference, most)


ROWS = {
    "cpu-64": go(
        "CPU a notice and push, phones in memory, 64 connections", "us", 0.65 * 65e-6, "cpu-64"
    ),
    "first": Row("the same, of users who had no notice before", "us", None, "cpu-64"),
    "cpu-1": go("the same, 1 connection", "us", 0.65 * 177e-6, "cpu-1"),
    "token": go("the same with a token key, 64 connections", "us", 0.65 * 65e-6, "cpu-64"),
    "unknown": go("CPU a notice for an unknown user", "us", 0.65 * 24.6e-6, "cpu-64"),
    "rate-64": go("notices a second, 64 connections", "/s", 1.3 * 20203, "rate-64", most=False),
    "rate-1": go("the same, 1 connection", "/s", 1.3 * 4338, "rate-1", most=False),
    "p50": go("answers, 64 connections: p50", "ms", 2.7e-3, "p50"),
    "p99": go("the same, p99 (beside the reference's p50)", "ms", 11e-3, "p50"),
    "limit-64": Row("least CPU: a daemon in C, 64 connections", "us", None, "cpu-64"),
    "limit-1": Row("the same, 1 connection", "us", None, "cpu-1"),
    "limit-rate-64": Row("its notices a second, 64 connections", "/s", None, "rate-64", most=False),
    "limit-rate-1": Row("the same, 1 connection", "/s", None, "rate-1", most=False),
    "register": Row("CPU a renewal, durable, 64 connections", "us", 60),
    "register-rate": Row("renewals a second", "/s", 5000, most=False),
    "register-plugin": Row("CPU of one by plugin 1.x, a connection each", "us", None),
    "save": Row("CPU a notice of a flag, and its save", "us", 55),
    "later": Row("CPU its push later", "us", 45),
    "phones-10": go("CPU a push, 10 phones a user", "us", 0.8 * 47e-6, "cpu-64"),
    "phones-100": go("CPU a push, 100 phones a user", "us", 0.8 * 44e-6, "cpu-64"),
    "lag": Row("100 phones a user, 16 connections: lag", "s", 0.5),
    "lag-disk": Row("flags on disk meanwhile", "", 0),
    "thousand": Row("CPU a push, 10^3 phones", "us", None, "cpu-64"),
    "million": Row("CPU a push, 10^6 phones", "us", None, "cpu-64"),
    "flat": Row("10^6 phones against 10^3", "", 1.1),
    "memory": Row("memory, 10^6 phones", "MB", 150),
    "drain": Row("drain of 100,000 flags after an outage", "s", 4),
    "stall": Row("longest wait for an answer meanwhile", "ms", 50),
    "back": Row("first push after an outage of a minute", "s", 5),
    "idle": Row("an idle connection after a notice", "KB", 3.7),
    "start": Row("start to ready", "s", 0.3),
    "help": Row("xapsctl --help", "s", 0.12),
}

UNITS = {"us": 1e6, "ms": 1e3, "KB": 1e-3, "MB": 1e-6}


class Figures:
    """What was measured: of each row, and of each of the reference."""

    def __init__(self) -> None:
        self.ours: defaultdict[str, list[float]] = defaultdict(list)
        self.reference: defaultdict[str, list[float]] = defaultdict(list)

    def line(self, name: str) -> tuple[list[str], bool]:
        """The cells of a row of the table, and whether its bar is held."""
        row = ROWS[name]
        values, others = self.ours[name], self.reference[row.reference]
        if not values or (row.reference and not others):
            return [row.title, "failed", "-", "-", "-", "NO"], False
        best = (min if row.most else max)(values)
        ratio, told = best * UNITS.get(row.unit, 1.0), "-"
        if row.reference:
            ratio = best / (min if row.most else max)(others)
            told = f"{ratio:.3f}"
        held = row.bar is None or (ratio <= row.bar if row.most else ratio >= row.bar)
        bar = "-" if row.bar is None else f"{'<=' if row.most else '>='} {_number(row.bar)}"
        cells = [row.title, _both(values, row), _both(others, row), told, bar]
        return [*cells, "-" if row.bar is None else "yes" if held else "NO"], held


def _both(values: Sequence[float], row: Row) -> str:
    if not values:
        return "-"
    scale = UNITS.get(row.unit, 1.0)
    best = (min if row.most else max)(values)
    return (
        f"{_number(scale * best)}/{_number(scale * statistics.median(values))} {row.unit}".strip()
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measure(stage: Stage, rows: Sequence[str], runs: int) -> Figures:
    """The rows asked for, one run of all after the other: what else the machine does from time to
    time meets all of them."""
    figures = Figures()
    groups = [group for group, names in GROUPS.items() if set(names) & set(rows)]

    def one(
        group: Callable[[Stage], Mapping[str, float]], into: defaultdict[str, list[float]]
    ) -> None:
        try:
            measured = group(stage)
        except (Exception, SystemExit) as error:  # the other rows are measured all the same
            print(f"  failed: {error!r}", file=sys.stderr, flush=True)
            return
        for name, value in measured.items():
            into[name].append(value)
            print(f"  {name}: {value:.6g}", file=sys.stderr, flush=True)

    for run in range(runs):
        print(f"run {run + 1} of {runs}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        if any(ROWS[name].reference for name in rows):
            one(plain, figures.reference)
        for group in groups:
            if not run or group not in ONCE:
                one(group, figures.ours)
    if "flat" in rows and figures.ours["million"] and figures.ours["thousand"]:
        figures.ours["flat"] = [min(figures.ours["million"]) / min(figures.ours["thousand"])]
    return figures


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="of these: %(default)s")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    asked = [name.strip() for name in options.rows.split(",")]
    if wrong := [name for name in asked if name not in ROWS]:
        parser.error(f"there is no row {wrong[0]!r}; there are {', '.join(ROWS)}")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed was compiled
    with tempfile.TemporaryDirectory(prefix="xaps-bench-") as folder:
        figures = measure(Stage(Path(folder)), asked, options.runs)
    head = ["best/median", "ours", "the reference", "ratio", "bar", "held"]
    lines = [figures.line(name) for name in asked]
    table = [head, *(cells for cells, _ in lines)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(
        f"{os.cpu_count()} processors, load {' '.join(f'{each:.1f}' for each in os.getloadavg())}, "
        f"{sys.executable}, {' '.join(sys.version.split())}"
    )
    for cells in table:
        first, *rest = (
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        print("  ".join((first, *rest)))
    raise SystemExit(not all(held for _, held in lines))


if __name__ == "__main__":
    main()
