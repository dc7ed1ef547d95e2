"""The fault stand-in does what its script says, and sees what a client does wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h2.events
from h2.errors import ErrorCodes
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer, reactor
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReactorTCP
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import pki
from tests.coroutines import as_deferred
from tests.peers.child import ChildError
from tests.peers.h2client import H2Client, Response, StreamResetByServer, connect
from tests.standins import steps
from tests.standins.faults import FaultServer, command
from tests.standins.frames import PREFACE, FrameSplitter
from tests.standins.process import FaultsProcess
from tests.standins.steps import (
    AcceptAndDrop,
    Answer,
    Certificate,
    Close,
    Delay,
    GoAway,
    Hold,
    Malformed,
    Mute,
    NoAlpn,
    NoAnswer,
    NoCredit,
    NoSettings,
    Raw,
    Reset,
    ResetStream,
    Settings,
    SilentHandshake,
    parse,
)

MAX_CONCURRENT_STREAMS = 3
INITIAL_WINDOW_SIZE = 4
LARGE = b'{"aps":{"account-id":"A1"}}' + b" " * 16000


class StepTests(SynchronousTestCase):
    def test_scripts_are_read_as_they_are_written(self) -> None:
        script = (
            GoAway(after=3, last=2, code=ErrorCodes.ENHANCE_YOUR_CALM, debug=b"\xff'\""),
            Answer(410, "Unregistered", 1700000000000, device_token="ab", times=2),
            ResetStream(request=3),
            NoAlpn(),
            Delay(0.5),
            NoAnswer(),
        )
        self.assertEqual(parse(", ".join(repr(step) for step in script)), script)
        self.assertEqual(parse(""), ())
        self.assertEqual(parse("Reset(), Hold(until=3)"), (Reset(), Hold(until=3)))

    def test_what_is_no_script_is_refused(self) -> None:
        for text in ("Dance()", "Reset(", "Reset(before=1)", "Reset(open('x'))", "Reset", "1"):
            with self.assertRaises(ValueError):
                parse(text)


class FrameSplitterTests(SynchronousTestCase):
    @given(st.lists(st.binary(max_size=30), max_size=5), st.integers(1, 40))
    def test_frames_come_out_as_they_went_in_however_they_were_cut(
        self, payloads: list[bytes], size: int
    ) -> None:
        frames = [PREFACE, *(steps.frame(0, 1, 3, payload) for payload in payloads)]
        stream = b"".join(frames)
        splitter = FrameSplitter(preface=True)
        found = [
            frame
            for start in range(0, len(stream), size)
            for frame in splitter.feed(stream[start : start + size])
        ]
        self.assertEqual([frame.raw for frame in found], frames)
        self.assertEqual([frame.payload for frame in found[1:]], payloads)


class FaultCase(TestCase):
    timeout = 5.0

    def setUp(self) -> None:
        self.authority = pki.Authority.create()
        self.issued = self.authority.client()
        self.reactor = IReactorTCP(reactor)
        self.faults = FaultServer(self.reactor, self.authority)
        self.addCleanup(self.faults.stop)
        self.successResultOf(self.faults.listen())

    async def connect(self, *script: steps.Step) -> H2Client:
        """A client whose connection has this script, after the first settings."""
        client = await self.connect_tcp(*script)
        await client.settings
        return client

    async def connect_tcp(self, *script: steps.Step) -> H2Client:
        self.faults.next_connection(*script)
        return await connect(self.reactor, self.faults.port, self.authority, self.issued)

    async def pushes(self, client: H2Client, *device_tokens: str) -> list[Any]:
        """What came of some pushes that were sent at once: the status, or the exception."""
        sent = [client.push(token) for token in device_tokens]
        results = await defer.DeferredList(sent, consumeErrors=True)
        return [outcome(result) for _, result in results]

    def assert_no_violations(self) -> None:
        self.assertEqual(self.faults.violations, [])


def outcome(result: Response | Failure) -> Any:
    match result:
        case Response():
            return result.status
        case Failure(value=StreamResetByServer(code=code)):
            return f"reset {ErrorCodes(code).name}"
    return type(result.value)


class ConnectionTests(FaultCase):
    """Faults before HTTP/2."""

    async def assert_closed(self, *script: steps.Step) -> BaseException | None:
        client = await self.connect_tcp(*script)
        reason = await client.closed
        self.assertFalse(client.settings.called)
        return reason

    @as_deferred
    async def test_without_a_script_all_is_well(self) -> None:
        client = await self.connect()
        self.assertEqual(await client.settings, {MAX_CONCURRENT_STREAMS: 1000})
        response = await client.push("ab", extra=[("apns-id", "x")])
        self.assertEqual((response.status, response.body), (200, b""))
        self.assertEqual(response.headers["apns-id"], "x")
        (request,) = self.faults.delivered
        self.assertEqual(request.device_token, "ab")
        self.assertEqual(request.payload, {"aps": {"account-id": "A1"}})
        self.assertEqual((request.connection, request.number), (1, 1))
        self.assert_no_violations()

    @as_deferred
    async def test_accept_and_drop(self) -> None:
        await self.assert_closed(AcceptAndDrop())
        self.assertEqual(self.faults.connections, [])
        await self.assert_closed(AcceptAndDrop(after_handshake=True))
        self.assertTrue(self.faults.connections[0].handshaken)
        self.assertEqual([a.number for a in self.faults.attempts], [1, 2])

    @as_deferred
    async def test_a_handshake_that_never_ends(self) -> None:
        client = await self.connect_tcp(SilentHandshake())
        other = await self.connect()
        self.assertEqual((await other.push("ab")).status, 200)
        self.assertNoResult(client.closed)
        self.assertEqual(client.negotiated, None)

    @as_deferred
    async def test_certificates_that_a_client_must_not_accept(self) -> None:
        for fault in ("wrong name", "expired", "unknown authority"):
            reason = await self.assert_closed(parse(f"Certificate({fault!r})")[0])
            self.assertNotIsInstance(reason, ConnectionDone)
        await self.faults.wait_until(lambda: not any(c.open for c in self.faults.connections))
        self.assertEqual([c.handshaken for c in self.faults.connections], [False] * 3)
        self.assertEqual(Certificate("expired").fault, "expired")

    @as_deferred
    async def test_no_answer_by_alpn(self) -> None:
        client = await self.connect(NoAlpn())
        self.assertEqual(client.negotiated, None)
        client = await self.connect()
        self.assertEqual(client.negotiated, b"h2")

    @as_deferred
    async def test_a_client_needs_a_certificate(self) -> None:
        client = await connect(self.reactor, self.faults.port, self.authority)
        await client.closed
        self.assertFalse(client.settings.called)

    @as_deferred
    async def test_no_settings(self) -> None:
        client = await self.connect_tcp(NoSettings())
        await self.faults.wait_until(lambda: self.faults.connections[0].handshaken)
        other = await self.connect()
        await other.push("ab")
        self.assertFalse(client.settings.called)
        self.assertNoResult(client.closed)

    @as_deferred
    async def test_scripts_are_taken_in_order_and_then_the_one_for_every_connection(self) -> None:
        self.faults.every_connection(Settings(streams=2))
        self.assertEqual(await (await self.connect(Settings(streams=1))).settings, {3: 1})
        client = await connect(self.reactor, self.faults.port, self.authority, self.issued)
        self.assertEqual(await client.settings, {3: 2})
        self.faults.forget_scripts()
        client = await connect(self.reactor, self.faults.port, self.authority, self.issued)
        self.assertEqual(await client.settings, {3: 1000})

    @as_deferred
    async def test_stopping_ends_connections_at_every_stage(self) -> None:
        clients = [
            await self.connect_tcp(SilentHandshake()),
            await self.connect_tcp(NoSettings()),
            await self.connect(),
        ]
        await self.faults.stop()
        for client in clients:
            self.assertIsInstance(await client.closed, ConnectionLost)


class GoAwayTests(FaultCase):
    @as_deferred
    async def test_requests_up_to_the_last_are_answered_and_no_later_ones(self) -> None:
        client = await self.connect(
            Hold(until=3), GoAway(after=3, last=2, debug=b"plain text", code=ErrorCodes.NO_ERROR)
        )
        self.assertEqual(await self.pushes(client, "aa", "bb", "cc"), [200, 200, ConnectionLost])
        (goaway,) = client.goaways
        self.assertEqual((goaway.last_stream_id, goaway.debug), (3, b"plain text"))
        self.assertEqual([r.device_token for r in self.faults.delivered], ["aa", "bb"])
        self.assert_no_violations()

    @as_deferred
    async def test_none_processed_and_the_connection_kept(self) -> None:
        client = await self.connect(GoAway(after=1, last=0, debug=b"", close=False))
        unanswered = client.push("aa")
        await self.faults.wait_for_requests(1)
        await client.ping()
        self.assertNoResult(unanswered)
        (goaway,) = client.goaways
        self.assertEqual((goaway.last_stream_id, goaway.debug), (0, b""))
        self.assertNoResult(client.closed)
        client.abort()
        await self.assertFailure(unanswered, ConnectionLost)

    @as_deferred
    async def test_twice(self) -> None:
        client = await self.connect(
            Hold(until=2),
            GoAway(after=2, last_stream_id=2**31 - 1, close=False),
            GoAway(after=2, last=1),
        )
        self.assertEqual(await self.pushes(client, "aa", "bb"), [200, ConnectionLost])
        self.assertEqual([g.last_stream_id for g in client.goaways], [2**31 - 1, 1])

    @as_deferred
    async def test_before_the_first_settings(self) -> None:
        client = await self.connect_tcp(GoAway(before_settings=True), NoSettings())
        await client.closed
        (goaway,) = client.goaways
        self.assertEqual(json.loads(goaway.debug), {"reason": "Shutdown"})
        self.assertFalse(client.settings.called)

    @as_deferred
    async def test_now_on_an_idle_connection(self) -> None:
        client = await self.connect()
        await client.push("aa")
        self.faults.now(GoAway())
        await client.closed
        self.assertEqual([g.last_stream_id for g in client.goaways], [1])

    @as_deferred
    async def test_a_request_after_it_is_a_violation(self) -> None:
        client = await self.connect(GoAway(after=1, close=False))
        await client.push("aa")
        # The PING that follows GOAWAY was answered before this request was sent.
        late = client.push("bb")
        await self.faults.wait_for_requests(2)
        self.assertEqual(self.faults.violations, ["it sent a request after it had seen GOAWAY"])
        client.abort()
        await self.assertFailure(late, ConnectionLost)


class StreamTests(FaultCase):
    @as_deferred
    async def test_answers_by_number_by_device_and_for_a_while(self) -> None:
        client = await self.connect(
            Answer(410, "Unregistered", 1700000000000, device_token="AA"),
            Answer(503, "Shutdown", request=2),
            Answer(429, "TooManyRequests", times=1),
        )
        gone = await client.push("aa")
        self.assertEqual(
            json.loads(gone.body), {"reason": "Unregistered", "timestamp": 1700000000000}
        )
        self.assertEqual((await client.push("bb")).reason, "Shutdown")
        self.assertEqual((await client.push("cc")).reason, "TooManyRequests")
        self.assertEqual((await client.push("dd")).status, 200)
        self.assertEqual((await client.push("aa")).status, 410)
        self.assertEqual([r.status for r in self.faults.requests], [410, 503, 429, 200, 410])

    @as_deferred
    async def test_bodies_of_any_kind_and_size(self) -> None:
        client = await self.connect(
            Answer(500, raw=b"", request=1), Answer(500, raw=b"<" * 200_000, request=2)
        )
        self.assertEqual((await client.push("aa")).body, b"")
        self.assertEqual((await client.push("bb")).body, b"<" * 200_000)

    @as_deferred
    async def test_reset_instead_of_an_answer(self) -> None:
        client = await self.connect(
            ResetStream(request=1), ResetStream(ErrorCodes.ENHANCE_YOUR_CALM, request=2)
        )
        self.assertEqual(
            await self.pushes(client, "aa", "bb", "cc"),
            ["reset REFUSED_STREAM", "reset ENHANCE_YOUR_CALM", 200],
        )
        self.assertEqual([r.reset for r in self.faults.requests], [7, 11, None])

    @as_deferred
    async def test_no_answer_and_a_late_one(self) -> None:
        client = await self.connect(NoAnswer(request=1), Delay(0.01))
        never = client.push("aa")
        self.assertEqual((await client.push("bb")).status, 200)
        self.assertNoResult(never)
        late = client.push("cc")
        await self.faults.wait_for_requests(3)
        client.abort()
        await self.assertFailure(never, ConnectionLost)
        await self.assertFailure(late, ConnectionLost)

    @as_deferred
    async def test_held_until_released(self) -> None:
        client = await self.connect(Hold())
        waiting = [client.push("aa"), client.push("bb")]
        await self.faults.wait_for_requests(2)
        self.assertNoResult(waiting[0])
        self.faults.release()
        self.assertEqual([(await w).status for w in waiting], [200, 200])
        self.assertEqual((await client.push("cc")).status, 200)

    @as_deferred
    async def test_it_tells_when_a_request_was_begun_and_ended_and_what_410_said(self) -> None:
        client = await self.connect(
            Hold(), ResetStream(request=2), Answer(410, "Unregistered", timestamp=4711)
        )
        waiting = [client.push("aa"), client.push("bb")]
        await self.faults.wait_for_requests(2)
        held = [request.as_json() for request in self.faults.requests]
        self.assertEqual([(r["ended_at"], r["timestamp"]) for r in held], [(None, None)] * 2)
        self.faults.release()
        await defer.DeferredList(waiting, consumeErrors=True)
        gone, reset = (request.as_json() for request in self.faults.requests)
        for told in (gone, reset):
            self.assertLessEqual(told["begun_at"], told["received_at"])
            self.assertLess(told["received_at"], told["ended_at"])
        self.assertEqual((gone["timestamp"], reset["timestamp"]), (4711, None))

    @as_deferred
    async def test_a_request_that_the_client_resets_is_not_answered(self) -> None:
        client = await self.connect(Hold())
        cancelled = client.push("aa")
        await self.faults.wait_for_requests(1)
        client.h2.reset_stream(1)
        client.flush()
        await self.faults.wait_until(lambda: self.faults.requests[0].cancelled)
        self.faults.release()
        self.assertEqual((await client.push("bb")).status, 200)
        self.assertEqual([r.status for r in self.faults.requests], [None, 200])
        client.abort()
        await self.assertFailure(cancelled, ConnectionLost)


class LimitTests(FaultCase):
    @as_deferred
    async def test_streams_above_the_limit_are_refused_and_a_violation(self) -> None:
        client = await self.connect(Settings(streams=1), Hold())
        await client.ping()
        # h2 would obey, so it is told otherwise
        client.h2.remote_settings[MAX_CONCURRENT_STREAMS] = 10
        client.h2.remote_settings.acknowledge()
        first, second = client.push("aa"), client.push("bb")
        await self.assertFailure(second, StreamResetByServer)
        self.assertEqual(self.faults.violations, ["it opened 2 streams where 1 may be"])
        self.faults.release()
        self.assertEqual((await first).status, 200)

    @as_deferred
    async def test_a_limit_lowered_under_load_refuses_the_later_streams(self) -> None:
        client = await self.connect(
            Hold(until=3), Settings(streams=5), Settings(streams=1, after=3)
        )
        self.assertEqual(
            await self.pushes(client, "aa", "bb", "cc"),
            [200, "reset REFUSED_STREAM", "reset REFUSED_STREAM"],
        )
        self.assertEqual(client.h2.remote_settings.max_concurrent_streams, 1)
        self.assert_no_violations()

    @as_deferred
    async def test_a_limit_can_be_raised(self) -> None:
        client = await self.connect(Settings(streams=0))
        self.assertEqual(client.h2.remote_settings.max_concurrent_streams, 0)
        self.faults.now(Settings(streams=2))
        await client.ping()
        self.assertEqual(await self.pushes(client, "aa", "bb"), [200, 200])
        self.assert_no_violations()

    @as_deferred
    async def test_many_refused_streams_do_not_use_up_the_window(self) -> None:
        client = await self.connect(ResetStream(times=4))
        for _ in range(4):
            await self.assertFailure(client.push("aa", payload=LARGE), StreamResetByServer)
        self.assertEqual((await client.push("aa", payload=LARGE)).status, 200)
        self.assert_no_violations()

    @as_deferred
    async def test_windows_are_credited_or_not(self) -> None:
        client = await self.connect(Settings(streams=10))
        for _ in range(4):
            self.assertEqual((await client.push("aa", payload=LARGE)).status, 200)
        mean = await self.connect(NoCredit())
        for _ in range(2):
            self.assertEqual((await mean.push("aa", payload=LARGE)).status, 200)
        self.assertEqual(mean.h2.outbound_flow_control_window, 65535 - 2 * len(LARGE))
        self.assert_no_violations()

    @as_deferred
    async def test_more_data_than_a_window_allows_is_a_violation(self) -> None:
        client = await self.connect(Settings(window=10))
        await client.ping()
        self.assertEqual(client.h2.remote_settings.initial_window_size, 10)
        # h2 would obey, so it is told otherwise
        client.h2.remote_settings[INITIAL_WINDOW_SIZE] = 65535
        client.h2.remote_settings.acknowledge()
        self.assertEqual((await client.push("aa")).status, 200)
        self.assertEqual(self.faults.violations, ["it sent more data than a window allows"])


class BreakTests(FaultCase):
    @as_deferred
    async def test_reset_and_close(self) -> None:
        client = await self.connect(Reset(after=2))
        self.assertEqual((await client.push("aa")).status, 200)
        self.assertEqual(await self.pushes(client, "bb"), [ConnectionLost])
        self.assertIsInstance(await client.closed, ConnectionLost)
        client = await self.connect(Close(after=1))
        self.assertEqual(await self.pushes(client, "aa"), [ConnectionLost])
        self.assertIsInstance(await client.closed, ConnectionDone)
        self.assertEqual(client.goaways, [])

    @as_deferred
    async def test_a_mute_connection_answers_the_request_and_then_nothing(self) -> None:
        client = await self.connect(Mute(after=1))
        self.assertEqual((await client.push("aa")).status, 200)
        never = client.push("bb")
        client.h2.ping(b"12345678")
        client.flush()
        other = await self.connect()
        await other.push("cc")
        self.assertNoResult(never)
        self.assertEqual([e for e in client.events if isinstance(e, h2.events.PingAckReceived)], [])
        self.assertEqual(len(self.faults.requests), 2)
        client.abort()
        await self.assertFailure(never, ConnectionLost)

    @as_deferred
    async def test_malformed_frames_are_such_that_a_client_ends_the_connection(self) -> None:
        for frame in steps.MALFORMED:
            client = await self.connect(Malformed(frame, after=1))
            self.assertEqual(await self.pushes(client, "aa"), [ConnectionLost], frame)

    @as_deferred
    async def test_raw_bytes(self) -> None:
        ping = steps.frame(6, 0, 0, b"12345678")
        client = await self.connect(Raw(ping))
        await client.push("aa")
        (event,) = [e for e in client.events if isinstance(e, h2.events.PingReceived)]
        self.assertEqual(event.ping_data, b"12345678")

    @as_deferred
    async def test_a_client_that_breaks_the_protocol_is_told_of(self) -> None:
        client = await self.connect()
        assert client.transport is not None
        client.transport.write(steps.MALFORMED["ping of a wrong size"])
        await client.closed
        (violation,) = self.faults.violations
        self.assertIn("it broke the protocol", violation)

    @as_deferred
    async def test_commands_do_what_the_methods_do(self) -> None:
        command(self.faults, "every Settings(streams=5), Hold()")
        command(self.faults, "next Settings(streams=7), Hold()")
        first = await connect(self.reactor, self.faults.port, self.authority, self.issued)
        self.assertEqual(await first.settings, {3: 7})
        second = await connect(self.reactor, self.faults.port, self.authority, self.issued)
        self.assertEqual(await second.settings, {3: 5})
        command(self.faults, "now Answer(503, 'Shutdown')")
        waiting = first.push("aa")
        await self.faults.wait_for_requests(1)
        self.assertNoResult(waiting)
        command(self.faults, "release")
        self.assertEqual((await waiting).status, 503)
        command(self.faults, "drop")
        await first.closed
        await second.closed
        command(self.faults, "forget")
        third = await connect(self.reactor, self.faults.port, self.authority, self.issued)
        self.assertEqual(await third.settings, {3: 1000})
        for wrong in ("", "dance", "next Dance()"):
            with self.assertRaises(ValueError):
                command(self.faults, wrong)


class FaultsProcessTests(TestCase):
    timeout = 60.0

    @as_deferred
    async def test_it_takes_scripts_and_tells_what_happens(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        authority = pki.Authority.create()
        process = FaultsProcess(folder, authority)
        self.addCleanup(process.close)
        process.next_connection(
            Hold(until=2), GoAway(after=2, last=1, debug=b"\xff'"), Settings(streams=9)
        )
        process.every_connection(Answer(503, "Shutdown"))
        issued = authority.client()
        client = await connect(IReactorTCP(reactor), process.port, authority, issued)
        self.assertEqual((await client.settings)[MAX_CONCURRENT_STREAMS], 9)
        first, second = client.push("aa"), client.push("bb")
        self.assertEqual((await first).status, 200)
        await self.assertFailure(second, ConnectionLost)
        self.assertEqual(client.goaways[0].debug, b"\xff'")
        self.assertEqual(
            [(p["device_token"], p["status"]) for p in process.wait_for(1)], [("aa", 200)]
        )
        arrived = process.wait_for_arrivals(2)
        self.assertEqual([a["device_token"] for a in arrived], ["aa", "bb"])
        self.assertEqual([e["connection"] for e in process.wait_for_event("closed")], [1])
        other = await connect(IReactorTCP(reactor), process.port, authority, issued)
        self.assertEqual((await other.push("cc")).status, 503)
        process.now(ResetStream(device_token="dd"), Mute())
        process.drop_connections()
        await other.closed
        process.forget_scripts()
        self.assertEqual(len(process.wait_for_event("accepted", 2)), 2)
        self.assertEqual(len(process.events("handshaken")), 2)
        self.assertEqual(process.violations, [])
        with self.assertRaises(ChildError):
            process.command("next Dance()")
