"""The commands of ``xapsctl``: what each does, and, as its docstring, the help that teaches it."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from xaps.admin.words import credential
from xaps.config.reading import DEFAULT_PATH, Config, load
from xaps.ctl import answers
from xaps.ctl.client import BAD, CtlError, DaemonClient, notify
from xaps.system.console import confirmed, counted
from xaps.system.files import replace_file

Command = Callable[["Commands"], int]

DEFAULT_SOCKET = Path(Config().control_socket)

ARGUMENTS: dict[str, list[tuple[str, dict[str, Any]]]] = {}
"""What a command takes, by the method's name: the name and, as argparse has it, what it is."""


def _argument(name: str, **settings: Any) -> Callable[[Command], Command]:
    def declared(command: Command) -> Command:
        ARGUMENTS.setdefault(command.__name__, []).insert(0, (name, settings))
        return command

    return declared


class Commands:
    """A command line. Each public method is a command; it prints and returns the exit status.

    What only some import, they import late: it takes longer than the others do altogether.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._file: Path = options.config or DEFAULT_PATH

    def status(self) -> int:
        """Show on one screen whether all is well.

        'good': pushes go out. 'starting': the first connection to APNs is being made.
        'degraded': pushes go out or wait, but something needs a look, such as a certificate
        that expires in less than 14 days. 'failing': no mail is pushed, or phones or notices of
        new mail are refused. What is wrong is said below, after an exclamation mark, and since
        when. Exits with 0 only if it is good.
        """
        answer = self._daemon().get("/status")
        self._tell(answer, answers.status(answer))
        return 0 if answer["health"] == "good" else BAD

    @_argument("user", metavar="USER")
    def explain(self) -> int:
        """Tell why a user's phones get no mail, or that they do.

        The first line says it; then comes what is known of each phone, and the command that helps
        next. What is remembered, for 30 days, survives a restart: the last notice for the user, the
        last push to each phone, and why phones were dropped. Exits with 0 if Apple took the last
        push, or one waits as it should; otherwise with 1.
        """
        answer = self._daemon().get("/explain", user=self._options.user)
        self._tell(answer, answers.explanation(answer))
        return 0 if answer["good"] else BAD

    @_argument("user", metavar="USER", nargs="?", help="only this user's")
    def devices(self) -> int:
        """List the registered phones.

        Device tokens are shortened, since whoever has a credential can push to them. A folder that
        is marked (not confirmed) is not pushed: the IMAP server did not tell the phone that it
        would be.
        """
        user = self._options.user
        phones = self._daemon().get("/devices", user=user)
        if phones or self._options.json:
            self._tell(phones, answers.devices(phones))
        elif not user:
            print("No phone is registered.")
        return self._found(phones) if user else 0

    @_argument("user", metavar="USER")
    @_argument(
        "token",
        metavar="TOKEN",
        nargs="?",
        help="only the phone whose device token begins so, as 'xapsctl devices' shows it",
    )
    @_argument("--yes", action="store_true", help="do not ask, however many phones these are")
    def forget(self) -> int:
        """Drop a user's phones now.

        Of several phones, without TOKEN, it asks first whether all are meant.
        A phone that still has the account registers again within a day, or when Mail is opened;
        to be rid of it, remove the account from the phone, or close it on the IMAP server.
        """
        token = self._options.token
        daemon = self._daemon()
        if token is None and not self._options.yes:
            known = daemon.get("/devices", user=self._options.user)
            if len(known) > 1 and not self._all_meant(known):
                print("Nothing is forgotten.", file=sys.stderr)
                return BAD
        phones = daemon.post("/forget", user=self._options.user, token=token)
        self._tell(phones, (f"Forgot {answers.name(phone)}" for phone in phones))
        return self._found(phones, f" whose token begins with {token}" if token else "")

    @_argument("user", metavar="USER")
    @_argument(
        "--mailbox", metavar="MAILBOX", default="INBOX", help="what has new mail (default: INBOX)"
    )
    def push(self) -> int:
        """Push to a user's phones now and tell what APNs says.

        What APNs takes need not reach a phone that is switched off, or has Push switched off in
        Settings, Mail, Accounts, Fetch New Data. Exits with 0 only if APNs took all pushes.
        """
        options = self._options
        found = self._daemon().post("/push", user=options.user, mailbox=options.mailbox)
        self._tell(found, answers.pushes(found))
        if not all(answer["outcome"] == "delivered" for answer in found):
            return BAD
        return self._found(found)

    @_argument("user", metavar="USER")
    @_argument("mailbox", metavar="MAILBOX", nargs="?", default="INBOX", help="default: INBOX")
    def notify(self) -> int:
        """Tell of new mail, as an IMAP server does.

        For mail that is delivered without Dovecot and Cyrus. The daemon is asked by HTTP at
        listenAddr, as the user who calls this may read it in the configuration, or at [::1]:11619.
        Answers before Apple does; a user without phones is no error.
        """
        unreadable = self._options.config is None and not os.access(self._file, os.R_OK)
        config = Config() if unreadable else load(self._file)
        told = notify(config, self._options.user, self._options.mailbox)
        self._tell({"told": told}, ["Pushing." if told else "No phone is to be pushed."])
        return 0

    @_argument(
        "--install",
        action="store_true",
        help="write it into Dovecot's configuration, where Dovecot accepts it",
    )
    @_argument(
        "--for",
        metavar="VERSION",
        dest="version",
        choices=("2.3", "2.4"),
        help="2.3 or 2.4; if not given, what is installed",
    )
    def dovecot(self) -> int:
        """Print the configuration of Dovecot that goes with that of xapsd.

        It lets phones register (imapSocket, with the package dovecot-xaps), and tells xapsd what
        happens in mailboxes (listenAddr). With --install it goes to
        /etc/dovecot/conf.d/95-xaps.conf, and is taken back if Dovecot refuses it.
        """
        from xaps.ctl import dovecot  # noqa: PLC0415

        config = load(self._file)
        if self._options.install:
            print("\n".join(dovecot.install(config)))
        else:
            version = self._options.version or dovecot.installed()
            print(dovecot.configuration(config, version), end="")
        return 0

    @_argument("--force", action="store_true", help="replace FILE if it is there")
    @_argument(
        "file", metavar="FILE", nargs="?", type=Path, help="where to; if not given, standard output"
    )
    def export(self) -> int:
        """Write all registrations as the Go daemon's database.json.

        The file holds the phones' device tokens: only its owner can read it. Where root writes it,
        that is the owner of the database's folder, as whom the Go daemon runs too. The format has
        room for one phone for each account id; what is left out is named. The daemon may be
        running.
        """
        from xaps.ctl import offline  # noqa: PLC0415

        file: Path | None = self._options.file
        if file is not None and (file.is_symlink() or file.exists()) and not self._options.force:
            raise CtlError(f"{file}: it is there already, and stays as it is; --force replaces it")
        config = None if self._options.socket else load(self._file)
        if config is None or offline.running(config):
            exported = offline.export_running(self._daemon())
        else:
            exported = offline.export_stopped(config)
        if file is None:
            self._print_utf8(exported.data.decode())
        else:
            try:
                owner = offline.owner_of_exports(config or Config())
                replace_file(file, exported.data, owner=owner)
            except OSError as error:
                raise CtlError(f"{file}: {error.strerror}") from None
        for phone in exported.left_out:
            why = "since the format has room for one phone for each account id"
            print(f"xapsctl: left out: {phone.key}, {why}", file=sys.stderr)
        return 0

    @_argument("file", metavar="FILE", type=Path)
    def import_(self) -> int:
        """Take over registrations from a database.json of the Go daemon.

        Registrations that xapsd knows a newer state of stay as they are. The daemon must not be
        running: systemctl stop xapsd; xapsctl import FILE; systemctl start xapsd.
        """
        from xaps.ctl import offline  # noqa: PLC0415

        found, added = offline.import_stopped(load(self._file), self._options.file)
        count = len(found.registrations)
        self._tell(
            {"added": added, "usable": count, "problems": list(found.problems)},
            [
                *(f"Not imported: {problem}" for problem in found.problems),
                f"Added {added} of {counted(count, 'registration')}; the others are known already",
            ],
        )
        return BAD if found.problems else 0

    def check(self) -> int:
        """Check the configuration and what it points to.

        Needs no running daemon. Run it as the daemon's user, so that permissions are checked too:
        runuser -u xapsd -- xapsctl check
        """
        from xaps.ctl import offline  # noqa: PLC0415

        bad, lines = offline.check_config(self._file)
        self._tell({"good": not bad, "lines": lines}, lines)
        return BAD if bad else 0

    @_argument("paths", metavar="PATH", nargs="*", type=Path, help="files to look at instead")
    def certificate(self) -> int:
        """Tell about the push credentials.

        Topic, environment, validity and whether key and certificate match: of the configured
        ones, or of the files that are named. Needs no running daemon. Exits with 0 if all
        is good, with 1 within 30 days of expiry, and with 2 if nothing can be pushed with it.
        """
        from xaps.credentials.report import exit_status  # noqa: PLC0415
        from xaps.ctl import offline  # noqa: PLC0415

        found = offline.certificate_reports(self._file, self._options.paths, time.time())
        lines = (line for report in found for line in report.lines())
        self._tell([report.as_json() for report in found], lines)
        return exit_status(found)

    @_argument(
        "--domain", metavar="DOMAIN", required=True, help="of the mail addresses: example.org"
    )
    @_argument(
        "--key",
        metavar="FILE",
        type=Path,
        help="where to put the key (default: push.key beside xapsd.yaml)",
    )
    def certificate_request(self) -> int:
        """Make a private key and the request for a push certificate.

        The request (.csr) is written beside the key. You upload it to Apple's developer portal,
        which makes the certificate; what to do is printed. Files that exist are not touched. If
        you are root, the group xapsd may read the key; otherwise only you. Needs no running daemon.
        """
        from xaps.credentials.certificate import CredentialError  # noqa: PLC0415
        from xaps.credentials.request import make_request  # noqa: PLC0415

        key = self._options.key or self._file.parent / "push.key"
        try:
            made = make_request(self._options.domain, key.absolute())
        except CredentialError as error:
            raise CtlError(str(error)) from None
        self._tell(made.as_json(), made.lines(self._file))
        return 0

    def reload(self) -> int:
        """Take up changed certificates and keys now.

        The daemon looks at them every minute anyway. Exits with 0 only if all of them can be used:
        what is refused is told, and the credential of before stays in use. Other settings need a
        restart, which keeps what the daemon has accepted; IMAP servers do not repeat what they tell
        it meanwhile.
        """
        answer = self._daemon().post("/reload")
        found = answer["credentials"]
        lines = []
        for entry in found:
            refused = entry["refused"]
            texts = [f"No credential can be used: {entry['problem']}"]
            if entry["credential"] is not None:
                until = " until xapsd restarts" if refused else ""
                using = credential(entry["credential"], answer["now"])
                texts = [f"In use{until}: {using}"]
            if refused is not None:
                texts.insert(0, f"Refused: {refused['why']}")
            lines += [f"{entry['name']}: {text}" if len(found) > 1 else text for text in texts]
        self._tell(answer, lines)
        good = all(entry["credential"] and not entry["refused"] for entry in found)
        return 0 if good else BAD

    def metrics(self) -> int:
        """Print what Prometheus gets."""
        self._print_utf8(self._daemon().ask("/metrics"))
        return 0

    def completion(self) -> int:
        """Print the completion for bash.

        Needs argcomplete (python3-argcomplete):
        xapsctl completion > /etc/bash_completion.d/xapsctl
        """
        try:
            from argcomplete.shell_integration import shellcode  # noqa: PLC0415 - may be missing
        except ImportError:
            raise CtlError(
                "completion needs argcomplete, which is not installed: apt install "
                "python3-argcomplete, or pip install 'xaps[completion]'"
            ) from None
        print(shellcode(["xapsctl"]))
        return 0

    def _daemon(self) -> DaemonClient:
        """By its control socket, which need not be for those who may read the configuration."""
        options = self._options
        if options.socket is not None:
            return DaemonClient(options.socket)
        if options.config is None and not os.access(self._file, os.R_OK):
            return DaemonClient(DEFAULT_SOCKET)
        path = load(self._file).control_socket
        if not path:
            raise CtlError(f"{self._file}: controlSocket is empty, so xapsd cannot be asked")
        return DaemonClient(DEFAULT_SOCKET if path.startswith("systemd:") else Path(path))

    def _all_meant(self, phones: Sequence[Any]) -> bool:
        """Ask; raises :class:`CtlError` where there is nobody to ask."""
        number = counted(len(phones), "phone")
        lines = [f"  {answers.name(phone)}\n" for phone in phones]
        said = confirmed(f"{''.join(lines)}Forget all of these {number}?")
        if said is None:
            raise CtlError(
                f"{self._options.user} has {number}: name one by its TOKEN ('xapsctl devices' "
                "shows it), or give --yes for all"
            )
        return said

    def _found(self, phones: Sequence[Any], which: str = "") -> int:
        if phones:
            return 0
        print(f"xapsctl: no phone of {self._options.user}'s{which} is registered", file=sys.stderr)
        return BAD

    def _tell(self, answer: Any, lines: Iterable[str]) -> None:
        for line in [json.dumps(answer, indent=2)] if self._options.json else lines:
            print(line)

    def _print_utf8(self, text: str) -> None:
        """Print what is UTF-8 in any locale."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        sys.stdout.write(text)


COMMANDS: dict[str, Command] = {
    name.removesuffix("_").replace("_", " "): command
    for name, command in vars(Commands).items()
    if not name.startswith("_")
}
