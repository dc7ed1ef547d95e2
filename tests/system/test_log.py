"""Log lines."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TextIO

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import Factory
from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from twisted.python.log import LogPublisher as LegacyPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests import examples
from xaps.system.console import one_line
from xaps.system.log import LineObserver, print_error

LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")


def failure(error: Exception) -> Failure:
    try:
        raise error
    except Exception:
        return Failure()


class LogTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.stream = io.StringIO()
        self.use(LineObserver("debug", self.stream, {}))

    def use(self, new: ILogObserver) -> None:
        self.observer = new
        self.log = Logger("xaps.test", observer=LogPublisher(new))
        self.legacy = LegacyPublisher(
            observerPublisher=(publisher := LogPublisher(new)), publishPublisher=publisher
        )

    def at(self, level: str) -> None:
        self.stream = io.StringIO()
        self.use(LineObserver(level, self.stream, {}))

    def lines(self) -> list[str]:
        """What was written, without the times."""
        text = self.stream.getvalue()
        self.assertTrue(not text or text.endswith("\n"))
        return [line.partition(" ")[2] for line in text.split("\n")[:-1]]


class LineTests(LogTestCase):
    def test_it_is_an_observer(self) -> None:
        self.assertTrue(verifyObject(ILogObserver, self.observer))

    def test_a_line_has_time_level_and_message(self) -> None:
        self.log.warn("{user} has {n} phones", user="alice", n=2)
        self.assertRegex(
            self.stream.getvalue(),
            r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[warn\] alice has 2 phones\n\Z",
        )

    def test_the_time_is_that_of_the_event(self) -> None:
        self.observer({"log_time": 0.0, "log_format": "x", "log_level": LogLevel.info})
        self.assertRegex(self.stream.getvalue(), r"\A(1970-01-01|1969-12-31)T")

    def test_an_event_without_time_or_level_is_written(self) -> None:
        self.observer({"log_format": "x"})
        self.assertEqual(self.lines(), ["[info] x"])

    def test_an_event_that_says_nothing_is_left_out(self) -> None:
        self.observer({"log_level": LogLevel.info})
        self.log.info("")
        self.assertEqual(self.stream.getvalue(), "")

    def test_a_message_with_line_ends_and_control_characters_stays_one_line(self) -> None:
        self.log.info("{text}", text="a\nb\r\n\t\x00\x1b[31m\x7f\x85\u2028\u202e\ud800é✉")
        self.assertEqual(
            self.lines(),
            ["[info] a\\nb\\r\\n\\t\\x00\\x1b[31m\\x7f\\x85\\u2028\\u202e\\ud800é✉"],
        )

    def test_a_forged_line_is_not_taken_for_one(self) -> None:
        self.log.info("user {user}", user="x\n2026-01-01T00:00:00+0000 [critical] on fire")
        self.assertEqual(len(self.lines()), 1)

    def test_a_long_message_is_cut_in_the_middle(self) -> None:
        self.log.info("{text}", text=f"start{'x' * 100000}end")
        (line,) = self.lines()
        self.assertRegex(line, r"^\[info\] startx+ \.\.\. \(cut here\) \.\.\. x+end$")
        self.assertLess(len(line), 16100)
        self.log.info("{text}", text="\x00" * 100000)
        self.assertLess(len(self.lines()[1]), 16100)

    def test_a_message_that_is_not_too_long_is_whole(self) -> None:
        self.log.info("{text}", text="x" * 16000)
        self.assertEqual(self.lines(), ["[info] " + "x" * 16000])

    def test_what_cannot_be_formatted_is_told_in_one_line(self) -> None:
        self.log.info("{missing}", text="a\nb")
        (line,) = self.lines()
        self.assertIn("Unable to format event", line)

    def test_each_line_is_one_write(self) -> None:
        writes: list[str] = []

        class Stream(io.StringIO):
            def write(self, text: str) -> int:
                writes.append(text)
                return len(text)

        self.use(LineObserver("debug", Stream(), {}))
        self.log.info("x")
        self.assertEqual([write.partition("] ")[2] for write in writes], ["x\n"])

    def test_a_stream_in_another_encoding_gets_escapes(self) -> None:
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
        self.use(LineObserver("debug", stream, {}))
        self.log.info("é✉")
        self.assertTrue(raw.getvalue().endswith(b"[info] \\xe9\\u2709\n"))

    @settings(max_examples=examples(100), deadline=None)
    @given(st.text(), st.text())
    def test_any_text_is_one_line_that_prints(self, text: str, error: str) -> None:
        self.at("debug")
        self.log.info("{text}", text=text)
        self.log.failure("{text}", failure(ValueError(error)), text=text)
        self.assertTrue(one_line(text).isprintable())
        written = self.stream.getvalue()
        self.assertEqual(written.count("\n"), 2 if text else 1)
        self.assertEqual(len(written.splitlines()), written.count("\n"))


class LevelTests(LogTestCase):
    SHOWN = {"debug": 5, "trace": 5, "info": 4, "warn": 3, "error": 2, "fatal": 1, "panic": 1}

    def test_each_loglevel_shows_what_is_at_least_as_grave(self) -> None:
        for level in LEVELS:
            self.at(level)
            for name in ("critical", "error", "warn", "info", "debug"):
                getattr(self.log, name)("it is {name}", name=name)
            expected = [
                f"[{name}] it is {name}" for name in ("critical", "error", "warn", "info", "debug")
            ]
            self.assertEqual(self.lines(), expected[: self.SHOWN[level]], level)

    def test_an_unknown_loglevel_is_an_error(self) -> None:
        with self.assertRaises(KeyError):
            LineObserver("loud", self.stream, {})

    def test_twisteds_remarks_on_factories_and_ports_are_for_trace(self) -> None:
        for level, shown in (("trace", 5), ("debug", 0), ("info", 0)):
            self.at(level)
            factory = Factory()
            factory_log = Logger("twisted.internet.protocol.Factory", observer=self.observer)
            factory_log.info("Starting factory {factory!r}", factory=factory)
            factory_log.info("Stopping factory {factory!r}", factory=factory)
            self.legacy.msg("HTTPFactory (TLS) starting on 11619")
            self.legacy.msg("XFactory starting on '/run/xapsd/xapsd.sock'")
            self.legacy.msg("(TCP Port 11619 Closed)")
            self.assertEqual(len(self.lines()), shown * (level == "trace"), level)

    def test_the_factory_remarks_are_those_of_twisted(self) -> None:
        """What the test above feeds by hand is what Twisted says."""
        factory = Factory()
        events: list[str] = []

        @implementer(ILogObserver)
        def collect(event: LogEvent) -> None:
            events.append(event["log_format"])
            self.observer(event)

        globalLogPublisher.addObserver(collect)
        try:
            factory.doStart()
            factory.doStop()
        finally:
            globalLogPublisher.removeObserver(collect)
        self.assertEqual(len(events), 2)
        self.assertEqual(self.lines(), [])

    def test_our_own_remarks_on_factories_and_ports_are_shown(self) -> None:
        self.log.info("HTTP starting on {port}", port=11619)
        self.log.warn("Starting factory {x}", x=1)
        self.legacy.msg("Received SIGTERM, shutting down.")
        self.assertEqual(len(self.lines()), 3)


class FailureTests(LogTestCase):
    def test_a_traceback_is_folded_into_the_line(self) -> None:
        self.log.failure("While {doing}", failure(ValueError("a\nb")), doing="working")
        (line,) = self.lines()
        self.assertRegex(
            line,
            r"^\[critical\] While working \| Traceback \(most recent call last\): \| .*"
            r"builtins\.ValueError: a \| b$",
        )
        self.assertIn("test_log.py", line)

    def test_a_failure_whose_traceback_cannot_be_had_is_told(self) -> None:
        self.log.failure("While working", failure=object())  # type: ignore[arg-type]
        self.assertEqual(
            self.lines(), ["[critical] While working | (no traceback: AttributeError)"]
        )

    def test_legacy_errors_are_folded(self) -> None:
        # What twisted.python.log.err() does.
        self.legacy.msg(failure=failure(ValueError("x")), why="While working", isError=1)
        (line,) = self.lines()
        self.assertRegex(
            line,
            r"^\[critical\] While working \| Traceback \(most recent call last\): \| .*"
            r"builtins\.ValueError: x$",
        )

    def test_legacy_messages_are_lines(self) -> None:
        self.legacy.msg("a\nb", "c")
        self.legacy.msg(format="%(n)d phones", n=7)
        self.legacy.msg("wrong", isError=True)
        self.assertEqual(self.lines(), ["[info] a\\nb c", "[info] 7 phones", "[critical] wrong"])


class JournalTests(LogTestCase):
    def opened(self) -> tuple[TextIO, str]:
        """A file, and how ``JOURNAL_STREAM`` names it."""
        path = Path(self.mktemp())
        file = path.open("w+")
        self.addCleanup(file.close)
        status = os.fstat(file.fileno())
        return file, f"{status.st_dev}:{status.st_ino}"

    def written(self, environ: dict[str, str], file: TextIO) -> str:
        self.use(LineObserver("debug", file, environ))
        for name in ("critical", "error", "warn", "info", "debug"):
            getattr(self.log, name)("it is {name}", name=name)
        file.seek(0)
        return file.read()

    def test_the_journal_gets_priorities_and_no_times(self) -> None:
        file, name = self.opened()
        self.assertEqual(
            self.written({"JOURNAL_STREAM": name}, file),
            "<2>it is critical\n<3>it is error\n<4>it is warn\n<6>it is info\n<7>it is debug\n",
        )

    def test_errors_before_logging_has_begun_have_their_priority_on_each_line(self) -> None:
        file, name = self.opened()
        print_error("a: 1\nb: 2", file, {"JOURNAL_STREAM": name})
        print_error("to a file", file, {})
        file.seek(0)
        self.assertEqual(file.read(), "<3>a: 1\n<3>b: 2\nto a file\n")

    def test_a_file_gets_times_although_the_journal_listens_elsewhere(self) -> None:
        file, name = self.opened()
        _, other = self.opened()
        for value in (other, "", f"{name} ", name.partition(":")[0], "x:y"):
            file.seek(0)
            file.truncate()
            text = self.written({"JOURNAL_STREAM": value}, file)
            self.assertEqual(len(re.findall(r"(?m)^\d{4}-.* \[", text)), 5, value)

    def test_what_is_no_file_is_not_the_journal(self) -> None:
        self.use(LineObserver("debug", self.stream, {"JOURNAL_STREAM": "1:1"}))
        self.log.info("x")
        self.assertEqual(self.lines(), ["[info] x"])
