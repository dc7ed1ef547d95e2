"""What APNs does wrong, to everybody or to the tokens that one user made up."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from typing import Any

from benchmarks.siege.kinds import Attack, Report, declare, kind
from benchmarks.siege.stage import DEAD, Stage
from benchmarks.siege.users import register
from tests.standins.steps import Answer

DELETED = 3
"""Phones that a storm of 410 may cost before it is one."""
RESUMED = 30.0
"""Seconds in which all addresses of APNs are to be tried."""
MADE_UP = "dead"
"""What the device tokens begin with that were never Apple's."""


def _to_everything(answer: Answer, allowed: int = 0) -> Attack:
    """APNs says so of every push.

    :param allowed: how many phones may be deleted for it.
    """

    def attack(stage: Stage, rng: random.Random, seconds: float) -> Report:
        with stage.apple:
            stage.honest.away.set()
            before = stage.honest_on_disk()
            stage.apns_does(answer)
            time.sleep(seconds)
            lost = len(before - stage.honest_on_disk())
            stage.apns_is_well()
            stage.honest.away.clear()
        wrong = [f"{lost} of {len(before)} phones were deleted"] if lost > allowed else []
        sent = f"{answer.status} {answer.reason or 'HTML'} to everything"
        return Report(sent, f"deleted {lost} phones", wrong)

    return attack


_GONE = Answer(410, "Unregistered", timestamp=int(time.time() * 1000))
_HTML = Answer(410, raw=b"<html><title>410 Gone</title></html>")
_LASTS: dict[str, Any] = {"lasting": 140, "names": {"pushes"}, "within": 130}
declare("server errors", "apple", 8, _to_everything(Answer(500, "InternalServerError")), **_LASTS)
declare("gone in HTML", "apple", 8, _to_everything(_HTML), **_LASTS)
declare("gone in JSON", "apple", 8, _to_everything(_GONE, DELETED), **_LASTS)
declare("bad tokens", "apple", 8, _to_everything(Answer(400, "BadDeviceToken")), **_LASTS)


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
        alarm = any(trouble["cause"] == "pushes" for trouble in stage.doors.status()["troubles"])
        stage.apns_is_well()
    wrong = [] if others else ["no push to anybody else"]
    wrong += ["status calls it a failure of all pushes"] if alarm else []
    return Report(f"{len(tokens)} tokens of one user", f"tried {told}, pushed {others} more", wrong)


@kind("apple", 12)
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
        while not resumed and time.monotonic() - begun < RESUMED + 2:
            time.sleep(0.5)
            resumed = any(at > since + 0.5 for at in stage.honest.delivered)
        took = time.monotonic() - begun
    for connection in accepted:
        connection.close()
    did = f"pushed again after {took:.0f} s" if resumed else f"no push for {took:.0f} s"
    return Report(f"{len(accepted)} connections hang in TLS", did, [] if resumed else [did])
