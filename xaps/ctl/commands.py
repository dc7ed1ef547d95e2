"""The commands of ``xapsctl``: what each does, and how it fails."""

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
from xaps.config import DEFAULT_PATH
from xaps.config.reading import Config, ConfigError, load
from xaps.ctl import answers
from xaps.ctl.client import BAD, OTHER_VERSION, UNUSABLE, CtlError, DaemonClient, notify
from xaps.system.console import confirmed, counted
from xaps.system.files import replace_file


def run(options: argparse.Namespace) -> int:
    """Run the command that the command line names, and tell how it failed."""
    try:
        command: Callable[[], int] = getattr(
            Commands(options), f"do_{options.command.replace(' ', '_')}"
        )
        return command()
    except CtlError as error:
        print(f"xapsctl: {error}", file=sys.stderr)
        return error.status
    except KeyError as error:
        print(f"xapsctl: xapsd's answer has no {error}; {OTHER_VERSION}", file=sys.stderr)
        return BAD
    except ConfigError as error:
        print(error, file=sys.stderr)
        return UNUSABLE


class Commands:
    """A command line, for the commands that ``xaps/ctl/usage.py`` tells of. Each prints and returns
    the exit status.

    What only some import, they import late: it takes longer than the others do altogether.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._file: Path = options.config or DEFAULT_PATH

    def do_status(self) -> int:
        answer = self._daemon().get("/status")
        self._tell(answer, answers.status(answer))
        return 0 if answer["health"] == "good" else BAD

    def do_explain(self) -> int:
        answer = self._daemon().get("/explain", user=self._options.user)
        self._tell(answer, answers.explanation(answer))
        return 0 if answer["good"] else BAD

    def do_devices(self) -> int:
        user = self._options.user
        phones = self._daemon().get("/devices", user=user)
        if phones or self._options.json:
            self._tell(phones, answers.devices(phones))
        elif not user:
            print("No phone is registered.")
        return self._found(phones) if user else 0

    def do_nodes(self) -> int:
        answer = self._daemon().get("/status")
        if "cluster" not in answer:
            text = "databaseUrl is not set, so there are no other nodes: see docs/cluster.rst"
            raise CtlError(text, BAD)
        cluster = answer["cluster"]
        self._tell(cluster["nodes"], answers.nodes(answer))
        alone = cluster["away"] or cluster["error"]
        return BAD if alone or not all(each["alive"] for each in cluster["nodes"]) else 0

    def do_nodes_forget(self) -> int:
        name = self._options.node
        answer = self._daemon().post("/forget-node", node=name)
        took = f"; this node took over {counted(answer['adopted'], 'push')}"
        self._tell(answer, [f"Forgot {name}{took if answer['adopted'] else ''}"])
        return 0

    def do_forget(self) -> int:
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

    def do_push(self) -> int:
        options = self._options
        found = self._daemon().post("/push", user=options.user, mailbox=options.mailbox)
        self._tell(found, answers.pushes(found))
        if not all(answer["outcome"] == "delivered" for answer in found):
            return BAD
        return self._found(found)

    def do_notify(self) -> int:
        unreadable = self._options.config is None and not os.access(self._file, os.R_OK)
        config = Config() if unreadable else load(self._file)
        told = notify(config, self._options.user, self._options.mailbox)
        self._tell({"told": told}, ["Pushing." if told else "No phone is to be pushed."])
        return 0

    def do_dovecot(self) -> int:
        from xaps.ctl import dovecot  # noqa: PLC0415

        config = load(self._file)
        if self._options.install:
            print("\n".join(dovecot.install(config)))
        else:
            version = self._options.version or dovecot.installed()
            print(dovecot.configuration(config, version), end="")
        return 0

    def do_export(self) -> int:
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

    def do_import(self) -> int:
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

    def do_check(self) -> int:
        from xaps.ctl import offline  # noqa: PLC0415

        bad, lines = offline.check_config(self._file)
        self._tell({"good": not bad, "lines": lines}, lines)
        return BAD if bad else 0

    def do_certificate(self) -> int:
        from xaps.credentials.report import exit_status  # noqa: PLC0415
        from xaps.ctl import offline  # noqa: PLC0415

        found = offline.certificate_reports(self._file, self._options.paths, time.time())
        lines = (line for report in found for line in report.lines())
        self._tell([report.as_json() for report in found], lines)
        return exit_status(found)

    def do_certificate_request(self) -> int:
        from xaps.credentials.certificate import CredentialError  # noqa: PLC0415
        from xaps.credentials.request import make_request  # noqa: PLC0415

        key = self._options.key or self._file.parent / "push.key"
        try:
            made = make_request(self._options.domain, key.absolute())
        except CredentialError as error:
            raise CtlError(str(error)) from None
        self._tell(made.as_json(), made.lines(self._file))
        return 0

    def do_reload(self) -> int:
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

    def do_metrics(self) -> int:
        self._print_utf8(self._daemon().ask("/metrics"))
        return 0

    def do_completion(self) -> int:
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
        options, default = self._options, Path(Config().control_socket)
        if options.socket is not None:
            return DaemonClient(options.socket)
        if options.config is None and not os.access(self._file, os.R_OK):
            return DaemonClient(default)
        path = load(self._file).control_socket
        if not path:
            raise CtlError(f"{self._file}: controlSocket is empty, so xapsd cannot be asked")
        return DaemonClient(default if path.startswith("systemd:") else Path(path))

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
        # All of it, or nothing where the answer lacks something.
        for line in [json.dumps(answer, indent=2)] if self._options.json else list(lines):
            print(line)

    def _print_utf8(self, text: str) -> None:
        """Print what is UTF-8 in any locale."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        sys.stdout.write(text)
