"""The pages for administrators: what they point to is there, and they can be read."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.ctl.test_main import STATUS
from xaps.ctl import answers

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.rst", ROOT / "NEWS.rst", *sorted((ROOT / "docs").glob("*.rst"))]
README = PAGES[0].read_text("utf-8")
_LINK = re.compile(r"`[^`<]*<([^`>]*)>`__?|^\.\. image:: (\S+)", re.MULTILINE)
_INSTALLED = re.compile(r"/usr/share/doc/xapsd/([\w.-]*\w)")
_NAMED = re.compile(r"(?<!tests/)\bdocs/[\w.-]+\w")


def links(page: Path) -> Iterator[Path]:
    """The files that a page links to."""
    for link, image in _LINK.findall(page.read_text("utf-8")):
        if not re.match("https?:", link or image):
            yield (page.parent / (link or image)).resolve()


def texts() -> Iterator[tuple[Path, str]]:
    """All that people get to read: the pages, messages, and what the package brings."""
    for path in (*PAGES, *(ROOT / "xaps").rglob("*.py"), *(ROOT / "debian").glob("xapsd.*")):
        yield path, path.read_text("utf-8")


class LinkTests(SynchronousTestCase):
    def test_what_is_linked_to_is_there(self) -> None:
        found = [(page, target) for page in PAGES for target in links(page)]
        self.assertGreater(len(found), 15)
        for page, target in found:
            self.assertTrue(target.exists(), f"{page.name} links to {target}")

    def test_every_page_can_be_reached_from_the_readme(self) -> None:
        reached, waiting = set(), [PAGES[0]]
        while waiting:
            page = waiting.pop()
            reached.add(page)
            new = {target for target in links(page) if target.suffix == ".rst"} - reached
            waiting.extend(new)
        self.assertEqual(set(PAGES) - reached, set())

    def test_pages_that_texts_and_messages_name_are_there(self) -> None:
        for path, text in texts():
            for name in _NAMED.findall(text):
                self.assertTrue((ROOT / name).exists(), f"{path.name} names {name}")

    def test_pages_are_named_where_the_package_puts_them(self) -> None:
        for path, text in texts():
            for name in _INSTALLED.findall(text):
                there = {"README.rst", "NEWS.rst", "README.Debian", "docs", "examples"}
                self.assertIn(name, there, f"{path.name} names it")

    def test_sections_of_the_readme_are_named_by_nothing_that_is_elsewhere(self) -> None:
        for path, text in texts():
            self.assertNotRegex(text, r"README(\.rst)?: [A-Z]", path.name)


class ReadmeTests(SynchronousTestCase):
    def test_it_has_at_most_200_lines(self) -> None:
        self.assertLessEqual(len(README.splitlines()), 200)

    def test_the_sample_of_the_status_has_the_rows_of_the_real_one(self) -> None:
        """Paste a new one, of a real daemon, when this fails."""
        sample = README.partition("$ xapsctl status\n")[2].partition("\n\n")[0]
        row = re.compile(r"^ {2,}(\w[\w ]*?)  ", re.MULTILINE)
        self.assertEqual(row.findall(sample), row.findall("\n".join(answers.status(STATUS))))

    def test_no_line_is_too_long_for_a_terminal(self) -> None:
        self.assertLess(max(map(len, README.splitlines())), 115)


class MarkupTests(SynchronousTestCase):
    def test_docutils_has_nothing_against_it(self) -> None:
        try:
            core = importlib.import_module("docutils.core")
        except ImportError:
            raise SkipTest("docutils is not installed") from None
        for page in PAGES:
            told = io.StringIO()
            settings = {"warning_stream": told}
            core.publish_doctree(page.read_text("utf-8"), str(page), settings_overrides=settings)
            self.assertEqual(told.getvalue(), "", page.name)
