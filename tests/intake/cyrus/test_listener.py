"""The socket that Cyrus sends to."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from xaps.intake.connections import REST
from xaps.intake.cyrus.drain import DATAGRAM, FOREIGN, HEADER, LOST
from xaps.intake.cyrus.listener import (
    HIGH_WATER,
    MAX_RETRIED,
    ROOM,
    SLICE,
    STOP_PATIENCE,
    WINDOW,
    CyrusListener,
)
from xaps.intake.cyrus.names import CyrusSettings
from xaps.listen.unix import ListenError
from xaps.model import Notice, Refused, Registration, RegistrationKey


class FakeReactor(Clock):
    """Starts no processes; the test plays their part."""

    def __init__(self) -> None:
        super().__init__()
        self.drains: list[FakeDrain] = []

    def spawnProcess(
        self,
        protocol: ProcessProtocol,
        executable: str,
        arguments: list[bytes],
        env: None,
        childFDs: dict[int, int | str],
    ) -> None:
        assert env is None
        assert (childFDs[0], childFDs[1], childFDs[2]) == ("w", "r", "r")
        # Python, isolated; the program; the socket's number
        assert arguments[:3] == [executable.encode(), b"-I", b"-S"]
        assert arguments[4] == b"3"
        number = childFDs[3]
        assert isinstance(number, int)
        self.drains.append(FakeDrain(protocol, number, [int(each) for each in arguments[5:]]))

    def turn(self) -> None:
        """One turn of a reactor: what comes up meanwhile is for the next one."""
        for call in [call for call in self.calls if call.getTime() <= self.rightNow]:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class FakeDrain:
    """The draining process, as the listener sees it; it holds on to the socket by itself."""

    def __init__(self, protocol: ProcessProtocol, number: int, options: list[int]) -> None:
        self.protocol = protocol
        self.socket = socket.socket(fileno=os.dup(number))
        self.options = options
        self.is_finishing = False
        self.is_paused = False
        self.signals: list[str] = []
        self.has_ended = False
        protocol.makeConnection(self)

    # what the listener may call
    def closeStdin(self) -> None:
        self.is_finishing = True

    def signalProcess(self, signal: str) -> None:
        if self.has_ended:
            raise ProcessExitedAlready
        self.signals.append(signal)

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.is_paused = False

    # what the test calls
    def hand_on(self, *datagrams: bytes) -> None:
        self.frames(*[(DATAGRAM, each) for each in datagrams])

    def frames(self, *frames: tuple[bytes, bytes]) -> None:
        self.protocol.outReceived(b"".join(frame(*each) for each in frames))

    def end(self, reason: Exception | None = None) -> None:
        failure = Failure(reason or ProcessDone(0))
        self.socket.close()
        self.protocol.processExited(failure)
        # While it is paused, Twisted does not come to the end of the pipe.
        if not self.is_paused:
            self.protocol.processEnded(failure)


def frame(kind: bytes, content: bytes) -> bytes:
    return HEADER.pack(1 + len(content), kind) + content


class FakeHandler:
    """Remembers what it is given; answers at once, or when the test says so."""

    def __init__(self) -> None:
        self.got: list[Registration | Notice] = []
        self.no_credential = False
        self.answer: Callable[[], Deferred[Any]] = lambda: succeed(None)

    def topic(self, user: str) -> str:
        if self.no_credential:
            raise Refused("there is no certificate", temporary=True)
        return "com.apple.mail.test"

    def register(self, registration: Registration) -> Deferred[None]:
        self.got.append(registration)
        return self.answer()

    def notify(self, notice: Notice) -> int:
        self.got.append(notice)
        failures: list[Failure] = []
        self.answer().addErrback(failures.append)
        for failure in failures:
            failure.raiseException()
        return 0


def datagram(message: object) -> bytes:
    return b"external\0EVENT\0\0\0\0000\0" + json.dumps(message).encode() + b"\0"


def mail(folder: str = "", acl: str = "alice\tlrs\t", owner: str = "alice") -> bytes:
    path = f"user.{owner}" + (f".{folder}" if folder else "")
    return datagram(
        {
            "event": "MessageNew",
            "uri": f"imap://mail.example.test/{path};UIDVALIDITY=1/;UID=1",
            "vnd.cmu.mailboxACL": acl,
        }
    )


def registrations(number: int) -> list[bytes]:
    """Of a user each."""
    return [register(f"user{each}", "INBOX") for each in range(number)]


def register(user: str, *mailboxes: str) -> bytes:
    return datagram(
        {
            "event": "ApplePushService",
            "user": user,
            "apsVersion": 2,
            "apsAccountId": "A",
            "apsDeviceToken": "abcd",
            "apsSubtopic": "com.apple.mobilemail",
            "mailboxes": list(mailboxes),
        }
    )


class CyrusListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        # Not trial's own folder, whose path may be longer than a socket's may be.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "cyrus.sock"
        self.reactor = FakeReactor()
        self.handler = FakeHandler()
        self.now = 1795490400.0

    def listener(self, **options: Any) -> CyrusListener:
        return CyrusListener(
            self.reactor, self.path, CyrusSettings(), wall=lambda: self.now, **options
        )

    def start(
        self,
        *,
        group: str | None = None,
        user: str | None = None,
        known: tuple[Registration, ...] = (),
    ) -> CyrusListener:
        listener = self.listener(group=group, user=user)
        listener.start()
        listener.remember(known)
        listener.begin(self.handler)
        self.addCleanup(self.stop, listener)
        return listener

    @property
    def drain(self) -> FakeDrain:
        return self.reactor.drains[-1]

    def stop(self, listener: CyrusListener) -> None:
        """What every test ends with: nothing is left behind."""
        stopped = listener.stop()
        if not stopped.called:
            self.drain.end()
            self.work()
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def work(self) -> None:
        """Do what is due now."""
        self.reactor.advance(0)

    def refuse_for_now(self) -> Deferred[Any]:
        return fail(Refused("the disk is full", temporary=True))

    def got_after(self, *datagrams: bytes) -> list[Registration | Notice]:
        self.drain.hand_on(*datagrams)
        self.work()
        return self.handler.got

    # ------------------------------------------------------------ what comes in

    def test_a_registration_has_the_topic_that_cyrus_tells_phones(self) -> None:
        theirs = "com.apple.mail.theirs"
        for topic, expected in ((theirs, theirs), (None, "com.apple.mail.test")):
            listener = self.listener(topic=topic)
            listener.start()
            listener.begin(self.handler)
            (got,) = self.got_after(register("alice", "INBOX"))
            assert isinstance(got, Registration)
            self.assertEqual(got.topic, expected)
            self.handler.got.clear()
            self.stop(listener)

    def test_where_nobody_knows_the_topic_it_is_registered_all_the_same(self) -> None:
        self.handler.no_credential = True
        self.start()
        (got,) = self.got_after(register("alice", "INBOX"))
        assert isinstance(got, Registration)
        self.assertIsNone(got.topic)

    def test_registrations_and_notices_are_handed_over_in_their_order(self) -> None:
        self.start()
        first, *rest = self.got_after(register("alice", "INBOX"), mail(), mail("Notes"))
        assert isinstance(first, Registration)
        self.assertEqual(first.key, RegistrationKey("alice", "A", "abcd"))
        expected = [Notice("alice", "INBOX", True), Notice("alice", "INBOX.Notes", True)]
        self.assertEqual(rest, expected)

    def test_a_notice_waits_until_the_users_registration_before_it_is_stored(self) -> None:
        stored: list[Deferred[None]] = []

        def store() -> Deferred[None]:
            stored.append(Deferred())
            return stored[-1]

        listener = self.start()
        self.handler.answer = store
        self.got_after(register("alice", "INBOX"), mail(owner="bob", acl="bob\tr\t"), mail())
        self.got_after(register("alice", "INBOX"), mail("Notes"))
        self.assertEqual([type(got) for got in self.handler.got], [Registration, Notice])
        self.handler.answer = lambda: succeed(None)
        stored[0].callback(None)
        stored[1].callback(None)
        self.work()
        order = [got.mailbox for got in self.handler.got[2:] if isinstance(got, Notice)]
        self.assertEqual(order, ["INBOX", "INBOX.Notes"])
        self.assertEqual(len(self.handler.got), 5)
        self.got_after(mail())
        self.assertEqual(len(self.handler.got), 6)
        self.assertEqual(listener._registering, {})

    def test_a_window_of_registrations_of_one_user_that_are_refused_at_once_stalls_nothing(
        self,
    ) -> None:
        stored: Deferred[None] = Deferred()
        listener = self.start()
        self.handler.answer = lambda: stored
        self.got_after(*[register("alice", f"Folder {number}") for number in range(WINDOW + 10)])
        self.assertEqual(len(self.handler.got), 1)
        self.handler.answer = self.refuse_for_now
        stored.callback(None)
        self.work()
        self.assertEqual(len(self.handler.got), WINDOW + 10)
        self.assertEqual(listener._open, 0)
        self.assertEqual(listener._registering, {})

    def test_notices_do_not_wait_for_a_registration_that_cannot_be_stored(self) -> None:
        self.start()
        self.handler.answer = self.refuse_for_now
        self.got_after(register("alice", "INBOX"))
        self.handler.answer = lambda: succeed(None)
        self.assertEqual(self.got_after(mail())[1:], [Notice("alice", "INBOX", True)])
        self.reactor.advance(1)
        self.assertIsInstance(self.handler.got[-1], Registration)

    def test_frames_may_come_in_any_pieces(self) -> None:
        self.start()
        frames = b"".join(frame(DATAGRAM, each) for each in (mail(), register("bob"), mail("x")))
        for index in range(len(frames)):
            self.drain.protocol.outReceived(frames[index : index + 1])
        self.work()
        self.assertEqual(len(self.handler.got), 3)

    def test_a_registration_is_dated_by_the_time_of_day_at_which_it_came(self) -> None:
        self.start()
        self.handler.answer = self.refuse_for_now
        self.got_after(register("alice", "INBOX"))
        self.handler.answer = lambda: succeed(None)
        self.now += 0.5
        self.got_after(register("alice", "Notes"))
        self.now += 0.5
        self.reactor.advance(1)
        # The first one, which is tried again, must not look newer than the second.
        said = [
            (got.mailboxes, got.registered_at - 1795490400.0)
            for got in self.handler.got
            if isinstance(got, Registration)
        ]
        old, new = (("INBOX",), 0.0), (("Notes",), 0.5)
        self.assertEqual(said, [old, new, old])

    def test_users_who_registered_a_mailbox_of_others_are_told(self) -> None:
        key = RegistrationKey("carol", "A", "ef")
        self.start(known=(Registration(key, ("user.alice.Notes",), 0.0),))
        event = mail("Notes", "bob\tlr\tcarol\tlr\t")
        told = self.got_after(register("bob", "user.alice.Notes"), event)[1:]
        expected = [Notice(user, "user.alice.Notes", True) for user in ("carol", "bob")]
        self.assertEqual(told, expected)

    def test_what_is_skipped_or_refused_does_not_stop_the_rest(self) -> None:
        self.start()
        with capturedLogs() as logs:
            got = self.got_after(b"garbage", datagram({"event": "MailboxModseq"}), b"x", mail())
        self.assertEqual(got, [Notice("alice", "INBOX", True)])
        said = [log["reason"] for log in logs]
        cut_off = "the datagram is cut off"
        self.assertEqual(said, [cut_off, 'event "MailboxModseq"', cut_off])

    def test_refused_datagrams_are_complained_of_once_a_minute(self) -> None:
        self.start()
        self.got_after(b"garbage", b"garbage", b"garbage")
        self.reactor.advance(59)
        with capturedLogs() as logs:
            self.got_after(b"garbage")
            self.reactor.advance(1)
            self.got_after(b"garbage")
        levels = [log["log_level"] for log in logs]
        self.assertEqual(levels, [LogLevel.debug, LogLevel.warn])
        self.assertEqual(logs[1]["untold"], 3)

    def test_others_have_their_turn_between_two_slices(self) -> None:
        self.start()
        self.drain.hand_on(*[mail()] * (2 * SLICE + 1))
        for expected in (SLICE, 2 * SLICE, 2 * SLICE + 1):
            self.reactor.turn()
            self.assertEqual(len(self.handler.got), expected)

    def test_while_pushes_are_late_it_is_a_tenth_of_the_time(self) -> None:
        listener, notify = self.listener(), self.handler.notify

        def slowly(notice: Notice) -> int:
            self.reactor.rightNow += 0.001
            return notify(notice)

        self.patch(self.handler, "notify", slowly)
        listener.start()
        late = [True]
        listener.begin(self.handler, lambda: late[0])
        self.addCleanup(self.stop, listener)
        self.drain.hand_on(*[mail()] * (4 * SLICE))
        began = self.reactor.seconds()
        while len(self.handler.got) < 3 * SLICE:
            self.reactor.rightNow += 0.001
            self.reactor.turn()
        spent = self.reactor.seconds() - began
        self.assertEqual(round(spent / (0.001 * SLICE)), 3 + 2 * REST)
        late[0] = False
        self.reactor.turn()
        self.assertEqual(len(self.handler.got), 4 * SLICE)

    def test_no_more_is_taken_over_than_can_be_worked_off_soon(self) -> None:
        self.start()
        count = HIGH_WATER
        self.drain.hand_on(*[mail()] * count)
        self.assertTrue(self.drain.is_paused)
        self.reactor.turn()
        self.assertTrue(self.drain.is_paused)
        self.work()
        self.assertFalse(self.drain.is_paused)
        self.got_after(*[mail()] * (count // 2))
        self.assertFalse(self.drain.is_paused)
        self.assertEqual(len(self.handler.got), count + count // 2)

    # ------------------------------------------------------------ before the registry is open

    def test_what_comes_in_before_it_can_be_worked_off_is_kept(self) -> None:
        listener = self.listener()
        listener.start()
        self.addCleanup(self.stop, listener)
        self.assertEqual(self.got_after(mail(), mail("Notes")), [])
        count = HIGH_WATER
        self.drain.hand_on(*[mail()] * count)
        self.assertTrue(self.drain.is_paused)
        listener.begin(self.handler)
        self.work()
        self.assertEqual(len(self.handler.got), 2 + count)
        self.assertFalse(self.drain.is_paused)

    def test_a_stop_before_that_ends_the_drain_all_the_same(self) -> None:
        listener = self.listener()
        listener.start()
        count = HIGH_WATER
        self.drain.hand_on(*[mail()] * count)
        stopped = listener.stop()
        self.work()
        self.assertFalse(self.drain.is_paused)
        self.drain.hand_on(*[mail()] * count)
        self.work()
        self.assertFalse(self.drain.is_paused)
        self.drain.end()
        self.work()
        self.successResultOf(stopped)
        self.assertEqual(self.handler.got, [])

    # ------------------------------------------------------------ a slow or failing registry

    def test_no_more_than_a_window_waits_for_the_registry(self) -> None:
        waiting: list[Deferred[None]] = []

        def answer() -> Deferred[None]:
            waiting.append(Deferred())
            return waiting[-1]

        self.handler.answer = answer
        self.start()
        self.got_after(*registrations(WINDOW + 5))
        self.assertEqual(len(self.handler.got), WINDOW)
        waiting[3].callback(None)
        self.work()
        self.assertEqual(len(self.handler.got), WINDOW + 1)
        for each in waiting[:3] + waiting[4:]:
            each.callback(None)
        self.work()
        self.assertEqual(len(self.handler.got), WINDOW + 5)
        for each in waiting[WINDOW + 1 :]:
            each.callback(None)

    def test_a_temporary_refusal_is_tried_again_later_and_later(self) -> None:
        self.start()
        self.handler.answer = self.refuse_for_now
        self.got_after(mail())
        for number, seconds in enumerate((1, 1, 2, 4, 8, 16, 32, 60, 60), 1):
            self.reactor.advance(seconds - 0.5)
            self.assertEqual(len(self.handler.got), number)
            self.reactor.advance(0.5)
            self.assertEqual(len(self.handler.got), number + 1)
        self.handler.answer = lambda: succeed(1)
        self.reactor.advance(60)
        self.reactor.advance(1000)
        self.assertEqual(len(self.handler.got), 11)

    def test_what_is_refused_for_now_keeps_nothing_waiting_that_comes_after(self) -> None:
        self.start()
        self.handler.answer = self.refuse_for_now
        self.got_after(*[mail(f"folder{number}") for number in range(2 * WINDOW)])
        self.handler.answer = lambda: succeed(1)
        del self.handler.got[:]
        self.assertEqual(self.got_after(mail()), [Notice("alice", "INBOX", True)])
        self.reactor.advance(1)
        self.assertEqual(len(self.handler.got), 1 + 2 * WINDOW)

    def test_what_comes_in_keeps_nothing_waiting_that_is_to_be_tried_again(self) -> None:
        self.start()
        self.handler.answer = self.refuse_for_now
        self.got_after(mail("first"))
        self.handler.answer = lambda: succeed(1)
        self.drain.hand_on(*[mail()] * (3 * SLICE))
        self.reactor.rightNow += 1
        self.reactor.turn()
        self.reactor.turn()
        self.assertEqual(self.handler.got.count(Notice("alice", "INBOX.first", True)), 2)
        self.assertLess(len(self.handler.got), 3 * SLICE)
        self.work()

    def test_of_the_same_only_the_last_one_is_tried_again(self) -> None:
        self.start()
        self.handler.answer = self.refuse_for_now
        self.got_after(mail(), register("bob", "INBOX"), mail(), mail("Notes"))
        self.got_after(register("bob", "Notes"))
        self.handler.answer = lambda: succeed(1)
        del self.handler.got[:]
        self.reactor.advance(1)
        told = [got.mailboxes if isinstance(got, Registration) else got for got in self.handler.got]
        notices = [Notice("alice", mailbox, True) for mailbox in ("INBOX", "INBOX.Notes")]
        self.assertEqual(told, [*notices, ("Notes",)])

    def test_an_event_is_tried_again_for_a_day(self) -> None:
        self.start()
        self.handler.answer = self.refuse_for_now
        self.got_after(mail())
        self.reactor.pump([60] * (24 * 60 - 2))
        with capturedLogs() as logs:
            self.reactor.pump([60] * 5)
        lost = [
            (log["events"], log["reason"]) for log in logs if log["log_level"] == LogLevel.error
        ]
        self.assertEqual(lost, [("1 event", "the disk is full")])
        del self.handler.got[:]
        self.reactor.pump([60] * 5)
        self.assertEqual(self.handler.got, [])

    def test_of_more_than_can_be_kept_those_tried_longest_ago_are_lost(self) -> None:
        self.start()
        self.handler.answer = self.refuse_for_now
        self.got_after(*[mail(f"folder{number}") for number in range(MAX_RETRIED + 2)])
        self.handler.answer = lambda: succeed(1)
        del self.handler.got[:]
        with capturedLogs() as logs:
            self.reactor.advance(1)
        lost = [
            (log["events"], log["reason"]) for log in logs if log["log_level"] == LogLevel.error
        ]
        self.assertEqual(lost, [("2 events", "the disk is full")])
        names = [got.mailbox for got in self.handler.got if isinstance(got, Notice)]
        self.assertEqual(names, [f"INBOX.folder{number}" for number in range(2, MAX_RETRIED + 2)])

    def test_a_refusal_for_good_and_an_error_are_logged_and_not_tried_again(self) -> None:
        self.start()
        self.handler.answer = lambda: fail(Refused("no such thing"))
        with capturedLogs() as logs:
            self.got_after(mail())
        self.assertEqual([log.get("reason") for log in logs], ["no such thing"])

        def broken() -> Deferred[None]:
            raise ZeroDivisionError

        for answer in (lambda: fail(ZeroDivisionError()), broken):
            self.handler.answer = answer
            self.got_after(mail())
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.reactor.advance(1000)
        self.assertEqual(len(self.handler.got), 3)

    # ------------------------------------------------------------ the draining process

    def test_its_end_is_noticed_while_it_is_paused(self) -> None:
        answer: Deferred[None] = Deferred()
        self.handler.answer = lambda: answer
        self.start()
        self.drain.hand_on(*registrations(2 * HIGH_WATER))
        self.work()
        self.assertTrue(self.drain.is_paused)
        self.drain.end()
        self.reactor.advance(1)
        self.assertEqual(len(self.reactor.drains), 2)
        answer.callback(None)

    def test_what_there_was_no_room_for_is_told(self) -> None:
        self.start()
        with capturedLogs() as logs:
            self.drain.frames((LOST, b"17"))
        self.assertEqual(
            [(log["log_level"], log["events"]) for log in logs], [(LogLevel.error, "17 events")]
        )

    def test_what_the_draining_process_says_when_it_breaks_down_is_told(self) -> None:
        self.start()
        with capturedLogs() as logs:
            self.drain.protocol.childDataReceived(2, b"Traceback: ...")
        ((level, text),) = [(log["log_level"], formatEvent(log)) for log in logs]
        self.assertEqual(level, LogLevel.error)
        self.assertIn("says: Traceback: ...", text)

    def test_only_the_user_that_is_named_may_send(self) -> None:
        self.start(user=str(os.getuid() + 1))
        self.assertEqual(self.drain.options, [ROOM, os.getuid() + 1])
        passes = self.drain.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
        self.assertEqual(passes, 1)
        with capturedLogs() as logs:
            self.drain.frames((FOREIGN, b"1234"))
            self.reactor.advance(60)
            self.drain.frames((FOREIGN, b""))
        name = os.getuid() + 1
        self.assertEqual(
            [log["reason"] for log in logs],
            [
                f"its sender is user number 1234, and only {name} (cyrusUser) may send",
                f"its sender is unknown, and only {name} (cyrusUser) may send",
            ],
        )

    def test_with_no_user_named_everybody_who_can_open_the_socket_may_send(self) -> None:
        self.start()
        self.assertEqual(self.drain.options, [ROOM])
        passes = self.drain.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
        self.assertEqual(passes, 0)

    def test_it_is_started_again_when_it_ends_and_has_the_same_socket(self) -> None:
        self.start()
        inode = os.fstat(self.drain.socket.fileno()).st_ino
        self.reactor.advance(5)
        with capturedLogs() as logs:
            self.drain.end(ProcessTerminated(1))
            self.work()
        self.assertEqual([log["log_level"] for log in logs], [LogLevel.error])
        self.assertEqual(len(self.reactor.drains), 2)
        self.assertEqual(os.fstat(self.drain.socket.fileno()).st_ino, inode)
        self.got_after(mail())
        self.assertEqual(len(self.handler.got), 1)

    def test_one_that_ends_soon_is_started_again_after_a_while(self) -> None:
        self.start()
        with capturedLogs():
            self.drain.end(ProcessTerminated(1))
        self.reactor.advance(0.5)
        self.assertEqual(len(self.reactor.drains), 1)
        self.reactor.advance(0.5)
        self.assertEqual(len(self.reactor.drains), 2)

    def test_one_that_ends_again_and_again_does_not_fill_the_log(self) -> None:
        self.start()
        with capturedLogs() as logs:
            for _ in range(60):
                self.drain.end(ProcessTerminated(1))
                self.reactor.advance(1)
        self.assertEqual(len(self.reactor.drains), 61)
        told = [log for log in logs if log["log_level"] != LogLevel.debug]
        self.assertEqual([log["log_level"] for log in told], [LogLevel.error])

    # ------------------------------------------------------------ the socket

    def test_the_socket_is_open_to_its_group_and_nobody_else(self) -> None:
        self.start(group=str(os.getgid()))
        found = self.path.stat()
        self.assertTrue(stat.S_ISSOCK(found.st_mode))
        self.assertEqual(stat.S_IMODE(found.st_mode), 0o660)

    def test_what_is_sent_comes_in(self) -> None:
        self.start()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"one", str(self.path))
        self.assertEqual(self.drain.socket.recv(10), b"one")

    def test_a_socket_that_is_in_use_is_left_alone(self) -> None:
        self.start()
        other = self.listener()
        refused = self.assertRaises(ListenError, other.start)
        self.assertIn("another daemon is listening there", str(refused))

    def test_a_dead_daemons_socket_is_replaced(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
            dead.bind(str(self.path))
        self.start()
        self.assertEqual(self.drain.socket.getsockname(), str(self.path))

    def test_a_user_that_does_not_exist_is_told_at_the_start(self) -> None:
        refused = self.assertRaises(ListenError, self.start, user="no-such-user")
        self.assertEqual(
            str(refused), "there is no user 'no-such-user' on this machine (cyrusUser)"
        )
        self.assertFalse(self.path.exists())

    # ------------------------------------------------------------ the end

    def test_a_folder_where_the_socket_was_does_not_keep_it_from_stopping(self) -> None:
        listener = self.start()
        self.path.unlink()
        self.path.mkdir()
        stopped = listener.stop()
        self.assertTrue(self.drain.is_finishing)
        self.drain.end()
        self.work()
        self.successResultOf(stopped)
        self.assertTrue(self.path.is_dir())

    def test_senders_are_refused_and_what_came_in_before_is_handed_over(self) -> None:
        listener = self.start()
        self.drain.hand_on(*[mail()] * SLICE)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(self.path))
            stopped = listener.stop()
            self.assertRaises(BrokenPipeError, sender.send, b"too late")
        self.assertFalse(self.path.exists())
        self.assertTrue(self.drain.is_finishing)
        self.work()
        self.drain.hand_on(*[mail()] * SLICE)
        self.assertNoResult(stopped)
        self.drain.end()
        self.work()
        self.successResultOf(stopped)
        self.assertEqual(len(self.handler.got), 2 * SLICE)

    def test_the_stop_waits_for_what_was_handed_over(self) -> None:
        answer: Deferred[None] = Deferred()
        self.handler.answer = lambda: answer
        listener = self.start()
        self.got_after(register("alice", "INBOX"))
        stopped = listener.stop()
        self.drain.end()
        self.work()
        self.assertNoResult(stopped)
        answer.callback(None)
        self.work()
        self.successResultOf(stopped)

    def test_what_waits_to_be_tried_again_is_tried_at_the_stop(self) -> None:
        self.handler.answer = self.refuse_for_now
        listener = self.start()
        self.got_after(mail(), mail("Notes"))
        with capturedLogs() as logs:
            stopped = listener.stop()
            self.work()
            self.assertEqual(len(self.handler.got), 4)
            self.drain.end()
            self.work()
        self.successResultOf(stopped)
        lost = [
            (log["events"], log["reason"]) for log in logs if log["log_level"] == LogLevel.error
        ]
        self.assertEqual(lost, [("2 events", "the disk is full")])

    def test_a_drain_that_is_to_be_started_again_still_empties_the_socket_at_the_stop(self) -> None:
        listener = self.start()
        with capturedLogs():
            self.drain.end(ProcessTerminated(1))
        stopped = listener.stop()
        self.assertEqual(len(self.reactor.drains), 2)
        self.assertTrue(self.drain.is_finishing)
        self.drain.hand_on(mail())
        self.drain.end()
        self.work()
        self.successResultOf(stopped)
        self.assertEqual(len(self.handler.got), 1)

    def test_a_drain_that_stands_still_at_the_stop_is_killed(self) -> None:
        listener = self.start()
        stopped = listener.stop()
        self.reactor.advance(STOP_PATIENCE - 0.1)
        self.drain.hand_on(mail())  # it lives
        self.reactor.advance(STOP_PATIENCE - 0.1)
        self.assertEqual(self.drain.signals, [])
        with capturedLogs() as logs:
            self.reactor.advance(0.1)
        self.assertEqual(self.drain.signals, ["KILL"])
        self.assertEqual([log["log_level"] for log in logs], [LogLevel.error])
        self.assertNoResult(stopped)
        self.drain.end(ProcessTerminated(signal=9))
        self.work()
        self.successResultOf(stopped)
        self.assertEqual(len(self.handler.got), 1)

    def test_a_drain_whose_datagrams_are_not_taken_is_not_killed(self) -> None:
        answer: Deferred[None] = Deferred()
        self.handler.answer = lambda: answer
        listener = self.start()
        stopped = listener.stop()
        self.drain.hand_on(*registrations(HIGH_WATER + 1))
        self.work()
        self.assertTrue(self.drain.is_paused)
        self.reactor.advance(3 * STOP_PATIENCE)
        self.assertEqual(self.drain.signals, [])
        answer.callback(None)
        while self.drain.is_paused:
            self.work()
        self.reactor.advance(STOP_PATIENCE)
        self.assertEqual(self.drain.signals, ["KILL"])
        self.drain.end()
        self.work()
        self.successResultOf(stopped)

    def test_a_drain_that_is_gone_when_it_would_be_killed_needs_no_signal(self) -> None:
        listener = self.start()
        stopped = listener.stop()
        self.drain.has_ended = True  # its pipes are still open
        with capturedLogs():
            self.reactor.advance(STOP_PATIENCE)
        self.drain.end()
        self.work()
        self.successResultOf(stopped)

    def test_a_listener_that_was_not_started_stops_at_once(self) -> None:
        listener = self.listener()
        self.assertIsNone(self.successResultOf(listener.stop()))

    # ------------------------------------------------------------ how it fares

    def trouble(self, listener: CyrusListener) -> str | None:
        """What is the matter, some seconds later."""
        self.reactor.advance(5)
        listener.look()
        listener.draining.look(self.reactor.seconds())
        return listener.draining.trouble

    def test_events_that_nobody_takes_are_trouble_until_somebody_does(self) -> None:
        listener = self.start()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as cyrus:
            cyrus.connect(str(self.path))
            cyrus.send(mail())
        for _ in range(3):
            self.got_after(mail())
            self.assertIsNone(self.trouble(listener), "it hands on others")
        self.trouble(listener)
        self.assertIn("stands still", str(self.trouble(listener)))
        self.drain.socket.recv(100_000)
        self.assertIsNone(self.trouble(listener))

    def test_a_draining_process_that_ends_again_and_again_is_trouble(self) -> None:
        listener = self.start()
        self.drain.end(ProcessTerminated(1))
        self.assertIsNone(self.trouble(listener), "once is none")
        for _ in range(2):
            self.drain.end(ProcessTerminated(1))
            told = self.trouble(listener)
        self.assertIn("has ended", str(told))
        self.assertIsNone(self.trouble(listener))

    def test_a_socket_that_was_removed_is_trouble(self) -> None:
        listener = self.start()
        self.path.unlink()
        self.trouble(listener)
        self.assertIn("was removed", str(self.trouble(listener)))
