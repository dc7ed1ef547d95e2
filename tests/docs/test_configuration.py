"""``docs/configuration.rst`` has every setting as the code has it.

``python -m tests.docs.test_configuration`` writes that part of the page anew.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from xaps.config.table import KEYS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.rst"
BEGIN, END = ".. settings\n", ".. end of the settings\n"


def settings() -> Iterator[str]:
    """The reference, paragraph by paragraph."""
    title = "General"
    for key in KEYS.values():
        if title := key.section or title:
            yield f"{title}\n{'-' * len(title)}\n\n"
            title = ""
        default = f" (default: ``{key.default}``)" if key.default else ""
        text = textwrap.fill(key.help, 92, break_on_hyphens=False, break_long_words=False)
        yield f"``{key.name}``{default}\n{textwrap.indent(text, '    ')}\n\n"


def page() -> tuple[str, str, str]:
    """What stands before the settings, these, and what stands behind."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    found, _, after = rest.partition(END)
    return before, found, after


class ConfigurationTests(SynchronousTestCase):
    def test_every_setting_is_there_with_its_default_and_help(self) -> None:
        self.assertEqual(page()[1].strip(), "".join(settings()).strip(), __doc__)


if __name__ == "__main__":
    before, _, after = page()
    PAGE.write_text(f"{before}{BEGIN}\n{''.join(settings())}{END}{after}", "utf-8")
