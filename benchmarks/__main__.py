"""``make bench``: what notices and pushes cost, beside a plain reference and against a bar.

::

    python -m benchmarks [--rows cpu-64,unknown] [--runs 3]

Each row is the best and the median of some runs. What depends on the machine is measured as its
ratio to the reference (``benchmarks/reference.py``) in the same run, at 64 connections or at one;
the bar is a ratio then too. It ends with 1 if a bar is not held.
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

THERE = 224e-6, 394e-6
"""Seconds of the processor that the reference takes for a notice and push, at 64 connections and at
one, where the bars were found: the daemon took 245 and 468 there, which was 1.093 and 1.188 times
what the reference takes."""


@attrs.frozen
class Row:
    title: str
    unit: str
    bar: float | None
    """In its unit, or as a ratio where there is a row of the reference; ``None``: it has none."""
    reference: str = ""
    most: bool = True
    """Whether the bar is the most that is allowed, or the least."""


def cost(title: str, bar: float, *, alone: bool = False) -> Row:
    """:param bar: microseconds where the bars were found."""
    name, there = ("cpu-1", THERE[1]) if alone else ("cpu-64", THERE[0])
    return Row(title, "us", bar / 1e6 / there, name)


def rate(title: str, bar: float, *, alone: bool = False) -> Row:
    """:param bar: in a second where the bars were found."""
    name, there = ("rate-1", THERE[1]) if alone else ("rate-64", THERE[0])
    return Row(title, "/s", bar * there, name, most=False)


ROWS = {
    "cpu-64": cost("CPU a notice and push, 64 connections", 0.65 * 65),
    "cpu-1": cost("the same, 1 connection", 0.65 * 177, alone=True),
    "token": cost("the same with a token key, 64 connections", 0.65 * 65),
    "unknown": cost("CPU a notice for an unknown user", 0.65 * 24.6),
    # One processor has all of the reference's work.
    "rate-64": rate("notices a second, 64 connections", 1.3 * 20203),
    "rate-1": rate("the same, 1 connection", 1.3 * 4338, alone=True),
    # So its connections wait for each other; beyond that, its p99 is that of the machine.
    "p50": Row("answers, 64 connections: p50", "ms", 2.7e-3 / (64 * THERE[0]), "p50"),
    "p99": Row("the same, p99 (against the reference's p50)", "ms", 11e-3 / (64 * THERE[0]), "p50"),
    "limit-64": Row("system calls of a daemon in C, 64 connections", "us", None, "cpu-64"),
    "limit-1": Row("the same, 1 connection", "us", None, "cpu-1"),
    "limit-rate-64": Row(
        "its notices a second (as fast as wrk is), 64", "/s", None, "rate-64", False
    ),
    "limit-rate-1": Row("the same, 1 connection", "/s", None, "rate-1", False),
    "register": Row("CPU a registration, durable, 64 connections", "us", 60),
    "register-rate": Row("registrations a second", "/s", 5000, most=False),
    "register-plugin": Row("CPU of one by plugin 1.x, a connection each", "us", None),
    "save": Row("CPU a notice of a flag, and its save", "us", 55),
    "later": Row("CPU its push later", "us", 45),
    "phones-10": cost("CPU a push, 10 phones a user", 0.8 * 47),
    "phones-100": cost("CPU a push, 100 phones a user", 0.8 * 44),
    "lag": Row("100 phones a user, 16 connections: last push after its notice", "s", 0.5),
    "lag-disk": Row("flags on disk meanwhile, at most", "", 0),
    "thousand": Row("CPU a push, 10^3 phones", "us", None, "cpu-64"),
    "million": Row("CPU a push, 10^6 phones", "us", None, "cpu-64"),
    "flat": Row("10^6 phones against 10^3", "", 1.1),
    "memory": Row("memory, 10^6 phones", "MB", 150),
    "drain": Row("drain of 100,000 flags after an outage", "s", 4),
    "stall": Row("longest that an answer took meanwhile", "ms", 50),
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
    with tempfile.TemporaryDirectory(prefix="xaps-bench-") as folder:
        figures = measure(Stage(Path(folder)), asked, options.runs)
    head = ["best/median", "ours", "the reference", "ratio", "bar", "held"]
    lines = [figures.line(name) for name in asked]
    table = [head, *(cells for cells, _ in lines)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(
        f"{os.cpu_count()} processors, load {' '.join(f'{each:.1f}' for each in os.getloadavg())}"
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
