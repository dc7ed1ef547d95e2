"""What the plugin of xaps makes Dovecot say, and that an IMAP session goes on whatever the daemon
does. What is to be answered is the daemon's business: here, whatever a test says."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.intake.case import bytewise
from tests.peers.child import PATIENCE
from tests.peers.dovecot import Dovecot, registrations
from tests.peers.imapserver import ImapSession

LINES = (
    b'* XAPPLEPUSHSERVICE "mailbox" "INBOX"\r\n'
    b'* XAPPLEPUSHSERVICE "aps-version" "2" "aps-topic" "com.apple.mail.x"\r\n'
)
ANSWER = LINES + b"OK Done\r\n"
UNAVAILABLE = b"a NO [UNAVAILABLE] Push is not available now\r\n"


class Answerer:
    """Listens on a UNIX socket that everybody may use, until `close`.

    :param answer: makes what each connection is sent, in pieces, when its line has come; the
        connection is closed after the last.
    """

    def __init__(self, answer: Callable[[], Iterable[bytes]]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="xaps-"))
        self.folder.chmod(0o755)
        self.path = self.folder / "imap.sock"
        self.answer = answer
        self.lines: list[bytes] = []
        self.ended = threading.Event()
        """The other side has closed a connection while it was still sent something."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self.path.chmod(0o666)
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> None:
        """Nobody listens any more, and the file is still there."""
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                self.lines.append(stream.readline())
                try:
                    for piece in self.answer():
                        connection.sendall(piece)
                except OSError:
                    self.ended.set()


class PluginCase(SynchronousTestCase):
    """Dovecot with the plugin; `answerer` stands where the daemon would."""

    def start(self, *pieces: bytes) -> Dovecot:
        self.answerer = Answerer(lambda: pieces)
        self.addCleanup(self.answerer.close)
        dovecot = Dovecot(registrations(self.answerer.path))
        self.addCleanup(dovecot.stop)
        return dovecot

    def session(self, dovecot: Dovecot) -> ImapSession:
        session = dovecot.login("alice")
        self.addCleanup(session.shutdown)
        return session

    def talk(self, session: ImapSession, said: bytes, until: bytes) -> bytes:
        """Send it, and read until the line that begins with `until` has come; returns the lines,
        without the times that Dovecot puts at the end of a command's answer."""
        session.send(said)
        heard = b""
        while not (line := session.readline()).startswith(until):
            self.assertNotEqual(line, b"", heard)
            heard += line
        return heard + re.sub(rb" \([0-9. +]+ secs\)\.\r\n$", b"\r\n", line)

    def register(self, session: ImapSession) -> bytes:
        """The answer to a registration, when the session has answered something else too."""
        heard = self.talk(session, b"a XAPPLEPUSHSERVICE aps-version 2\r\n", b"a ")
        self.assertEqual(self.talk(session, b"b NOOP\r\n", b"b "), b"b OK NOOP completed\r\n")
        return heard


class AnswerTests(PluginCase):
    def test_the_capability_is_offered_once_before_login_and_after(self) -> None:
        dovecot = self.start()
        before = ImapSession("127.0.0.1", dovecot.imap_port)
        self.addCleanup(before.shutdown)
        for session in (before, self.session(dovecot)):
            said = self.talk(session, b"a CAPABILITY\r\n", b"a ")
            self.assertEqual(said.split().count(b"XAPPLEPUSHSERVICE"), 1, said)

    def test_the_daemon_is_told_user_and_arguments_and_its_lines_are_printed(self) -> None:
        session = self.session(self.start(ANSWER))
        said = b'a XAPPLEPUSHSERVICE aps-version 2 "b\\"c" NIL (INBOX "x y" ()) ""\r\n'
        self.assertEqual(self.talk(session, said, b"a "), LINES + b"a OK Done\r\n")
        line = b'IMAP\t1\talice\taps-version 2 "b\\"c" NIL (INBOX "x y" ()) ""\n'
        self.assertEqual(self.answerer.lines, [line])

    def test_a_refusal_is_printed_too_and_is_no_end(self) -> None:
        session = self.session(self.start(b"BAD aps-account-id is missing\r\n"))
        for tag in (b"a", b"b"):
            heard = self.talk(session, tag + b" XAPPLEPUSHSERVICE\r\n", tag)
            self.assertEqual(heard, tag + b" BAD aps-account-id is missing\r\n")
        self.assertEqual(self.answerer.lines, [b"IMAP\t1\talice\t\n"] * 2)

    def test_pipelined_commands_are_answered_in_order(self) -> None:
        session = self.session(self.start(ANSWER))
        said = b"".join(
            b"%d %s\r\n" % (number, command)
            for number, command in enumerate(
                [
                    b"NOOP",
                    b"XAPPLEPUSHSERVICE a b",
                    b"SELECT INBOX",
                    b"XAPPLEPUSHSERVICE c",
                    b"NOOP",
                ]
            )
        )
        heard = self.talk(session, said, b"4 ")
        self.assertEqual(re.findall(rb"(?m)^(\d OK)", heard), [b"%d OK" % n for n in range(5)])
        self.assertEqual(heard.count(LINES), 2)

    def test_literals_reach_the_daemon(self) -> None:
        session = self.session(self.start(ANSWER))
        self.talk(session, b"a XAPPLEPUSHSERVICE mailboxes ({6}\r\n", b"+")
        heard = self.talk(session, b"\xc3\xa4\t\r\n' {2+}\r\nno) (x)\r\n", b"a ")
        self.assertEqual(heard, LINES + b"a OK Done\r\n")
        line = b'IMAP\t1\talice\tmailboxes ("\xc3\xa4\x01t\x01r\x01n\\\'" "no") (x)\n'
        self.assertEqual(self.answerer.lines, [line])

    def test_what_dovecot_refuses_does_not_reach_the_daemon_and_is_no_end(self) -> None:
        session = self.session(self.start(ANSWER))
        self.talk(session, b"a XAPPLEPUSHSERVICE {2}\r\n", b"+")
        self.assertIn(b"Missing ')'", self.talk(session, b"no (x\r\n", b"a "))
        for said in (b"\xc3\xa4 {9}", b"x" * 70_000, b'"\0"'):
            self.assertIn(b"BAD", self.talk(session, b"b XAPPLEPUSHSERVICE %s\r\n" % said, b"b "))
        self.assertEqual(self.answerer.lines, [])
        self.assertEqual(self.register(session), LINES + b"a OK Done\r\n")

    def test_an_answer_that_comes_byte_by_byte_is_printed(self) -> None:
        session = self.session(self.start(*bytewise(ANSWER)))
        self.assertEqual(self.register(session), LINES + b"a OK Done\r\n")

    def test_the_longest_answer_is_printed(self) -> None:
        line = b"* XAPPLEPUSHSERVICE " + b"x" * 42 + b"\r\n"
        session = self.session(self.start(line * 1023, b"OK " + b"y" * 59 + b"\r\n"))
        self.assertEqual(self.register(session), line * 1023 + b"a OK " + b"y" * 59 + b"\r\n")


