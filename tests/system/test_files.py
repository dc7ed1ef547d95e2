from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.conditions import NOBODY, files_no_larger_than, without_root
from xaps.system.files import careless, let_read, remove_leftovers, replace_file


class ReplaceFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "key.pem"

    def mode(self, path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    def test_makes_a_new_file_that_only_its_owner_can_read(self) -> None:
        previous = os.umask(0)
        self.addCleanup(os.umask, previous)
        replace_file(self.path, b"new\0bytes")
        self.assertEqual(self.path.read_bytes(), b"new\0bytes")
        self.assertEqual(self.mode(self.path), 0o600)
        self.assertEqual(list(self.folder.iterdir()), [self.path])

    def test_the_asked_mode_wins_over_the_umask_and_over_the_old_file(self) -> None:
        previous = os.umask(0o077)
        self.addCleanup(os.umask, previous)
        self.path.write_bytes(b"old")
        self.path.chmod(0o666)
        replace_file(self.path, b"new", 0o640)
        self.assertEqual(self.path.read_bytes(), b"new")
        self.assertEqual(self.mode(self.path), 0o640)

    def test_a_reader_of_the_old_file_keeps_all_of_it(self) -> None:
        self.path.write_bytes(b"old and longer")
        with self.path.open("rb") as reader:
            replace_file(self.path, b"new")
            self.assertEqual(reader.read(), b"old and longer")
        self.assertEqual(self.path.read_bytes(), b"new")

    def test_a_symbolic_link_stays_and_its_target_is_replaced(self) -> None:
        target = self.folder / "target.pem"
        target.write_bytes(b"old")
        self.path.symlink_to(target.name)
        replace_file(self.path, b"new")
        self.assertTrue(self.path.is_symlink())
        self.assertEqual(target.read_bytes(), b"new")

    def test_what_is_given_to_another_user_replaces_a_link_and_not_what_it_points_to(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("only root can give files away")
        target = self.folder / "passwd"
        target.write_bytes(b"root's")
        self.path.symlink_to(target)
        replace_file(self.path, b"new", owner=(65534, 65533))
        self.assertFalse(self.path.is_symlink())
        found = self.path.stat()
        self.assertEqual((found.st_uid, found.st_gid, self.mode(self.path)), (65534, 65533, 0o600))
        self.assertEqual((target.read_bytes(), target.stat().st_uid), (b"root's", 0))

    def test_a_failure_leaves_the_old_file_and_no_temporary_one(self) -> None:
        target = self.folder / "folder"
        target.mkdir()
        with self.assertRaises(OSError):
            replace_file(target, b"a file cannot replace a folder")
        self.assertEqual(list(self.folder.iterdir()), [target])

    def test_a_missing_folder_is_an_error(self) -> None:
        with self.assertRaises(FileNotFoundError):
            replace_file(self.folder / "missing" / "key.pem", b"new")

    def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(self) -> None:
        self.path.write_bytes(b"old")
        with files_no_larger_than(1000), self.assertRaises(OSError):
            replace_file(self.path, bytes(1001))
        self.assertEqual(self.path.read_bytes(), b"old")
        self.assertEqual(list(self.folder.iterdir()), [self.path])

    def test_the_bytes_are_on_disk_before_the_name_is_theirs_and_then_the_name_is(self) -> None:
        self.path.write_bytes(b"old")
        synced: list[tuple[str, bytes]] = []

        def sync(fd: int) -> None:
            os.fsync(fd)  # so that it is one that can be
            synced.append((str(Path(f"/proc/self/fd/{fd}").readlink()), self.path.read_bytes()))
            if len(synced) == 1:
                self.assertEqual(Path(synced[0][0]).read_bytes(), b"new")

        replace_file(self.path, b"new", sync=sync)
        [(temporary, before), (folder, after)] = synced
        self.assertEqual(Path(temporary).parent, Path(folder))
        self.assertEqual(folder, os.path.realpath(self.folder))
        self.assertEqual((before, after), (b"old", b"new"))


class LeftoverTests(SynchronousTestCase):
    def test_what_a_kill_in_the_middle_leaves_is_found_again_and_nothing_else(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = folder / "key.pem"
            (folder / "link.pem").symlink_to(path)
            others = {folder / other for other in ("key.pem.new", ".key.pem.bak", ".key.1.new")}

            def kill(fd: int) -> None:
                os._exit(9)

            for number, named in enumerate((path, folder / "link.pem")):
                child = os.fork()
                if child == 0:
                    try:
                        replace_file(named, b"secret", sync=kill)
                    finally:
                        os._exit(1)
                self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 9)
                self.assertEqual(len(set(folder.iterdir())), 2 + 3 * bool(number))
                for other in others:
                    other.touch()
                remove_leftovers(named)
                self.assertEqual(set(folder.iterdir()), others | {folder / "link.pem"})

    def test_a_missing_folder_is_an_error(self) -> None:
        with self.assertRaises(FileNotFoundError):
            remove_leftovers(Path("/nonexistent/key.pem"))


class LetReadTests(SynchronousTestCase):
    def test_the_command_is_told(self) -> None:
        self.assertIn("chown root:xapsd /a/b; chmod 640 /a/b", let_read(Path("/a/b")))

    def test_files_in_home_folders_have_to_be_moved(self) -> None:
        for path in ("/home/alice/push.pem", "/root/push.pem"):
            self.assertIn("move it to /etc/xapsd", let_read(Path(path)))


class CarelessTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="xaps-")
        self.addCleanup(folder.cleanup)
        Path(folder.name).chmod(0o755)
        self.file = Path(folder.name) / "secret"
        self.file.touch()

    def warnings(self, mode: int) -> list[str]:
        self.file.chmod(mode)
        return careless(self.file, "private key")

    def test_a_file_for_its_owner_alone_is_fine(self) -> None:
        self.assertEqual(self.warnings(0o600), [])
        self.assertEqual(self.warnings(0o611), [], "these bits do not let anybody read")

    def test_everybody_is_too_many(self) -> None:
        for mode in (0o644, 0o604):
            self.assertEqual(
                self.warnings(mode),
                [
                    f"{self.file}: everybody on this machine can read the private key; "
                    f"run chmod o-rwx {self.file}"
                ],
            )

    def test_a_group_that_this_process_is_in_may_read(self) -> None:
        with without_root():
            self.assertEqual(self.warnings_for_group(os.getegid()), [])

    def test_another_group_may_not(self) -> None:
        with without_root():
            (warning,) = self.warnings_for_group(NOBODY - 1)
        self.assertEqual(
            warning,
            f"{self.file}: the group {NOBODY - 1} can read the private key, and xapsd is not in "
            f"it; run chmod g-rwx {self.file}",
        )

    def test_root_does_not_judge_groups(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("only for root")
        self.assertEqual(self.warnings_for_group(NOBODY - 1), [])

    def test_a_file_that_is_not_there_is_for_others_to_tell(self) -> None:
        self.assertEqual(careless(Path("nowhere"), "private key"), [])

    def warnings_for_group(self, gid: int) -> list[str]:
        user = os.geteuid()
        if os.getuid() == 0:
            os.seteuid(0)
        try:
            os.chown(self.file, -1, gid)
            self.file.chmod(0o640)
        except PermissionError:
            raise SkipTest("only root can give files to any group") from None
        finally:
            os.seteuid(user)
        return careless(self.file, "private key")
