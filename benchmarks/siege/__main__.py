"""``make siege``: hostile peers of every kind against the running daemon, several at a time, while
an honest IMAP server and honest phones hold it to its promises.

``--seed`` chooses which kinds meet, and in which order; ``--only`` is for one of them alone. It
ends with a table, and with status 1 on any breach of these:

* **Loss.** Each notice that was answered with success leads to a push that names the mailbox, or is
  owed on disk after each stop; when all is well again, nobody is owed one `PATIENCE` after a
  restart, and every honest phone is still registered. No honest client is refused, but for what
  the disk or the daemon's end explains.
* **Truth.** ``status`` and ``/healthz`` name the cause of a failure while there is one.
* **The stop** takes 20 s at the most, whatever goes on.
* **Times**, in a run of five minutes and more, since a busy machine belies them: 99 % of the honest
  notices are answered within `P99` during each kind of attack, and memory grows by `SLOPE` at most.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import attrs

from benchmarks.siege import apple, clients, cyrus, host, http2, users
from benchmarks.siege.honest import PHONES, Asked
from benchmarks.siege.kinds import KINDS, Kind, Report
from benchmarks.siege.stage import Stage
from tests.standins.steps import Hold

MODULES = (apple, clients, cyrus, host, http2, users)
LANES = ("clients", "clients", "apple", "host", "cyrus")
"""What goes on at a time; attacks of clients come in pairs."""
ELSEWHERE = ("clients", "cyrus")
"""Lanes whose attacks run in processes of their own."""
REST = Kind("(none)", "", lambda *_: Report("nothing", "-"), 4)
LONG = 300.0
"""Seconds from which on times are judged."""
LAST_LIFE = 0.6
"""The part of a long run that is one life of the daemon, whose memory is looked at."""
PATIENCE, ENDING = 40.0, 18.0
"""Seconds at the most for the last pushes, and kept for them of the seconds of a run."""
P99 = 1000.0
"""Milliseconds, with up to five attacks at a time on a few processors that attackers share; what
one attack alone may cost others is for `benchmarks.hostile` to judge."""
WARM_UP, SLOT, SLOPE = 60.0, 15.0, 10.0
"""Seconds after the last start, and MiB a minute by which memory may grow from then on: what it has
at the least in each of so many seconds. It is not warm for long: a small slope is for ``make soak``
to judge."""
EXCUSED = 5.0
"""Seconds for which what refuses honest clients may go on to do so."""


@attrs.frozen
class Window:
    """One attack that is over."""

    kind: Kind
    begun: float
    ended: float
    report: Report

    def touches(self, asked: Asked, longer: float = 0.0) -> bool:
        return self.begun <= asked.ended and asked.begun <= self.ended + longer


class Siege:
    """One run.

    :ivar wrong: the breaches.
    """

    def __init__(self, stage: Stage, rng: random.Random, seconds: float, only: list[Kind]) -> None:
        self.wrong: list[str] = []
        self._stage = stage
        self._rng = rng
        self._kinds = only or KINDS
        self._long = seconds >= LONG
        self._load = seconds - ENDING
        self._begun = 0.0
        self._windows: list[Window] = []
        self._decks: dict[str, list[Kind]] = {}
        self._dealing = threading.Lock()
        # What attackers cost is not to be measured as what the daemon takes.
        self._pool = ProcessPoolExecutor(
            len(LANES), get_context("spawn"), initializer=os.nice, initargs=(5,)
        )

    @property
    def _left(self) -> float:
        return self._begun + self._load - time.monotonic()

    def run(self) -> None:
        stage, honest = self._stage, self._stage.honest
        warm = [self._pool.submit(time.sleep, 0.5) for _ in LANES]
        stage.start()
        honest.begin(random.Random(self._rng.random()))
        for each in warm:
            each.result()
        begun = time.monotonic()
        time.sleep(REST.seconds)
        self._begun = time.monotonic()
        self._windows.append(Window(REST, begun, self._begun, REST.run(None, self._rng, 0)))
        threads = [
            threading.Thread(target=self._lane, args=(lane, random.Random(self._rng.random())))
            for lane in (LANES if len(self._kinds) > 1 else [self._kinds[0].lane])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._pool.shutdown()
        self._end()

    # ------------------------------------------------------------ attacks

    def _lane(self, lane: str, rng: random.Random) -> None:
        ends = LAST_LIFE * self._load if lane == "host" and self._long else 0
        while True:
            with self._dealing:
                deck = self._decks.setdefault(lane, [])
                if not deck:  # each comes once before one comes again
                    deck += [kind for kind in self._kinds if kind.lane == lane]
                    rng.shuffle(deck)
                fitting = [kind for kind in deck if self._seconds(kind) <= self._left - ends]
                if not fitting:
                    return
                kind = fitting[0]
                deck.remove(kind)
                seconds = self._seconds(kind)
            self._attack(kind, random.Random(rng.random()), seconds)
            time.sleep(rng.uniform(2, 6) if lane == "host" else rng.uniform(0, 1))

    def _seconds(self, kind: Kind) -> float:
        # Attacks that last would keep others from their turn who restart the daemon.
        last_life = self._long and self._left < LAST_LIFE * self._load
        return (last_life and kind.lasting) or kind.seconds

    def _attack(self, kind: Kind, rng: random.Random, seconds: float) -> None:
        stage = self._stage
        life = stage.honest.gate.wait()
        begun = time.monotonic()
        try:
            if kind.lane in ELSEWHERE:
                report = self._pool.submit(kind.run, stage.doors, rng, seconds).result()
            else:
                report = kind.run(stage, rng, seconds)
        except Exception as error:
            report = Report("-", "-", [f"{type(error).__name__}: {str(error)[-300:]}"])
        undisturbed = life == stage.honest.gate.life
        if not undisturbed and kind.lane != "host":
            report.did, report.wrong = "(restarted meanwhile)", []
        if not stage.daemon.running and (kind.lane == "host" or stage.honest.gate.is_open):
            report.wrong.append("the daemon has ended by itself: " + stage.daemon.log[-1][-150:])
            stage.honest.gate.shut()
            try:
                stage.start()
            finally:
                stage.honest.gate.open()  # or all others would wait for ever
        elif undisturbed and not report.wrong:
            report.wrong += self._truth(kind, begun)
        self._windows.append(Window(kind, begun, time.monotonic(), report))
        told = "; ".join(report.wrong) or "good"
        print(f"{begun - self._begun:5.0f} s  {kind.name}: {report.did}: {told}", flush=True)

    def _truth(self, kind: Kind, begun: float) -> list[str]:
        """What is wrong with what ``status`` says."""
        wrong = []
        samples = self._stage.between(begun, time.monotonic())
        if sum(sample.status is None for sample in samples) > len(samples) / 2:
            wrong.append("status was mute")
        after = [sample for sample in samples if sample.at > begun + kind.within]
        if kind.names and after:
            told = [sample for sample in after if sample.tells(kind.names)]
            if not told:
                why = (after[-1].status or {}).get("why") or "all is good"
                wrong.append(f"status said nothing of {', '.join(kind.names)}, but {why}")
            if codes := {sample.healthz for sample in told if sample.failing} - {503}:
                wrong.append(f"/healthz was answered {codes}")
        return wrong

    # ------------------------------------------------------------ the end

    def _end(self) -> None:
        stage, honest = self._stage, self._stage.honest
        stage.apns_does(Hold())  # so that many are owed, and few are on disk
        time.sleep(0.8)
        honest.silent.set()
        print(f"{len(honest.owed_now())} phones are owed a push before the last restart")
        self.wrong += stage.stop()
        stage.apns_is_well()
        stage.start()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and honest.owed_now():
            time.sleep(0.3)
        print(f"status at the end: {stage.doors.status()['why'] or 'good'}")
        honest.end()
        self.wrong += stage.stop()

    def judge(self) -> None:
        """Once it has run; prints the table."""
        self._judge_log()
        self._judge_account()
        self._judge_memory()
        print(f"\n{'kind of attack':27}{'times':>6}{'p50 ms':>8}{'p99 ms':>8}  verdict")
        for name in sorted({window.kind.name for window in self._windows}):
            windows = [window for window in self._windows if window.kind.name == name]
            found = list(dict.fromkeys(text for w in windows for text in w.report.wrong))
            asked = [a for a in self._stage.honest.asked if any(w.touches(a) for w in windows)]
            times = [1000 * (each.ended - each.begun) for each in asked]
            cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
            if self._long and cuts[98] > P99:
                found.append(f"p99 over {P99:.0f} ms")
            figures = f"{len(windows):6}{cuts[49]:8.1f}{cuts[98]:8.1f}"
            print(f"{name:27}{figures}  {'; '.join(found) or 'good'}")
            print(f"    sent {windows[-1].report.sent}; the daemon: {windows[-1].report.did}")
            self.wrong += [f"{name}: {text}" for text in found]

    def _judge_account(self) -> None:
        stage, honest = self._stage, self._stage.honest
        answered, outcomes = dict(honest.ledger.answered), dict(honest.ledger.outcomes)
        stops = ", ".join(f"{seconds:.1f}" for seconds in stage.stops)
        print(f"honest notices: {answered}; mailboxes pushed: {outcomes}; stops of {stops} s")
        if owed := honest.owed_now():
            self.wrong.append(f"{len(owed)} phones got no push in {PATIENCE:.0f} s after a restart")
        if missing := PHONES - len(stage.honest_on_disk()):
            self.wrong.append(f"{missing} of {PHONES} honest phones are not registered")
        if refused := honest.ledger.refused():
            self.wrong.append(f"{len(refused)} notices found no phone, such as {refused[0]}")
        if honest.nameless:
            self.wrong.append(f"{honest.nameless} pushes name no mailbox of the phone's")
        if violations := stage.apns.violations:
            self.wrong.append(f"{len(violations)} breaks of HTTP/2: {sorted(set(violations))[:3]}")
        excused = [window for window in self._windows if window.kind.refuses]
        troubles = Counter(
            f"{each.door}: {each.trouble}; meanwhile: "
            + ", ".join(window.kind.name for window in self._windows if window.touches(each))
            for each in honest.asked
            if each.trouble and not any(window.touches(each, EXCUSED) for window in excused)
        )
        for told, count in troubles.most_common(5):
            self.wrong.append(f"{count} honest notices were refused, {told}")

    def _judge_log(self) -> None:
        log = self._stage.daemon.log
        stalls = [text for text in log if "reactor was blocked" in text]
        print(f"log: {len(log)} lines, {len(stalls)} of a blocked reactor")
        if broken := [text for text in log if "Traceback" in text]:
            self.wrong.append(f"{len(broken)} tracebacks in the log, such as {broken[0][:300]}")

    def _judge_memory(self) -> None:
        last = max(window.ended for window in self._windows)
        begun = max(start for start in self._stage.starts if start < last)
        least: dict[int, float] = {}
        for sample in self._stage.between(begun + WARM_UP, last):
            slot = int(sample.at / SLOT)
            least[slot] = min(least.get(slot, 1e9), sample.memory / 2**20)
        if len(least) >= 4:
            slope = (
                statistics.linear_regression(list(least), list(least.values())).slope * 60 / SLOT
            )
            print(f"memory: {slope:+.2f} MiB a minute")
            if self._long and slope > SLOPE:
                self.wrong.append(f"memory grows by {slope:.2f} MiB a minute")


def main() -> None:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.siege")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--only", action="append", default=[], choices=[k.name for k in KINDS])
    options = parser.parse_args()
    print(f"seed {options.seed}; {options.seconds:.0f} s, {len(KINDS)} kinds", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xaps-siege-") as folder:
        stage = Stage(Path(folder))
        try:
            only = [kind for kind in KINDS if kind.name in options.only]
            siege = Siege(stage, random.Random(options.seed), options.seconds, only)
            siege.run()
            siege.judge()
        finally:
            stage.close()
    print(f"it took {time.monotonic() - started:.0f} s")
    if siege.wrong:
        print(f"FAILED, seed {options.seed}:", *dict.fromkeys(siege.wrong), sep="\n  ")
        sys.exit(1)
    print("it held")


if __name__ == "__main__":
    main()