class FaultTests(PluginCase):
    """Each time the session answers something else right afterwards."""

    def assert_told(self, dovecot: Dovecot, why: str) -> None:
        self.assertIn(
            f"xapsd ({self.answerer.path}) did not register a phone: {why}",
            dovecot.wait_for_log("did not register a phone"),
        )

    def test_a_daemon_that_is_down(self) -> None:
        dovecot = self.start()
        session = self.session(dovecot)
        self.answerer.stop()
        self.assertEqual(self.register(session), UNAVAILABLE)
        self.assert_told(dovecot, "connect() failed: Connection refused")
        self.answerer.path.unlink()
        self.assertEqual(self.register(session), UNAVAILABLE)
        self.assertIn("No such file", dovecot.wait_for_log("No such file"))

    def test_a_daemon_that_hangs_is_not_asked_again_at_once(self) -> None:
        dovecot = self.start()
        hung = threading.Event()
        self.addCleanup(hung.set)
        self.answerer.answer = lambda: [b"*"] if hung.wait() else []
        session = self.session(dovecot)
        # The second is right behind the first: it may not take as long once more.
        said = b"a XAPPLEPUSHSERVICE x\r\nb XAPPLEPUSHSERVICE y\r\n"
        self.assertEqual(self.talk(session, said, b"a "), UNAVAILABLE)
        self.assertEqual(self.talk(session, b"", b"b "), b"b" + UNAVAILABLE[1:])
        self.assertEqual(self.register(session), UNAVAILABLE)
        self.assert_told(dovecot, "no answer in two seconds")
        log = dovecot.wait_for_log("left in peace for ten seconds", 2)
        self.assertEqual(log.count("did not register a phone"), 3, log)
        self.assertEqual(log.count("no answer in two seconds"), 1, log)

    def test_a_daemon_that_answers_byte_by_byte_without_an_end(self) -> None:
        dovecot = self.start()
        self.answerer.answer = lambda: slowly(b"* ")
        self.assertEqual(self.register(self.session(dovecot)), UNAVAILABLE)
        self.assert_told(dovecot, "no answer in two seconds")
        self.assertTrue(self.answerer.ended.wait(PATIENCE), "the connection is still open")

    def test_answers_that_no_client_may_see(self) -> None:
        dovecot = self.start()
        session = self.session(dovecot)
        for answer in (
            b"HTTP/1.1 200 OK\r\n",
            b"* BYE\r\nOK Done\r\n",
            b"OK Done\r\nOK Done\r\n",
            b"OK\r\n",
            b"\r\n",
            b"+ go on\r\n",
            b"OK \0\r\n",
            b"OK \xc3\xa4\r\n",
            b"\xff" * 100 + b"\n",
        ):
            self.answerer.answer = partial(iter, [answer])
            self.assertEqual(self.register(session), UNAVAILABLE, answer)
        self.assert_told(dovecot, "the answer is garbage")

    def test_answers_without_an_end(self) -> None:
        dovecot = self.start()
        session = self.session(dovecot)
        for answer in (b"", LINES, b"OK Done", LINES[:-1]):
            self.answerer.answer = partial(iter, [answer])
            self.assertEqual(self.register(session), UNAVAILABLE, answer)
        self.assert_told(dovecot, "the answer has no end")

    def test_answers_that_are_too_long(self) -> None:
        dovecot = self.start()
        session = self.session(dovecot)
        for piece in (b"x" * 1024, LINES, b"\0" * 1024, b"\r\n"):
            self.answerer.answer = partial(repeat, piece)
            heard = self.register(session)
            self.assertEqual(heard, UNAVAILABLE, piece)
        self.assert_told(dovecot, "the answer is too long")


def slowly(piece: bytes) -> Iterator[bytes]:
    for one in repeat(piece):
        yield one
        time.sleep(0.01)
