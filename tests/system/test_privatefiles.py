"""Files with secrets that others can read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.conditions import NOBODY, without_root
from xaps.system.privatefiles import careless


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
