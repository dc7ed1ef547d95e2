"""The installed Debian package, as an administrator has it. Run by root, from the checkout::

    /usr/bin/python3 -m tests.package.installed dist/xapsd_VERSION_all.deb \\
        dist/dovecot-xaps_VERSION_ARCHITECTURE.deb

installs xapsd with apt, runs it as its unit has it (`tests.package.unit`) against a stand-in
for APNs, upgrades, removes and purges it; then both packages, with the machine's own Dovecot
(`tests.package.dovecot`). Without an argument it tests the xapsd that is installed, and leaves that
installed. The machine must be in use neither for xapsd nor for Dovecot.

Each check is a line, ``ok ...`` or ``FAILED ...``, and the last line counts them.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import http.client
import json
import os
import pickle
import pwd
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import pki
from tests.package import dovecot, godaemon, unit
from tests.package.dovecot import MachineDovecot
from tests.peers.child import PATIENCE, Child, ChildError
from tests.peers.daemon import quoted
from tests.phone import ModelPhone, Refreshed
from tests.standins.process import APNsProcess

DOCS = Path(__file__).parents[2] / "docs"
CONFIG = Path("/etc/xapsd/xapsd.yaml")
STATE = Path("/var/lib/xapsd")
RUNTIME = Path("/run/xapsd")
SOCKET = RUNTIME / "xapsd.sock"
FOLDERS = (CONFIG.parent, STATE, RUNTIME)
SERVICE = Path("/lib/systemd/system/xapsd.service")
LIBRARY = Path("/usr/lib/python3/dist-packages")
ENABLED = Path("/etc/systemd/system/multi-user.target.wants/xapsd.service")

PHONE = "4a" * 32
TABLET = "7b" * 32
ACCOUNT = "ACCOUNT-OF-ALICE"
TOPIC = "com.apple.mobilemail.push.org.example"

PR_GET_MDWE = 66
"""Of prctl(2): whether memory that is writable and executable is forbidden."""

GO_CONFIG = """\
# Set the loglevel to either
# trace, debug, error, fatal, info, panic or warn
# Default: warn
loglevel: info

# xapsd creates a json file to store the registration persistent on disk.
# This sets the location of the file.
databaseFile: /var/lib/xapsd/database.json

# xapsd listens on a socket for http/https requests from the dovecot plugin.
# This sets the address and port number of the listen socket.
listenAddr: '[::1]'
port: 11619

checkInterval: 20
delay: 30

appleId:
appleIdHashedPassword:
"""
GO_DATABASE = {
    "Users": {
        "alice": {
            "Accounts": {
                ACCOUNT: {
                    "DeviceToken": PHONE,
                    "Mailboxes": ["INBOX", "Sent"],
                    "RegistrationTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
            }
        }
    }
}

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
}


class Checks:
    """Counts and tells."""

    def __init__(self) -> None:
        self.good = 0
        self.bad = 0

    def __call__(self, what: str, good: bool, found: object = "") -> None:
        """One check; `found` is told if it failed."""
        if good:
            self.good += 1
            print(f"ok {what}", flush=True)
        else:
            self.bad += 1
            told = f"; found: {found}" if found != "" else ""
            print(f"FAILED {what}{told}", flush=True)


check = Checks()


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command as root has it after login; its stderr is told together with its output."""
    return subprocess.run(
        [os.fspath(word) for word in command],
        cwd="/",
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def apt(*words: str | Path) -> str:
    """Let apt do something; nobody is there to answer questions.

    :raises ChildError: it did not.
    """
    done = run("apt-get", "--yes", "--quiet", "--no-install-recommends", *words)
    if done.returncode:
        raise ChildError(f"apt-get {words[0]} failed:\n{done.stdout}")
    return done.stdout


def ctl(*words: str) -> subprocess.CompletedProcess[str]:
    return run("xapsctl", *words)


def mode(path: Path) -> str:
    """Owner, group and mode, as people write them."""
    if not path.exists():
        return "missing"
    found = path.stat()
    owner, group = pwd.getpwuid(found.st_uid).pw_name, grp.getgrgid(found.st_gid).gr_name
    return f"{owner}:{group} {stat.S_IMODE(found.st_mode):04o}"


def plugins() -> set[str]:
    """The modules in Twisted's cache of plugins."""
    return set(pickle.loads((LIBRARY / "twisted/plugins/dropin.cache").read_bytes()))


# ---------------------------------------------------------------- the daemon


class Service:
    """The daemon as systemd would start it, and what it tells systemd."""

    def __init__(self, folder: Path) -> None:
        address = folder / "notify"
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(address))
        address.chmod(0o666)
        self._told: list[str] = []
        before = time.monotonic()
        self._child = Child(
            unit.command(unit.read(SERVICE)),
            folder,
            environment={
                **ENVIRONMENT,
                "NOTIFY_SOCKET": str(address),
                "WATCHDOG_USEC": "2000000",
                # What the tests run with is nothing that the service has.
                "PYTHONPATH": "",
            },
        )
        try:
            self.wait_for("READY=1")
        except ChildError:
            self.close()
            raise
        self.start_time = time.monotonic() - before

    def wait_for(self, wanted: str, since: int = 0) -> str:
        """The first line to systemd, from this one on, that begins so."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for line in self._told[since:]:
                if line.startswith(wanted):
                    return line
            since = len(self._told)
            self._notices.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self._told += self._notices.recv(65536).decode().splitlines()
            except TimeoutError:
                log = "\n".join(self._child.lines[-20:])
                raise ChildError(
                    f"systemd was not told {wanted}; the log ends with:\n{log}"
                ) from None

    @property
    def told(self) -> int:
        """How many lines were told so far, for `wait_for`."""
        self._notices.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._told += self._notices.recv(65536).decode().splitlines()
        return len(self._told)

    @property
    def log(self) -> str:
        return "\n".join(self._child.lines)

    def state(self, name: str) -> str:
        """A field of ``/proc/PID/status``."""
        text = Path(f"/proc/{self._child.pid}/status").read_text()
        return dict(line.split(":", 1) for line in text.splitlines())[name].strip()

    def reload(self) -> None:
        """What systemd does to reload it."""
        for command in unit.read(SERVICE)["ExecReload"]:
            environment = {**ENVIRONMENT, "MAINPID": str(self._child.pid)}
            subprocess.run(shlex.split(command), env=environment, check=True)

    def stop(self) -> int:
        """What systemd does to stop it; returns the exit status."""
        return self._child.stop()

    def close(self) -> None:
        self._child.close()
        Path(self._notices.getsockname()).unlink(missing_ok=True)
        self._notices.close()


@contextlib.contextmanager
def service(folder: Path) -> Iterator[Service]:
    running = Service(folder)
    try:
        yield running
    finally:
        running.close()


def line(text: str) -> str:
    """Send one line over the UNIX socket; returns the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(SOCKET))
        connection.sendall(f"{text}\r\n".encode())
        with connection.makefile("r", encoding="utf-8", newline="") as answer:
            return answer.readline().rstrip("\r\n")


