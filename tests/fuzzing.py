"""What reads bytes of others, as functions that take any bytes at all and raise when something does
not hold that must hold always; ``make fuzz`` looks for such bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hpack import Encoder
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from tests.standins.steps import MALFORMED
from xaps.apns.events import Answered, Closed, GivenBack, Lost, SessionEvent
from xaps.apns.session import Session, SessionState
from xaps.config.reading import ConfigError, load
from xaps.intake.dialect import Answer, Dialect, Request
from xaps.intake.http import HttpDialect
from xaps.intake.imap import ImapDialect
from xaps.intake.lines import LinesDialect

CAPTURES = Path(__file__).parent / "captures" / "dovecot"
BLOCK = b"\x83\x87\x84\x01\x01x"
"""Headers of a request."""
PIECES = (1, 2, 3, 7, 64, 1024)


def lines(data: bytes) -> None:
    """The line protocol."""
    converse(LinesDialect, data)


def http(data: bytes) -> None:
    """HTTP as IMAP servers speak it."""
    converse(HttpDialect, data)


def imap(data: bytes) -> None:
    """What our plugin for Dovecot passes on of phones."""
    converse(ImapDialect, data)


def converse(dialect: Callable[[], Dialect], data: bytes) -> None:
    """The first byte decides on the pieces that the rest comes in, which must not matter."""
    size, data = PIECES[data[0] % len(PIECES)] if data else 1, data[1:]
    whole, apart = dialect(), dialect()
    events = whole.feed(data)
    pieces = [event for piece in _pieces(data, size) for event in apart.feed(piece)]
    assert pieces == events, f"{pieces} in pieces of {size} bytes, {events} at once"
    assert whole.unfinished == apart.unfinished
    for number, event in enumerate(events, 1):
        _check_answer(whole, event)
        if isinstance(event, Answer) and event.close:
            assert number == len(events), "an event after the last refusal"
    _check_answer(whole, whole.overdue())
    assert whole.feed(b"NOTIFY\r\n") == [], "it reads on after the end"


def _check_answer(dialect: Dialect, event: Request | Answer) -> None:
    if isinstance(event, Answer):
        assert event.reason.isascii() and event.reason.isprintable()
        answers = [event]
    else:
        answers = [Answer(200, body=b"TOPIC", close=event.close), Answer(204)]
    for answer in answers:
        head = dialect.answer(answer).partition(b"\r\n\r\n")[0]
        assert head.count(b"\n") == head.count(b"\r\n") == head.count(b"\r")


def session(data: bytes) -> None:
    """The connection to APNs. The first byte decides on how many requests are in flight, the second
    on the pieces that the rest comes in, the third on whether SETTINGS came before that."""
    requests, size, greeted = (*data[:3], 0, 0, 0)[:3]
    rest = data[3:]
    peer: Session[int] = Session(0.0)
    ends: set[int] = set()
    sent = 0
    closed = False

    def note(events: list[SessionEvent[int]]) -> None:
        nonlocal closed
        for event in events:
            assert not closed, "an event after the last one"
            match event:
                case Answered() | GivenBack() | Lost():
                    assert event.tag not in ends, "a second outcome"
                    ends.add(event.tag)
                case Closed():
                    closed = True
                    assert peer.state is SessionState.CLOSED
                case _:
                    pass
        assert peer.in_flight == sent - len(ends)
        peer.data_to_send()

    if greeted % 4:
        note(peer.receive(SettingsFrame(0, settings={3: 100}).serialize(), 0.0))
    for _ in range(min(requests % 8, peer.room)):
        sent += 1
        peer.send(BLOCK, b"{}", sent, 0.0)
    for piece in _pieces(rest, PIECES[size % len(PIECES)]):
        note(peer.receive(piece, 1.0))
    while peer.backlog:
        note(peer.receive(b"", 1.0))
    note(peer.tick(40.0))
    note(peer.tick(80.0))
    note(peer.lost("the end"))
    assert closed
    assert len(ends) == sent, "a push without an outcome"


def configuration(data: bytes) -> None:
    """The configuration file."""
    with tempfile.NamedTemporaryFile(dir=_MEMORY, suffix=".yaml") as file:
        file.write(data)
        file.flush()
        try:
            load(Path(file.name))
        except ConfigError as error:
            for line in str(error).split("\n"):
                assert line.startswith(file.name) and line.isprintable(), str(error)


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

TARGETS: dict[str, Callable[[bytes], None]] = {
    "lines": lines,
    "http": http,
    "imap": imap,
    "session": session,
    "configuration": configuration,
}


def seeds(target: str) -> Iterator[bytes]:
    """Inputs to start from."""
    match target:
        case "lines":
            for start in (b"\0", b"\5"):
                yield start + (CAPTURES / "lua-unix.bin").read_bytes()
                yield start + (
                    b'REGISTER aps-account-id="A"\taps-device-token="abcd"\taps-subtopic='
                    b'"com.apple.mobilemail"\tdovecot-username="b\\"c"\tdovecot-mailboxes=("INBOX","x")\r\n'
                )
        case "http":
            for path in sorted(CAPTURES.glob("*.bin")):
                yield b"\4" + path.read_bytes()[:4000]
            yield (
                b"\1POST /notify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
                b"Expect: 100-continue\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"
                b'2a\r\n{"Username":"bob","Mailbox":"INBOX","Events":\r\n3\r\n[]}\r\n0\r\n\r\n'
            )
        case "imap":
            for start in (b"\0", b"\5"):
                yield start + (
                    b'IMAP\t1\tb\taps-version 2 "aps-account-id" A aps-device-token abcd '
                    b'aps-subtopic com.apple.mobilemail mailboxes (INBOX "a\\"b" {3}\x01r\x01nx y '
                    b'NIL) sender (x (NIL) "")\nIMAP\t1\tb\taps-version 1\n'
                )
        case "session":
            encoder = Encoder()
            answer = b"".join(
                frame.serialize()
                for frame in (
                    SettingsFrame(0, flags=["ACK"]),
                    HeadersFrame(1, encoder.encode([(b":status", b"410")]), flags=["END_HEADERS"]),
                    DataFrame(1, b'{"reason":"Unregistered"}', flags=["END_STREAM"]),
                    RstStreamFrame(3, error_code=7),
                    SettingsFrame(0, settings={3: 1, 4: 0}),
                    GoAwayFrame(0, 5, 0, b'{"reason":"Shutdown"}'),
                )
            )
            yield b"\4\5\1" + answer
            yield b"\7\0\1" + answer
            for frame in MALFORMED.values():
                yield b"\4\4\1" + frame[:200]
        case "configuration":
            yield (
                b"loglevel: debug\ndatabaseFile: /var/lib/xapsd/database.json\nlistenAddr: '::1'\n"
                b"port: 11619\ndelay: 30\ncheckInterval: 20\ncertificateFilePem: push.pem\n"
                b"allowFrom: [10.0.0.0/8, ::1]\nsocketMode: 0660\napnsServer: https://a.b:443\n"
            )
            yield b"cyrus: {socket: /run/x}\nport: 1\nPort: &a 2\nappleId: *a\n---\nx: |\n  y\n"
