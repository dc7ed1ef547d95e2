"""``make try``: the real daemon, a stand-in for APNs, two phones, one notice; each step a line."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path
from typing import Any

from tests import pki
from tests.peers.child import PATIENCE, PythonChild
from tests.peers.daemon import Daemon
from tests.phone import Ignored, ModelPhone

PHONE = "4a" * 32
TABLET = "7b" * 32


def main() -> int:
    """Run it; the exit status."""
    try:
        with tempfile.TemporaryDirectory(prefix="xaps-try-") as folder:
            show(Path(folder))
    except (Exception, KeyboardInterrupt) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"FAILED: {reason}", file=sys.stderr)
        return 1
    print("It works: one notice became a push to each of the user's devices.")
    return 0


def show(folder: Path) -> None:
    """All steps."""
    apns_folder = folder / "apns"
    apns_folder.mkdir()
    authority = pki.Authority.create()
    authority.save(apns_folder)
    say("Made a certificate authority and a push certificate, for this try only")

    standin = PythonChild(["-m", "tests.standins.apns", "--folder", apns_folder], folder)
    try:
        standin.wait_for('"listening"')
        port = (apns_folder / "port").read_text()
        say(f"Started a stand-in for Apple's push service on port {port}")
        daemon = Daemon(folder, apns=f"https://localhost:{port}", authority=authority)
        try:
            push_one_notice(daemon, standin)
        finally:
            daemon.close()
    finally:
        standin.close()


def push_one_notice(daemon: Daemon, standin: PythonChild) -> None:
    """Register a phone and a tablet of one user, deliver one message, and look at the pushes."""
    daemon.start()
    say(
        f"Started twistd -n xapsd --config {daemon.config.name}, which listens on "
        f"127.0.0.1:{daemon.port} and on {daemon.socket.name}"
    )

    answer = register_as_the_plugin(daemon)
    phone = ModelPhone.from_plugin_answer("ACCOUNT-OF-THE-PHONE", PHONE, answer)
    say(
        f"Registered alice's phone over HTTP as the Dovecot plugin does; the phone was told the "
        f"topic {phone.topic} and will hear of {', '.join(sorted(phone.confirmed))}"
    )
    tablet = ModelPhone("ACCOUNT-OF-THE-TABLET", TABLET, phone.topic)
    line = daemon.register("alice", "ACCOUNT-OF-THE-TABLET", TABLET)
    expect(line.startswith("OK "), f"the UNIX socket answered {line!r}")
    say(f"Registered alice's tablet over the UNIX socket; the answer was: {line}")

    status, _ = daemon.http_notify("alice", "INBOX")
    expect(status == 200, f"the notice was answered with {status}")
    say("Told the daemon that alice has new mail in INBOX")

    for _ in (PHONE, TABLET):
        push = next_push(standin)
        headers = push["headers"]
        say(f"APNs got POST {push['path']}")
        for name in sorted(name for name in headers if name.startswith("apns-")):
            say(f"         {name}: {headers[name]}")
        say(f"         {json.dumps(push['payload'])}")
        expect(push["status"] == 200, f"the stand-in refused it: {push['reason']}")
        device = phone if push["device_token"] == PHONE else tablet
        effect = device.receive(push)
        expect(not isinstance(effect, Ignored), f"the device ignores it: {effect}")
        say(f"The {'phone' if device is phone else 'tablet'} {effect}")
    status_of_end = daemon.stop()
    expect(status_of_end == 0, f"the daemon ended with status {status_of_end}")
    say("Stopped the daemon")


def register_as_the_plugin(daemon: Daemon) -> bytes:
    """What dovecot-xaps-plugin sends, byte for byte but for the date; returns the body it gets."""
    body = (
        f'{{"ApsAccountId":"ACCOUNT-OF-THE-PHONE","ApsDeviceToken":"{PHONE.upper()}",'
        '"ApsSubtopic":"com.apple.mobilemail","Username":"alice",'
        '"Mailboxes": ["INBOX","Sent Messages"]}'
    ).encode()
    head = (
        f"POST /register HTTP/1.1\r\nHost: 127.0.0.1:{daemon.port}\r\n"
        f"Date: {formatdate(usegmt=True)}\r\nContent-Length: {len(body)}\r\n"
        "Connection: Keep-Alive\r\nContent-Type: application/json; charset=utf-8\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as connection:
        connection.sendall(head + body)
        answer = connection.recv(65536)
    status, _, rest = answer.partition(b"\r\n")
    expect(b" 200 " in status, f"the registration was answered with {status!r}")
    return rest.partition(b"\r\n\r\n")[2]


_seen = 0


def next_push(standin: PythonChild) -> dict[str, Any]:
    """The next push that the stand-in tells of."""
    global _seen  # noqa: PLW0603
    line = standin.wait_for('"device_token"', since=_seen)
    _seen = standin.lines.index(line, _seen) + 1
    push: dict[str, Any] = json.loads(line)
    return push


def expect(good: bool, otherwise: str) -> None:
    """Stop here if it is not as it should be."""
    if not good:
        raise RuntimeError(otherwise)


def say(text: str) -> None:
    """One line for the person who watches."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