def notify(user: str) -> str:
    """Tell of new mail as older plugins do."""
    return line(
        f'NOTIFY dovecot-username={quoted(user)}\tdovecot-mailbox="INBOX"\tevents=("MessageNew")'
    )


def register(user: str, account: str, token: str) -> tuple[int, bytes]:
    """Register a phone as the Dovecot plugin does."""
    connection = http.client.HTTPConnection("::1", 11619, timeout=PATIENCE)
    try:
        content = {
            "ApsAccountId": account,
            "ApsDeviceToken": token,
            "ApsSubtopic": "com.apple.mobilemail",
            "Username": user,
            "Mailboxes": ["INBOX"],
        }
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/register", json.dumps(content), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def register_over_imap(user: str, account: str, token: str) -> str:
    """Register a phone as the plugin of dovecot-xaps does; returns all of the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(RUNTIME / "imap.sock"))
        arguments = (
            f'aps-version "2" aps-account-id "{account}" aps-device-token "{token}" '
            'aps-subtopic "com.apple.mobilemail" mailboxes (INBOX)'
        )
        connection.sendall(f"IMAP\t1\t{user}\t{arguments}\n".encode())
        answer = ""
        while not re.search(r"(?m)^(OK|NO|BAD).*\n", answer):
            more = connection.recv(4096)
            if not more:
                break
            answer += more.decode()
        return answer


# ---------------------------------------------------------------- the package


def version_before(package: Path, folder: Path) -> Path:
    """The same package with a lower version, and with a file that the new one no longer has."""
    tree = folder / "before"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    text = control.read_text()
    control.write_text(re.sub(r"(?m)^Version: (.*)$", r"Version: \1~before", text))
    (tree / "usr/share/xapsd/old").write_text("gone in the new version\n")
    before = folder / "xapsd_before.deb"
    build = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(before)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return before


def check_installation(said: str) -> None:
    """What the package has made, and said."""
    check("installing says that the service is not started", "but not started" in said, said)
    check("and why", "no push credential is configured" in said, said)
    check("and what to do next", "What to do next:" in said, said)
    account = pwd.getpwnam("xapsd")
    check("the user xapsd is a system user", account.pw_uid < 1000, account)
    check("who cannot log in", account.pw_shell == "/usr/sbin/nologin", account)
    check("and is at home in /var/lib/xapsd", account.pw_dir == str(STATE), account)
    check_modes("")
    check("/run/xapsd is there", mode(RUNTIME) == "xapsd:xapsd 0755", mode(RUNTIME))
    conffiles = run("dpkg-query", "--show", "--showformat=${Conffiles}", "xapsd").stdout
    check("the configuration is a conffile", str(CONFIG) in conffiles, conffiles)
    check("Twisted's cache of plugins knows xapsd", "xapsd_plugin" in plugins(), plugins())
    check("the service is enabled", ENABLED.is_symlink())
    sockets = ENABLED.parents[1] / "sockets.target.wants/xapsd.socket"
    check("its socket is not", not sockets.is_symlink())
    done = run("runuser", "-u", "xapsd", "--", "xapsd", "--check")
    check("xapsd --check exits with 78 without a credential", done.returncode == 78, done)
    done = ctl("status")
    check("xapsctl exits with 69 without a daemon", done.returncode == 69, done)
    check("and tells how to start it", "systemctl" in done.stdout, done.stdout)
    check_dependencies()
    check_unit()
    check_texts()


def check_dependencies() -> None:
    """A machine that has nothing else on it has to have all that is imported; what ``databaseUrl``
    needs is suggested only."""
    program = (
        "import sys; before = set(sys.modules)\n"
        "import importlib, pkgutil, twisted.internet.reactor, twisted.plugins.xapsd_plugin, xaps\n"
        "for module in pkgutil.walk_packages(xaps.__path__, 'xaps.'):\n"
        "    if not module.name.startswith('xaps.cluster.'): importlib.import_module(module.name)\n"
        "for name in set(sys.modules) - before: "
        "print(getattr(sys.modules[name], '__file__', None) or '')"
    )
    files = set(run("/usr/bin/python3", "-c", program).stdout.split())
    owners = run("dpkg", "--search", *sorted(file for file in files if str(LIBRARY) in file))
    imported = {line.partition(":")[0] for line in owners.stdout.splitlines()}
    check("the modules of the daemon belong to packages", len(imported) > 10, owners.stdout)
    kinds = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "enhances")]
    kinds += ["--no-breaks", "--no-replaces"]
    needed = run("apt-cache", "depends", "--recurse", *kinds, "xapsd").stdout
    undeclared = imported - set(re.findall(r"[\w.+-]+", needed))
    check("which it depends on", not undeclared, undeclared)


def check_modes(when: str) -> None:
    found = mode(CONFIG.parent)
    check(f"/etc/xapsd is for root and xapsd{when}", found == "root:xapsd 0750", found)
    found = mode(CONFIG)
    check(f"its xapsd.yaml too{when}", found == "root:xapsd 0640", found)
    found = mode(STATE)
    check(f"/var/lib/xapsd is for xapsd alone{when}", found == "xapsd:xapsd 0750", found)


def check_unit() -> None:
    done = run("systemd-analyze", "verify", SERVICE, SERVICE.with_suffix(".socket"))
    silent = (done.returncode, done.stdout) == (0, "")
    check("systemd-analyze verify finds nothing", silent, done.stdout)
    done = run("systemd-analyze", "security", "--offline=yes", SERVICE)
    match = re.search(r"exposure level for xapsd.service: ([\d.]+)", done.stdout)
    exposure = float(match[1]) if match else 10.0
    check(f"systemd-analyze security: {exposure}, at most 1.5", exposure <= 1.5, done.stdout)


def check_texts() -> None:
    listed = run("dpkg", "--listfiles", "xapsd").stdout.split()
    for page in ("man5/xapsd.yaml.5", "man8/xapsd.8", "man8/xapsctl.8"):
        path = Path(f"/usr/share/man/{page}.gz")
        check(f"{path.name} is in the package", str(path) in listed, listed)
        if path.exists():  # small systems leave manual pages out
            # What it says besides the page.
            done = run("sh", "-c", f"man --warnings --local-file {path} >/dev/null")
            check("and is good", (done.returncode, done.stdout) == (0, ""), done.stdout)
    pages = ["README.rst", "NEWS.rst", *(f"docs/{page.name}" for page in DOCS.iterdir())]
    for name in (*pages, "README.Debian", "examples/xapsd.yaml"):
        check(f"{name} is in the package", f"/usr/share/doc/xapsd/{name}" in listed, listed)
    script = "/usr/share/bash-completion/completions/xapsctl"
    line = "COMP_LINE='xapsctl de' COMP_POINT=10 COMP_TYPE=9 COMP_WORDBREAKS=' '"
    done = run("bash", "-c", f". {script}; {line}; _python_argcomplete xapsctl; echo $COMPREPLY")
    check("bash completes xapsctl de", done.stdout == "devices\n", done.stdout)


def configure(authority: pki.Authority, url: str) -> None:
    """What the administrator does, and what lets the daemon know the stand-in."""
    put(CONFIG.parent / "push.pem", authority.client(TOPIC).pem)
    put(CONFIG.parent / "roots.pem", authority.pem)
    with CONFIG.open("a") as file:
        file.write(
            "loglevel: debug\ncertificateFilePem: push.pem\n"
            f"apnsServer: {url}\napnsTrustRoots: /etc/xapsd/roots.pem\n"
        )


def put(path: Path, content: bytes) -> None:
    new = path.with_name("new")
    pki.write_private(new, content)
    shutil.chown(new, "root", "xapsd")
    new.chmod(0o640)
    new.replace(path)


def check_service(apns: APNsProcess, authority: pki.Authority, running: Service) -> None:
    """All that the running daemon is for."""
    print(f"   {running.start_time:.2f} s from start to ready, {running.state('VmRSS')} resident")
    check("systemd is told that it is ready", True)
    check("it runs as xapsd", running.state("Uid").split()[0] == str(pwd.getpwnam("xapsd").pw_uid))
    check("without capabilities", int(running.state("CapBnd"), 16) == 0, running.state("CapBnd"))
    check("and with filtered system calls", running.state("Seccomp") == "2")
    check("systemd is told signs of life", bool(running.wait_for("WATCHDOG=1")))
    status = running.wait_for("STATUS=")
    check("and a status", re.search(r"\b0 phones\b", status) is not None, status)
    found = mode(SOCKET), mode(RUNTIME / "control.sock")
    check("its sockets are for its group", found == ("xapsd:xapsd 0660",) * 2, found)
    check("its log has no traceback", "Traceback" not in running.log, running.log)
    check("nor complains about Twisted's cache", "dropin.cache" not in running.log, running.log)

    code, body = register("alice", ACCOUNT, PHONE)
    check("a registration is answered", code == 200, (code, body))
    phone = ModelPhone.from_plugin_answer(ACCOUNT, PHONE, body)
    check("with the topic of the certificate", phone.topic == TOPIC, phone.topic)
    answer = notify("alice")
    check("a notice is taken", answer.startswith("OK"), answer)
    (push,) = apns.wait_for(1)
    effect = phone.receive(push)
    check("it becomes a push", push["status"] == 200, push)
    check("that makes the phone look for mail", effect == Refreshed(frozenset(["INBOX"])), effect)
    check_control(apns)
    check_reload(authority, running)


def check_control(apns: APNsProcess) -> None:
    done = ctl("status")
    check("xapsctl status is good", done.returncode == 0 and "xapsd is good" in done.stdout, done)
    check("and knows the topic", TOPIC in done.stdout, done.stdout)
    done = ctl("--json", "status")
    check("xapsctl --json status is JSON", json.loads(done.stdout)["phones"] == 1, done)
    done = ctl("devices", "alice")
    check(
        "xapsctl devices lists the phone", "alice" in done.stdout and ACCOUNT in done.stdout, done
    )
    check("with its token shortened", PHONE not in done.stdout, done.stdout)
    done = ctl("push", "alice")
    check("xapsctl push tells that APNs took it", done.returncode == 0, done)
    check("and APNs got it", apns.wait_for(2)[1]["device_token"] == PHONE)
    register("bob", "ACCOUNT-OF-BOB", TABLET)
    apns.answer(TABLET, 410, "Unregistered", int(time.time() * 1000) + 60_000)
    done = ctl("push", "bob")
    told = done.returncode == 1 and "Unregistered" in done.stdout
    check("xapsctl push tells what APNs says against it", told, done)
    register("bob", "ACCOUNT-OF-BOB", TABLET)
    done = ctl("forget", "bob")
    check("xapsctl forget drops a phone", done.returncode == 0, done)
    done = ctl("devices", "bob")
    check("at once", done.returncode == 1, done)
    done = ctl("metrics")
    check("xapsctl metrics has metrics", "# HELP xaps" in done.stdout, done.stdout[:200])
    for name in ("process_resident_memory_bytes", "process_open_fds"):
        check(f"and {name}", f"\n{name} " in done.stdout, done.stdout[:200])


def check_reload(authority: pki.Authority, running: Service) -> None:
    put(CONFIG.parent / "push.pem", authority.client(f"{TOPIC}.new").pem)
    since = running.told
    running.reload()
    check("a reload is told to systemd", bool(running.wait_for("RELOADING=1", since)))
    check("and its end", bool(running.wait_for("READY=1", since)))
    done = ctl("status")
    check("the new certificate is in use", f"{TOPIC}.new" in done.stdout, done.stdout)
    put(CONFIG.parent / "push.pem", authority.client(TOPIC).pem)
    done = ctl("reload")
    check("xapsctl reload does the same", done.returncode == 0 and "In use" in done.stdout, done)


def check_stop(running: Service) -> None:
    since = running.told
    status = running.stop()
    check("SIGTERM ends it with status 0", status == 0, f"{status}\n{running.log[-2000:]}")
    check("systemd is told that it stops", bool(running.wait_for("STOPPING=1", since)))
    check("its socket is gone", not SOCKET.exists())


def check_activation(folder: Path) -> None:
    """The port and the socket that systemd opens, as the comments of ``xapsd.socket`` have it."""
    addresses = unit.read(SERVICE.with_suffix(".socket"))["ListenStream"]
    usual = addresses == ["[::1]:11619", str(SOCKET)]
    check("xapsd.socket opens the usual port and socket", usual, addresses)
    comments = SERVICE.with_suffix(".socket").read_text()
    settings = re.findall(r"(?m)^#   (\w+: systemd:.*)$", comments)
    addresses += re.findall(r"(?m)^#   ListenStream=(.*)$", comments)
    wanted = (len(settings), addresses[2:]) == (3, [str(RUNTIME / "imap.sock")])
    check("and says how to use both, and how to add that of dovecot-xaps", wanted, comments)
    config = CONFIG.with_name("activated.yaml")
    kept = re.sub("(?m)^imapSocket:.*", "", CONFIG.read_text())
    put(config, "\n".join([kept, *settings, ""]).encode())
    program = unit.read(SERVICE)["ExecStart"][0].replace(str(CONFIG), str(config)).split()
    become = ["runuser", "-u", "xapsd", "--", "systemd-socket-activate"]
    # Systemd itself names each socket; without names newer versions of Twisted see none.
    become.append("--fdname=" + ":".join(["xapsd.socket"] * len(addresses)))
    listen = [f"--listen={address}" for address in addresses]
    child = Child([*become, *listen, *program], folder, environment=ENVIRONMENT)
    try:
        child.wait_for(f"Listening on {SOCKET}")
        code, _ = register("carol", "ACCOUNT-OF-CAROL", TABLET)
        check("a registration over systemd's port starts it", code == 200, code)
        answer = notify("carol")
        check("a notice over systemd's socket is taken", answer.startswith("OK"), answer)
        answer = register_over_imap("carol", "ACCOUNT-OF-CAROL", TABLET)
        check("a phone registers over systemd's socket for Dovecot", "\r\nOK " in answer, answer)
        ctl("forget", "carol")
        os.kill(json.loads(ctl("--json", "status").stdout)["pid"], signal.SIGTERM)
        check("it ends with status 0", child.wait() == 0, child.lines[-5:])
        left = SOCKET.is_socket() and (RUNTIME / "imap.sock").is_socket()
        check("and leaves systemd's sockets there", left)
    finally:
        child.close()
        config.unlink()
        for path in (SOCKET, RUNTIME / "imap.sock"):
            path.unlink(missing_ok=True)


def check_upgrade(package: Path, folder: Path) -> None:
    written = CONFIG.read_bytes()
    with service(folder) as running:
        apt("install", package)
        check("the configuration is kept", CONFIG.read_bytes() == written)
        check_modes(", still")
        kept = (CONFIG.parent / "push.pem").exists()
        check("what the administrator put beside it, too", kept)
        check("the old version's file is gone", not Path("/usr/share/xapsd/old").exists())
        done = ctl("devices")
        check("the old process still answers", ACCOUNT in done.stdout, done)
        check_stop(running)
    script = Path("/var/lib/dpkg/info/xapsd.postinst").read_text()
    restarts = "deb-systemd-invoke try-restart 'xapsd.service'" in script
    check("systemd is asked to restart what runs", restarts)
    with service(folder) as running:
        done = ctl("devices")
        check("the new one has the phones", ACCOUNT in done.stdout, done)
        check_stop(running)


@contextlib.contextmanager
def asked_of_systemd(folder: Path) -> Iterator[Path]:
    """Let the package's scripts believe that systemd runs, and write down what they ask it for,
    instead of asking. Yields that file."""
    asked = folder / "asked"
    asked.touch()
    policy, booted = Path("/usr/sbin/policy-rc.d"), Path("/run/systemd/system")
    with contextlib.ExitStack() as undo:
        if policy.exists():
            policy.rename(policy.with_suffix(".kept"))
            undo.callback(policy.with_suffix(".kept").rename, policy)
        else:
            undo.callback(policy.unlink)
        policy.write_text(f'#!/bin/sh\necho "$2 $1" >>{asked}\nexit 101\n')
        policy.chmod(0o755)
        if not booted.exists():
            booted.mkdir(parents=True)
            undo.callback(booted.rmdir)
        yield asked


def check_reinstallation(package: Path, folder: Path) -> None:
    """Removed, but not purged, and installed again."""
    written = CONFIG.read_bytes()
    with asked_of_systemd(folder) as asked:
        apt("remove", "xapsd")
        asked.write_text("")
        said = apt("install", package)
        check("installing it again has no complaint", "not started" not in said, said)
        check("and starts it", "start xapsd.service" in asked.read_text(), asked.read_text())
        check("with the same configuration", CONFIG.read_bytes() == written)
        asked.write_text("")
        apt("install", "--reinstall", package)
        started = re.findall("(?m)^start ", asked.read_text())
        check("what runs or not stays so in an upgrade", not started, asked.read_text())
    (CONFIG.parent / "push.pem").rename(CONFIG.parent / "elsewhere.pem")
    apt("remove", "xapsd")
    said = apt("install", package)
    check("a certificate that is missing then is told", "What to do next:" in said, said)
    (CONFIG.parent / "elsewhere.pem").rename(CONFIG.parent / "push.pem")
    with service(folder) as running:
        done = ctl("devices")
        check("it has the phones", ACCOUNT in done.stdout, done)
        check_stop(running)


def check_removal() -> None:
    database = STATE / "database.sqlite3"
    script = Path("/var/lib/dpkg/info/xapsd.prerm").read_text()
    stops = "deb-systemd-invoke stop xapsd.socket xapsd.service" in script
    check("removing stops the service", stops, script)
    apt("remove", "xapsd")
    check("the commands are gone", not Path("/usr/bin/xapsd").exists())
    check("and the modules", not (LIBRARY / "xaps").exists(), run("ls", LIBRARY / "xaps").stdout)
    check("Twisted's cache no longer knows it", "xapsd_plugin" not in plugins(), plugins())
    check("the configuration is kept", CONFIG.exists())
    check("and the registrations", database.exists())
    check_purge()


def check_purge() -> None:
    apt("purge", "xapsd")
    left = [str(path) for path in FOLDERS if path.exists()]
    check("purging removes configuration and registrations", not left, left)
    check("and the link that enabled the service", not ENABLED.is_symlink())


def check_takeover(package: Path, folder: Path) -> None:
    """A machine on which the Go daemon ran, forth and back as docs/migration.rst has it."""
    CONFIG.parent.mkdir()
    CONFIG.write_text(GO_CONFIG)
    STATE.mkdir()
    database = STATE / "database.json"
    content = json.dumps(GO_DATABASE)
    database.write_text(content)
    database.chmod(0o600)
    godaemon.PROGRAM.write_text(godaemon.STANDIN)
    godaemon.PROGRAM.chmod(0o755)
    godaemon.UNIT.write_text(godaemon.GO_UNIT)
    check_refusal(package)
    apt("install", package)
    put_aside = godaemon.PUT_ASIDE.read_text() == godaemon.STANDIN
    check("the Go daemon's program is put aside", put_aside)
    check("the Go daemon's configuration is as it was", CONFIG.read_text() == GO_CONFIG)
    check_modes(" of the Go daemon's")
    with service(folder) as running:
        done = ctl("devices")
        check("its registrations are taken over", ACCOUNT in done.stdout, done)
        check("from a file that stays as it was", database.read_text() == content)
        check_stop(running)
    check_confined(folder)
    check_way_back(database, content)


def check_refusal(package: Path) -> None:
    """The Go daemon's unit would hide that of the package."""
    done = run("apt-get", "--yes", "--quiet", "--no-install-recommends", "install", package)
    check("the Go daemon's unit stops the installation", done.returncode != 0, done.stdout)
    named = f"  {godaemon.UNIT}:\n      ExecStart=/usr/bin/xapsd\n" in done.stdout
    check("which names it and what it starts", named, done.stdout)
    same = (godaemon.PROGRAM.read_text(), CONFIG.read_text()) == (godaemon.STANDIN, GO_CONFIG)
    check("and changes nothing", same and not godaemon.PUT_ASIDE.exists())
    (command,) = re.findall(r"(?m)^  \d\. (mv .*)$", done.stdout)
    check("what it says to do works", run(*command.split()).returncode == 0, command)


