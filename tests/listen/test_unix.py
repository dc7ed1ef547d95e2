"""UNIX sockets: their mode and group, what is replaced and what is left alone."""

from __future__ import annotations

import grp
import os
import socket
import stat
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.conditions import without_root
from xaps.listen.unix import ListenError, bind_unix, dovecot_group, group_id


class BindTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        # A relative path, since those of trial are too long for a socket.
        before = Path.cwd()
        os.chdir(folder)
        self.addCleanup(os.chdir, before)
        self.path = Path("s.sock")

    def bind(
        self,
        mode: int = 0o660,
        group: str | None = None,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> socket.socket:
        bound = bind_unix("socket", self.path, kind, mode=mode, group=group)
        self.addCleanup(bound.close)
        return bound

    def refusal(self, group: str | None = None) -> str:
        error = self.assertRaises(ListenError, self.bind, 0o660, group)
        return str(error)

    def test_the_socket_has_the_mode_whatever_the_umask(self) -> None:
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        for mode in (0o600, 0o666):
            self.bind(mode).close()
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), mode)
        self.assertEqual(os.umask(0o077), 0o077)

    def test_nobody_can_connect_before_the_group_and_the_mode_are_set(self) -> None:
        modes: list[int] = []
        chown = os.chown

        def look_and_chown(path: Path, user: int, group: int) -> None:
            modes.append(stat.S_IMODE(self.path.stat().st_mode))
            chown(path, user, group)

        self.patch(os, "chown", look_and_chown)
        self.bind(0o666)
        self.assertEqual(modes, [0])

    def test_the_socket_has_the_group(self) -> None:
        self.bind(group=str(os.getgid()))
        self.assertEqual(self.path.stat().st_gid, os.getgid())

    def test_an_unknown_group_is_named_and_nothing_is_bound(self) -> None:
        refusal = self.refusal("nosuchgroup")
        self.assertIn("socketGroup: there is no group 'nosuchgroup'", refusal)
        self.assertIn("groupadd --system nosuchgroup", refusal)
        self.assertFalse(self.path.exists())

    def test_a_group_that_the_user_is_no_member_of_is_told_with_the_command(self) -> None:
        Path().chmod(0o777)
        with without_root():
            refusal = self.refusal("1")
        self.assertIn("socketGroup: s.sock: cannot be given to group ", refusal)
        self.assertRegex(refusal, "must be a member of it: usermod -aG 1 [a-z]+, and start")
        self.assertFalse(self.path.exists())

    def test_a_group_may_be_a_number(self) -> None:
        self.assertEqual(group_id("socketGroup", "12"), 12)

    def test_the_socket_of_a_dead_daemon_is_replaced(self) -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            self.bind(kind=kind).close()
            self.assertTrue(self.path.exists())
            self.bind(kind=kind).close()

    def test_the_socket_of_a_living_daemon_is_left_alone(self) -> None:
        listening = self.bind()
        listening.listen()
        self.assertIn("another daemon is listening", self.refusal())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))

    def test_a_living_daemon_is_known_though_its_queue_is_full(self) -> None:
        self.bind().listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:
            self.addCleanup(client.close)
            client.setblocking(False)
            client.connect_ex(str(self.path))
        self.assertIn("another daemon is listening", self.refusal())

    def test_the_datagram_socket_of_a_living_daemon_is_left_alone(self) -> None:
        self.bind(kind=socket.SOCK_DGRAM)
        error = self.assertRaises(ListenError, self.bind, kind=socket.SOCK_DGRAM)
        self.assertIn("another daemon is listening", str(error))

    def test_a_file_that_is_no_socket_is_left_alone(self) -> None:
        self.path.write_text("precious")
        self.assertIn("is not a socket", self.refusal())
        self.assertEqual(self.path.read_text(), "precious")

    def test_a_missing_folder_is_named(self) -> None:
        self.path = Path("nowhere/s.sock")
        refusal = self.refusal()
        self.assertIn("socket: nowhere/s.sock: cannot be made: ", refusal)
        self.assertIn("the folder nowhere does not exist; make it", refusal)

    def test_a_folder_of_somebody_else_is_named(self) -> None:
        with tempfile.TemporaryDirectory(prefix="xaps-") as folder:
            Path(folder).chmod(0o555)
            self.path = Path(folder) / "s.sock"
            with without_root():
                self.assertIn(f"may not write to the folder {folder};", self.refusal())

    def test_a_socket_that_another_user_left_behind_is_left_to_the_administrator(self) -> None:
        with tempfile.TemporaryDirectory(prefix="xaps-") as folder:
            Path(folder).chmod(0o755)
            self.path = Path(folder) / "s.sock"
            for mode, text in (0o600, "remove this file"), (0o666, "cannot be removed"):
                self.bind(mode).close()
                with without_root():
                    if os.geteuid() == Path(folder).stat().st_uid:
                        raise SkipTest("needs root, to be two users")
                    self.assertIn(text, self.refusal())
                self.assertTrue(self.path.exists())
                self.path.unlink()

    def test_a_path_that_is_too_long_is_explained(self) -> None:
        self.path = Path("x" * 120)
        self.assertIn("107 bytes", self.refusal())


class DovecotGroupTests(SynchronousTestCase):
    def test_it_is_used_where_it_exists_and_the_process_may_give_a_socket_to_it(self) -> None:
        with without_root():
            ours = grp.getgrgid(os.getegid()).gr_name
            self.assertEqual(dovecot_group(ours), (ours, ""))
            other = grp.getgrgid(1).gr_name
            group, advice = dovecot_group(other)
            self.assertIs(group, None)
            self.assertIn("cannot use the socket: the daemon's user must be a member of it", advice)
            self.assertIn(f"usermod -aG {other} ", advice)
        self.assertEqual(dovecot_group("nobody-has-this"), (None, ""))
