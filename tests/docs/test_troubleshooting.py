"""``docs/troubleshooting.rst`` names all that ``xapsctl explain`` can say."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.admin.test_explain import TABLE
from xaps.admin.explain import ORDER, explain

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.rst"
ROW = re.compile(r"^   \* - ``([a-z ]+)``\n     - (.+(?:\n       .+)*)", re.MULTILINE)


class TroubleshootingTests(SynchronousTestCase):
    def test_every_cause_is_in_the_table_in_the_order_in_which_they_count(self) -> None:
        causes = [cause for cause, _ in ROW.findall(PAGE.read_text("utf-8"))]
        self.assertEqual(causes, [cause.value for cause in ORDER])

    def test_each_says_what_the_table_says(self) -> None:
        rows = dict(ROW.findall(PAGE.read_text("utf-8")))
        for cause in ORDER:
            said = [explain(facts).text for _, facts, expected, _ in TABLE if expected is cause]
            for alternative in " ".join(rows[cause.value].split()).split("; "):
                words = [re.escape(part.strip()) for part in alternative.split("...")]
                pattern = ".*".join(words)
                self.assertTrue(any(re.search(pattern, text) for text in said), (pattern, said))