def check_confined(folder: Path) -> None:
    """Under the Go daemon's unit the daemon says why it cannot push, and ends."""
    confined = unit.command(unit.read(Path(f"{godaemon.UNIT}.old")))
    child = Child(confined, folder, environment={**ENVIRONMENT, "PYTHONPATH": ""})
    try:
        status = child.wait()
        log = "\n".join(child.lines)
    finally:
        child.close()
    if ctypes.CDLL(None).prctl(PR_GET_MDWE, 0, 0, 0, 0) < 0:
        print("   Linux before 6.3 cannot confine it as the Go daemon's unit does")
        return
    check("under the Go daemon's unit it ends with 78", status == 78, f"{status}\n{log}")
    check("and names what forbids it to push", "MemoryDenyWriteExecute=" in log, log)


def check_way_back(database: Path, content: str) -> None:
    """To the Go daemon, with all phones, and with everything that it had."""
    done = ctl("export", str(database))
    kept = done.returncode != 0 and database.read_text() == content
    check("xapsctl export does not write over the Go daemon's file", kept, done.stdout)
    done = ctl("export", "--force", str(database))
    check("but with --force", done.returncode == 0, done.stdout)
    found = mode(database)
    check("and for the service's user", found == "xapsd:xapsd 0600", found)
    known = json.loads(database.read_text())["Users"]["alice"]["Accounts"]
    check("with the phones", known[ACCOUNT]["DeviceToken"] == PHONE, known)
    said = apt("remove", "xapsd")
    back = godaemon.PROGRAM.read_text() == godaemon.STANDIN and not godaemon.PUT_ASIDE.exists()
    check("the Go daemon's program is there again", back, said)
    diversions = run("dpkg-divert", "--list", str(godaemon.PROGRAM)).stdout
    check("and not diverted any more", diversions == "", diversions)
    check("its configuration is there", CONFIG.read_text() == GO_CONFIG)
    Path(f"{godaemon.UNIT}.old").rename(godaemon.UNIT)
    run("systemctl", "enable", "xapsd.service")
    said = apt("purge", "xapsd")
    check("a purge keeps the database that it uses", database.exists() and "are kept" in said, said)
    left = ENABLED.is_symlink() and ENABLED.resolve() == godaemon.UNIT
    check("and lets its unit start with the machine", left)
    godaemon.remove()
    for path in FOLDERS:
        shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------------- with Dovecot

