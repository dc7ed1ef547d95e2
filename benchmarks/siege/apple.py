"""What APNs does wrong, to everybody or to the tokens that one user made up."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

from benchmarks.siege.kinds import Report, kind
from benchmarks.siege.stage import DEAD, Stage
from benchmarks.siege.users import register
from tests.standins.steps import Answer

DELETED = 3
"""Phones that a storm of 410 may cost before it is one."""
RESUMED = 30.0
"""Seconds in which all addresses of APNs are to be tried."""
MADE_UP = "dead"
"""What the device tokens begin with that were never Apple's."""
FAILING = r"(?i)apns|apple|push|token"


def _everybody(stage: Stage, seconds: float, answer: Answer, allowed: int = 0) -> Report:
    """APNs answers everything so.

    :param allowed: how many phones may be lost by it.
    """
    with stage.apple:
        before = stage.phones()
        stage.honest.away.set()
        stage.apns_does(answer)
        time.sleep(seconds)
        stage.apns_is_well()
        lost = before - stage.phones()
        stage.honest.away.clear()
    wrong = [f"{lost} of {before} phones were deleted"] if lost > allowed else []
    return Report(f"{answer.status} {answer.reason} to everything", f"deleted {lost} phones", wrong)


@kind("apple", 12, lasting=140, names=FAILING, within=125)
def server_errors(stage: Stage, rng: random.Random, seconds: float) -> Report:
    return _everybody(stage, seconds, Answer(500, "InternalServerError"))


@kind("apple", 8, lasting=140, names=FAILING, within=125)
def gone_in_html(stage: Stage, rng: random.Random, seconds: float) -> Report:
    answer = Answer(410, raw=b"<html><title>410 Gone</title></html>")
    return _everybody(stage, seconds, answer)


@kind("apple", 8, names=FAILING, within=6)
def gone_in_json(stage: Stage, rng: random.Random, seconds: float) -> Report:
    answer = Answer(410, "Unregistered", timestamp=int(time.time() * 1000))
    return _everybody(stage, seconds, answer, DELETED)


@kind("apple", 8, names=FAILING, within=6)
def bad_tokens(stage: Stage, rng: random.Random, seconds: float) -> Report:
    return _everybody(stage, seconds, Answer(400, "BadDeviceToken"))


@kind("apple", 10)
def made_up_tokens(stage: Stage, rng: random.Random, seconds: float) -> Report:
    """One user's; the pushes of all others go on."""
    tokens = [f"{MADE_UP}{rng.getrandbits(64):016x}" for _ in range(60)]
    user = f"maker{rng.randrange(1000)}"
    with stage.apple:
        stage.apns_does(*(Answer(400, "BadDeviceToken", device_token=token) for token in tokens))
        for token in tokens:
            with stage.doors.tcp() as connection:
                connection.sendall(register(user, token, ["INBOX"]))
                connection.recv(4096)
        stage.daemon.notify(user)
        time.sleep(seconds / 2)
        since = time.time()
        time.sleep(seconds / 2)
        stage.honest.look()
        others = sum(at >= since for at in stage.honest.delivered)
        told = sum(push["device_token"].startswith(MADE_UP) for push in stage.apns.pushes)
        why = stage.doors.status()["why"]
        stage.apns_is_well()
    wrong = [] if others and not why else [f"{others} pushes to others; status says {why}"]
    return Report(f"{len(tokens)} tokens of one user", f"tried {told}, pushed {others} more", wrong)


@kind("apple", 40)
def dead_first_address(stage: Stage, rng: random.Random, seconds: float) -> Report:
    """TCP works there, TLS hangs; the connection that there is goes away."""
    accepted: list[socket.socket] = []
    with stage.apple, contextlib.ExitStack() as stack:
        dead = stack.enter_context(socket.create_server((DEAD, stage.apns.port)))
        stack.callback(dead.shutdown, socket.SHUT_RDWR)
        stack.callback(stage.pretend, "dead-address", None)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(dead.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        stage.pretend("dead-address")
        begun, since = time.monotonic(), time.time()
        stage.apns.drop_connections()
        resumed = False
        while not resumed and time.monotonic() - begun < seconds:
            time.sleep(0.5)
            resumed = any(at > since + 0.5 for at in stage.honest.delivered)
        took = time.monotonic() - begun
    for connection in accepted:
        connection.close()
    did = f"pushed again after {took:.0f} s" if resumed else f"no push for {took:.0f} s"
    late = took > RESUMED + 2
    return Report(f"{len(accepted)} connections that hang in TLS", did, [did] if late else [])
