"""The command line of ``xapsctl``: its commands, with the help that teaches them, and its options.

The help needs this module alone, and so it imports next to nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xaps import __version__
from xaps.config import DEFAULT_PATH

ABOUT = """\
Asks and commands the running xapsd over its control socket, which the configuration names
(controlSocket).
"""

EXAMPLES = """\
  xapsctl status             is all well, and if not, why?
  xapsctl explain alice      why do her phones get no mail?
  xapsctl devices alice      which phones of alice's are registered?
  xapsctl push alice         does a push reach her phones, and if not, what does Apple say?
"""

EXIT = """\
Exit status: 0 good; 1 not all is well, or the answer is no; 2 the command line, the configuration
or a file cannot be used; 69 there is no daemon to ask.
"""

OPTIONS = {
    "--config": ("FILE", f"the configuration (default: {DEFAULT_PATH})"),
    "--socket": ("PATH", "the control socket, if not the configuration's"),
    "--json": ("", "answer in JSON, for programs"),
}
"""The value and the help of what may stand in front of every command and behind it."""

COMMANDS = {
    "status": """\
Show on one screen whether all is well.

'good': pushes go out. 'starting': the first connection to APNs is being made.
'degraded': pushes go out or wait, but something needs a look, such as a certificate
that expires in less than 14 days. 'failing': no mail is pushed, or phones or notices of
new mail are refused. What is wrong is said below, after an exclamation mark, and since
when. Exits with 0 only if it is good.
""",
    "explain": """\
Tell why a user's phones get no mail, or that they do.

The first line says it; then comes what is known of each phone, and the command that helps
next. What is remembered, for 30 days, survives a restart: the last notice for the user, the
last push to each phone, and why phones were dropped. Exits with 0 if Apple took the last
push, or one waits as it should; otherwise with 1.
""",
    "devices": """\
List the registered phones.

Device tokens are shortened, since whoever has a credential can push to them. A folder that
is marked (not confirmed) is not pushed: the IMAP server did not tell the phone that it
would be.
""",
    "forget": """\
Drop a user's phones now.

Of several phones, without TOKEN, it asks first whether all are meant.
A phone that still has the account registers again within a day, or when Mail is opened;
to be rid of it, remove the account from the phone, or close it on the IMAP server.
""",
    "push": """\
Push to a user's phones now and tell what APNs says.

What APNs takes need not reach a phone that is switched off, or has Push switched off in
Settings, Mail, Accounts, Fetch New Data. Exits with 0 only if APNs took all pushes.
""",
    "nodes": """\
List the nodes, where several share their phones (databaseUrl).

When each was last alive, its changes that it has to tell the others, the others' that it
has yet to hear of, how many pushes it took over from dead nodes, how far its clock is ahead
of PostgreSQL's, and the topics of its credentials. Exits with 0 only if PostgreSQL is there
and all nodes are alive.
""",
    "nodes forget": """\
Forget a node that is gone for good.

It must have been silent for 30 seconds. What it still owes is pushed by this node, where it
has a credential for that. A node that comes back is known again. One that is silent for
31 days is forgotten by itself.
""",
    "notify": """\
Tell of new mail, as an IMAP server does.

For mail that is delivered without Dovecot and Cyrus. The daemon is asked by HTTP at
listenAddr, as the user who calls this may read it in the configuration, or at [::1]:11619.
Answers before Apple does; a user without phones is no error.
""",
    "dovecot": """\
Print the configuration of Dovecot that goes with that of xapsd.

It lets phones register (imapSocket, with the package dovecot-xaps), and tells xapsd what
happens in mailboxes (listenAddr). With --install it goes to
/etc/dovecot/conf.d/95-xaps.conf, and is taken back if Dovecot refuses it.
""",
    "export": """\
Write all registrations as the Go daemon's database.json.

The file holds the phones' device tokens: only its owner can read it. Where root writes it,
that is the owner of the database's folder, as whom the Go daemon runs too. The format has
room for one phone for each account id; what is left out is named. The daemon may be
running.
""",
    "import": """\
Take over registrations from a database.json of the Go daemon.

Registrations that xapsd knows a newer state of stay as they are. The daemon must not be
running: systemctl stop xapsd; xapsctl import FILE; systemctl start xapsd.
""",
    "check": """\
Check the configuration and what it points to.

Needs no running daemon. Run it as the daemon's user, so that permissions are checked too:
runuser -u xapsd -- xapsctl check
""",
    "certificate": """\