FOLDER = "Entwürfe"
"""A name that is another one in IMAP."""


def tree(folder: Path) -> dict[str, tuple[str, bytes]]:
    """All that is in there, with owners and modes."""
    return {
        str(path): (mode(path), path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def with_dovecot(packages: list[Path], folder: Path, run_folder: Path) -> None:
    """Both packages and the Dovecot of this machine, from the installation to the purge."""
    before = tree(dovecot.FOLDER)
    authority = pki.Authority.create()
    server = MachineDovecot(run_folder)
    apns = APNsProcess(folder, authority)
    try:
        said = apt("install", *packages)
        check("dovecot-xaps says what to do next", "xapsctl dovecot --install" in said, said)
        check("and does nothing to Dovecot by itself", tree(dovecot.FOLDER) == before)
        server.configure()
        check_configuration()
        configure(authority, apns.url)
        with CONFIG.open("a") as config:
            config.write("delay: 1\ncheckInterval: 1\npushInterval: 0\n")
        check_push(server, apns, run_folder)
        check_abi(packages[1], folder)
        check_without_plugin(server)
    finally:
        server.close()
        apns.close()
    check("Dovecot's configuration is as it was", tree(dovecot.FOLDER) == before)


def check_configuration() -> None:
    """What xapsctl makes of Dovecot's configuration."""
    file = dovecot.FOLDER / "conf.d/95-xaps.conf"
    printed = ctl("dovecot")
    done = ctl("dovecot", "--install")
    check("xapsctl dovecot --install is accepted by Dovecot", done.returncode == 0, done.stdout)
    check("and says what to do next", "systemctl restart dovecot" in done.stdout, done.stdout)
    check("it has written what xapsctl dovecot prints", file.read_text() == printed.stdout, printed)
    check("which everybody may read", mode(file) == "root:root 0644", mode(file))
    version = "2.3" if "plugin {" in printed.stdout else "2.4"
    example = Path(f"/usr/share/doc/dovecot-xaps/examples/{version}/95-xaps.conf")
    listed = run("dpkg", "--listfiles", "dovecot-xaps").stdout.split()
    check("the package has it as an example", str(example) in listed, listed)
    if example.exists():  # small systems leave documents out
        check("the same", example.read_text() == printed.stdout, example.read_text())


def check_push(server: MachineDovecot, apns: APNsProcess, run_folder: Path) -> None:
    """A phone registers with the machine's Dovecot, and hears of mail; then with a secret."""
    with service(run_folder) as running:
        found = mode(RUNTIME / "imap.sock")
        check("the socket for phones is for Dovecot's group", found == "xapsd:dovecot 0660", found)
        server.start()
        with server.login() as session:
            for name in ("Sent", FOLDER):
                session.command("CREATE", in_imap(name))
            phone = ModelPhone.register(session, ACCOUNT, PHONE, ["INBOX", "Sent", FOLDER])
            confirmed = phone.confirmed == {"INBOX", "Sent", FOLDER}
            check("a phone registers for all folders", confirmed, phone)
            check("with the topic of the certificate", phone.topic == TOPIC, phone.topic)
            server.deliver()
            check_refreshed(phone, apns, "INBOX", "mail that is delivered")
            for name in ("Sent", FOLDER):
                session.append(in_imap(name), "", "", b"Subject: Hello\r\n\r\nYours\r\n")
                check_refreshed(phone, apns, name, "a message that a client stores")
        done = ctl("devices", dovecot.USER)
        check(
            "xapsctl knows the phone by Dovecot's name for the user", ACCOUNT in done.stdout, done
        )
        done = ctl("notify", dovecot.USER, "Sent")
        check("xapsctl notify says that it is pushed", done.stdout == "Pushing.\n", done)
        check_refreshed(phone, apns, "Sent", "xapsctl notify")
        done = run("runuser", "-u", "nobody", "--", "xapsctl", "notify", dovecot.USER)
        check("a user who delivers mail may call it as well", done.returncode == 0, done)
        check_refreshed(phone, apns, "INBOX", "and that")
        check_stop(running)
    with CONFIG.open("a") as config:
        config.write("authToken: s3cret-+=\n")
    done = ctl("dovecot", "--install")
    check("with authToken, xapsctl replaces what it has written", done.returncode == 0, done.stdout)
    found = mode(dovecot.FOLDER / "conf.d/95-xaps.conf")
    check("which only root and Dovecot may read then", found == "root:dovecot 0640", found)
    server.start()
    with service(run_folder) as running:
        server.deliver()
        check_refreshed(phone, apns, "INBOX", "mail that is delivered, with authToken,")
        done = ctl("notify", dovecot.USER)
        check("xapsctl notify knows the secret as well", done.returncode == 0, done)
        check_refreshed(phone, apns, "INBOX", "xapsctl notify, with authToken,")
        check_stop(running)
    told = [line for line in server.log.splitlines() if "Killed with signal 15" not in line]
    bad = [line for line in told if "Error" in line or "Warning" in line]
    check("Dovecot's log has no complaint", not bad, bad)


def in_imap(name: str) -> str:
    """The name of a mailbox as IMAP has it."""
    return name.encode("imap4-utf-7").decode()


seen: list[dict[str, Any]] = []
"""The pushes that APNs got."""


def check_refreshed(phone: ModelPhone, apns: APNsProcess, mailbox: str, what: str) -> None:
    seen.append(apns.wait_for(len(seen) + 1)[-1])
    effect = phone.receive(seen[-1])
    wanted = Refreshed(frozenset([mailbox]))
    check(f"{what} makes the phone refresh {mailbox}", effect == wanted, effect)


def check_without_plugin(server: MachineDovecot) -> None:
    """While Dovecot runs, the plugin is removed."""
    for action in ("remove", "purge"):
        said = apt(action, "dovecot-xaps")
        check(f"apt {action} says no word of trouble", "nobody can log in" not in said, said)
        for _ in range(2):
            with server.login() as session:
                offered = "XAPPLEPUSHSERVICE" in session.capabilities
            check(f"after apt {action} users can log in, without push", not offered)
            server.start()


def check_abi(package: Path, folder: Path) -> None:
    """What apt makes of another Dovecot; nothing is installed."""
    version = run("dpkg-query", "--show", "--showformat=${Version}", "dovecot-core").stdout
    abi = Path("/usr/share/dovecot/dovecot-abi").read_text().strip()
    same = mock_dovecot(folder, f"{version}.1", f"dovecot-abi-{abi}")
    foreign = mock_dovecot(folder, f"{version}.2", "dovecot-abi-9.9.abiv1")
    done = run("apt-get", "--simulate", "install", *same)
    kept = "Inst dovecot-core" in done.stdout and "Remv dovecot-xaps" not in done.stdout
    check("an update of Dovecot with the same ABI keeps the plugin", kept, done.stdout)
    done = run("apt-get", "--simulate", "install", *foreign)
    removed = "Inst dovecot-core" in done.stdout and "Remv dovecot-xaps" in done.stdout
    check("one with another ABI takes it away", removed, done.stdout)
    done = run("apt-get", "--simulate", "--reinstall", "install", *foreign, package)
    refused = done.returncode != 0 and f"dovecot-abi-{abi}" in done.stdout
    check("apt refuses to have both", refused, done.stdout)


def mock_dovecot(folder: Path, version: str, provides: str) -> list[Path]:
    """Empty packages of a Dovecot."""
    made = []
    for name in ("dovecot-core", "dovecot-imapd"):
        content = folder / f"{name}_{provides}"
        (content / "DEBIAN").mkdir(parents=True)
        (content / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nDescription: a mock\n"
            "Maintainer: the xaps authors <xaps@xaps.invalid>\n"
            + (f"Provides: {provides}\n" if name == "dovecot-core" else "")
        )
        made.append(folder / f"{name}_{provides}.deb")
        build = ["dpkg-deb", "--root-owner-group", "--build", str(content), str(made[-1])]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return made


# ---------------------------------------------------------------- all of it


def with_package(package: Path, folder: Path, run_folder: Path) -> None:
    """From the installation to the purge."""
    size = package.stat().st_size
    fields = run("dpkg-deb", "--field", package, "Installed-Size", "Depends").stdout
    print(f"   {size / 1024:.0f} KiB; {fields.strip()}")
    before = version_before(package, folder)
    check_installation(apt("install", before))
    with_daemon(folder, run_folder)
    check_upgrade(package, run_folder)
    check_reinstallation(package, run_folder)
    check_removal()
    check_takeover(package, run_folder)


def with_daemon(folder: Path, run_folder: Path) -> None:
    """The daemon, with a credential."""
    authority = pki.Authority.create()
    apns = APNsProcess(folder, authority)
    try:
        configure(authority, apns.url)
        done = run("runuser", "-u", "xapsd", "--", "xapsd", "--check")
        check("xapsd --check is content with a credential", done.returncode == 0, done)
        with service(run_folder) as running:
            check_service(apns, authority, running)
            check_stop(running)
        check_activation(run_folder)
    finally:
        apns.close()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put the configuration back as it was; what the daemon has stored goes."""
    content = CONFIG.read_bytes()
    try:
        yield
    finally:
        CONFIG.write_bytes(content)
        for name in ("push.pem", "roots.pem"):
            (CONFIG.parent / name).unlink(missing_ok=True)
        for path in STATE.iterdir():
            path.unlink()


def clean() -> None:
    """Leave nothing behind."""
    for package in ("dovecot-xaps", "xapsd"):  # apt does nothing at all if it knows not one of them
        run("apt-get", "--yes", "purge", package)
    godaemon.remove()
    for path in FOLDERS:
        shutil.rmtree(path, ignore_errors=True)
    run("userdel", "xapsd")
    run("groupdel", "xapsd")


def main(arguments: list[str]) -> int:
    """All checks; the exit status."""
    installed = Path("/usr/bin/xapsd").exists()
    left = [str(path) for path in FOLDERS if path.exists()]
    if os.getuid():
        sys.exit("Run this as root: it installs a package.")
    if arguments and (installed or left):
        sys.exit(f"xapsd is in use here: {', '.join(left) or 'it is installed'}. Purge it first.")
    if arguments and dovecot.is_running():
        sys.exit("Dovecot is in use here.")
    # The service does not see /tmp, and systemd's socket is in /run, too.
    with (
        tempfile.TemporaryDirectory(prefix="xaps-package-") as folder,
        tempfile.TemporaryDirectory(prefix="xaps-package-", dir="/run") as run_folder,
    ):
        Path(run_folder).chmod(0o755)
        try:
            if arguments:
                packages = [Path(argument).resolve(strict=True) for argument in arguments]
                with_package(packages[0], Path(folder), Path(run_folder))
                with_dovecot(packages, Path(folder), Path(run_folder))
            else:
                with kept():
                    with_daemon(Path(folder), Path(run_folder))
        except (ChildError, OSError, subprocess.SubprocessError, KeyError, ValueError) as error:
            check("it went on to the end", False, f"{type(error).__name__}: {error}")
        finally:
            if arguments:
                clean()
    print(f"{check.good} passed, {check.bad} failed")
    return 1 if check.bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
