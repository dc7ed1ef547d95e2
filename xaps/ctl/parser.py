"""The command line of ``xapsctl``: what can be said, and the help that teaches it."""

from __future__ import annotations

import argparse
from pathlib import Path

from xaps import __version__
from xaps.config.table import DEFAULT_PATH

_EXIT = """\
Exit status: 0 good; 1 not all is well, or the answer is no; 2 the command line, the configuration
or a file cannot be used; 69 there is no daemon to ask.
"""

_ABOUT = """\
Asks and commands the running xapsd over its control socket, which the configuration names
(controlSocket).

Most often:
  xapsctl status             is all well, and if not, why?
  xapsctl devices alice      which phones of alice's are registered?
  xapsctl push alice         does a push reach her phones, and if not, what does Apple say?
"""


def parser() -> argparse.ArgumentParser:
    """A new parser."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--config", metavar="FILE", type=Path, help=f"the configuration (default: {DEFAULT_PATH})"
    )
    common.add_argument(
        "--socket", metavar="PATH", type=Path, help="the control socket, if not the configuration's"
    )
    common.add_argument("--json", action="store_true", help="answer in JSON, for programs")
    top = argparse.ArgumentParser(
        prog="xapsctl",
        description=_ABOUT,
        epilog=f"'xapsctl COMMAND --help' tells more about a command.\n\n{_EXIT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    top.add_argument(
        "--version",
        action="version",
        version=f"xapsctl {__version__}",
        help="print the version and exit",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, summary: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n\n{more}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common],
            allow_abbrev=False,
        )

    command(
        "status",
        "show on one screen whether all is well",
        "'good': pushes go out. 'starting': the first connection to APNs is being made.\n"
        "'degraded': pushes go out or wait, but something needs a look, such as a certificate\n"
        "that expires in less than 14 days. 'failing': no mail is pushed. What is wrong is said\n"
        "below, after an exclamation mark. Exits with 0 only if it is good.",
    )
    devices = command(
        "devices",
        "list the registered phones",
        "Device tokens are shortened, since whoever has a credential can push to them. The last\n"
        "push is remembered since the daemon was started.",
    )
    devices.add_argument("user", metavar="USER", nargs="?", help="only this user's")
    forget = command(
        "forget",
        "drop a user's phones now",
        "A phone that still has the account registers again within a day, or when Mail is opened;\n"
        "to be rid of it, remove the account from the phone, or close it on the IMAP server.",
    )
    forget.add_argument("user", metavar="USER")
    forget.add_argument(
        "token",
        metavar="TOKEN",
        nargs="?",
        help="only the phone whose device token begins so, as 'xapsctl devices' shows it",
    )
    push = command(
        "push",
        "push to a user's phones now and tell what APNs says",
        "What APNs takes need not reach a phone that is switched off, or has Push switched off in\n"
        "Settings, Mail, Accounts, Fetch New Data. Exits with 0 only if APNs took all pushes.",
    )
    push.add_argument("user", metavar="USER")
    push.add_argument(
        "--mailbox", metavar="MAILBOX", default="INBOX", help="what has new mail (default: INBOX)"
    )
    export = command(
        "export",
        "write all registrations as the Go daemon's database.json",
        "The file holds the phones' device tokens: keep it to yourself. The format has room for\n"
        "one phone for each account id; what is left out is named. The daemon may be running.",
    )
    export.add_argument(
        "file", metavar="FILE", nargs="?", type=Path, help="where to; if not given, standard output"
    )
    imported = command(
        "import",
        "take over registrations from a database.json of the Go daemon",
        "Registrations that xapsd knows a newer state of stay as they are. The daemon must not be\n"
        "running: systemctl stop xapsd; xapsctl import FILE; systemctl start xapsd.",
    )
    imported.add_argument("file", metavar="FILE", type=Path)
    command(
        "check",
        "check the configuration and what it points to",
        "Needs no running daemon. Run it as the daemon's user, so that permissions are checked too:"
        "\nrunuser -u xapsd -- xapsctl check",
    )
    certificate = command(
        "certificate",
        "tell about the push credential",
        "Topic, environment, validity and whether key and certificate match: of the configured\n"
        "credential, or of the files that are named. Needs no running daemon. Exits with 0 if all\n"
        "is good, with 1 within 30 days of expiry, and with 2 if nothing can be pushed with it.",
    )
    certificate.add_argument(
        "paths", metavar="PATH", nargs="*", type=Path, help="files to look at instead"
    )
    command(
        "reload",
        "take up changed certificates and keys now",
        "The daemon looks at them every minute anyway. Other settings need a restart, which keeps\n"
        "what the daemon has accepted; IMAP servers do not repeat what they tell it meanwhile.",
    )
    command("metrics", "print what Prometheus gets")
    command(
        "completion",
        "print the completion for bash",
        "Needs argcomplete (python3-argcomplete): xapsctl completion > "
        "/etc/bash_completion.d/xapsctl",
    )
    return top