Tell about the push credentials.

Topic, environment, validity and whether key and certificate match: of the configured
ones, or of the files that are named. Needs no running daemon. Exits with 0 if all
is good, with 1 within 30 days of expiry, and with 2 if nothing can be pushed with it.
""",
    "certificate request": """\
Make a private key and the request for a push certificate.

The request (.csr) is written beside the key. You upload it to Apple's developer portal,
which makes the certificate; what to do is printed. Files that exist are not touched. If
you are root, the group xapsd may read the key; otherwise only you. Needs no running daemon.
""",
    "reload": """\
Take up changed certificates and keys now.

The daemon looks at them every minute anyway. Exits with 0 only if all of them can be used:
what is refused is told, and the credential of before stays in use. Other settings need a
restart, which keeps what the daemon has accepted; IMAP servers do not repeat what they tell
it meanwhile.
""",
    "metrics": """\
Print what Prometheus gets.
""",
    "completion": """\
Print the completion for bash.

Needs argcomplete (python3-argcomplete):
xapsctl completion > /etc/bash_completion.d/xapsctl
""",
}
"""The help of each command."""

Argument = tuple[str, dict[str, Any]]
"""The name of an argument and, as argparse has it, what it is."""


def _arg(name: str, **settings: Any) -> Argument:
    return name, settings


USER = _arg("user", metavar="USER")

ARGUMENTS = {
    "explain": [USER],
    "devices": [_arg("user", metavar="USER", nargs="?", help="only this user's")],
    "forget": [
        USER,
        _arg(
            "token",
            metavar="TOKEN",
            nargs="?",
            help="only the phone whose device token begins so, as 'xapsctl devices' shows it",
        ),
        _arg("--yes", action="store_true", help="do not ask, however many phones these are"),
    ],
    "push": [
        USER,
        _arg(
            "--mailbox",
            metavar="MAILBOX",
            default="INBOX",
            help="what has new mail (default: INBOX)",
        ),
    ],
    "nodes forget": [_arg("node", metavar="NAME")],
    "notify": [
        USER,
        _arg("mailbox", metavar="MAILBOX", nargs="?", default="INBOX", help="default: INBOX"),
    ],
    "dovecot": [
        _arg(
            "--install",
            action="store_true",
            help="write it into Dovecot's configuration, where Dovecot accepts it",
        ),
        _arg(
            "--for",
            metavar="VERSION",
            dest="version",
            choices=("2.3", "2.4"),
            help="2.3 or 2.4; if not given, what is installed",
        ),
    ],
    "export": [
        _arg("--force", action="store_true", help="replace FILE if it is there"),
        _arg(
            "file",
            metavar="FILE",
            nargs="?",
            type=Path,
            help="where to; if not given, standard output",
        ),
    ],
    "import": [_arg("file", metavar="FILE", type=Path)],
    "certificate": [
        _arg("paths", metavar="PATH", nargs="*", type=Path, help="files to look at instead")
    ],
    "certificate request": [
        _arg(
            "--domain", metavar="DOMAIN", required=True, help="of the mail addresses: example.org"
        ),
        _arg(
            "--key",
            metavar="FILE",
            type=Path,
            help="where to put the key (default: push.key beside xapsd.yaml)",
        ),
    ],
}
"""Those of each command that has some."""


def parser() -> argparse.ArgumentParser:
    """A new parser."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for option, (value, text) in OPTIONS.items():
        kind: dict[str, Any] = {"metavar": value, "type": Path} if value else {}
        common.add_argument(option, help=text, **(kind or {"action": "store_true"}))
    form: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "parents": [common],
        "allow_abbrev": False,
    }
    top = argparse.ArgumentParser(
        prog="xapsctl",
        description=f"{ABOUT}\nMost often:\n{EXAMPLES}",
        epilog=f"'xapsctl COMMAND --help' tells more about a command.\n\n{EXIT}",
        **form,
    )
    version = f"xapsctl {__version__}"
    top.add_argument(
        "--version", action="version", version=version, help="print the version and exit"
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, description in COMMANDS.items():
        summary = description.partition("\n")[0].removesuffix(".")
        summary = summary[:1].lower() + summary[1:]
        below = commands.add_parser(name, help=summary, description=description, **form)
        for argument, settings in ARGUMENTS.get(name, ()):
            below.add_argument(argument, **settings)
    return top
