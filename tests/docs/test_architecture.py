"""The layout is what ``docs/architecture.rst`` says, and imports point downwards."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.rst"
HOP = re.compile(r"``(xaps/[a-z_/0-9]+\.py)``\s+``([A-Za-z_.]+)``")

BELOW: dict[str, set[str]] = {
    "model": set(),
    "mailboxes": {"model"},
    "system": {"model"},
    "config": {"model", "system"},
    "listen": {"system"},
    "intake": {"model", "mailboxes", "system", "listen"},
    "apns": {"model", "system"},
    "registry": {"model", "mailboxes", "system"},
    "cluster": {"model", "registry", "system"},
    "credentials": {"model", "config", "system"},
    "push": {"model", "mailboxes", "registry", "system"},
    "admin": {"model", "mailboxes", "config", "listen", "credentials", "registry", "cluster",
              "push", "apns", "intake", "system"},
    "ctl": {"model", "mailboxes", "admin", "config", "credentials", "registry", "system"},
    "cli": {"config", "system"},
    "intakes": {"config", "intake", "listen", "system"},
    "senders": {"model", "config", "credentials", "apns", "push", "admin", "system"},
    "daemon": {"model", "config", "listen", "intake", "registry", "cluster", "credentials", "push",
               "admin", "system", "intakes", "senders"},
    "tap": {"config", "admin", "daemon", "system"},
}  # fmt: skip
"""What each wing, and each module in the root, may import besides itself."""

PURE = [
    "xaps.admin.explain",
    "xaps.apns.events",
    "xaps.apns.headers",
    "xaps.apns.payload",
    "xaps.apns.reasons",
    "xaps.apns.session",
    "xaps.apns.streams",
    "xaps.apns.tokens",
    "xaps.config.reading",
    "xaps.credentials.certificate",
    "xaps.credentials.reading",
    "xaps.intake.http",
    "xaps.intake.lines",
    "xaps.intake.messages",
    "xaps.mailboxes",
    "xaps.model",
    "xaps.push.calm",
    "xaps.push.flags",
    "xaps.push.history",
    "xaps.push.holds",
    "xaps.push.routes",
]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "xaps").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text("utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules of ours that a module imports, as far as they can be told from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


def defined(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from defined(node, f"{prefix}{node.name}.")


class PageTests(SynchronousTestCase):
    def test_every_function_on_the_way_is_where_the_page_says(self) -> None:
        hops = HOP.findall(PAGE.read_text("utf-8"))
        self.assertGreater(len(hops), 20)
        for file, name in hops:
            names = set(defined(ast.parse((ROOT / file).read_text("utf-8"))))
            self.assertIn(name, names, f"{file} has no {name}")

    def test_every_file_and_folder_that_it_names_is_there(self) -> None:
        for name in re.findall(r"``(xaps/[^`]*)``", PAGE.read_text("utf-8")):
            self.assertTrue((ROOT / name).exists(), name)

    def test_every_wing_is_on_it_and_says_what_it_never_does(self) -> None:
        page = PAGE.read_text("utf-8")
        for init in sorted((ROOT / "xaps").glob("*/__init__.py")):
            self.assertIn(f"``xaps/{init.parent.name}/``", page)
            docstring = ast.get_docstring(ast.parse(init.read_text("utf-8")))
            self.assertIn(" never ", str(docstring), init)


class LayoutTests(SynchronousTestCase):
    def test_the_root_has_at_most_eight_modules(self) -> None:
        self.assertLessEqual(len(list((ROOT / "xaps").glob("*.py"))), 8)

    def test_imports_point_downwards(self) -> None:
        for name, tree in modules():
            if name == "xaps":
                continue
            wing = name.split(".")[1]
            for target in imported(tree):
                parts = target.split(".")
                if parts[0] == "xaps" and len(parts) > 1 and parts[1] in BELOW:
                    self.assertIn(parts[1], {wing, *BELOW[wing]}, f"{name} imports {target}")

    def test_nothing_private_of_twisted_is_imported(self) -> None:
        for name, tree in modules():
            for target in imported(tree):
                if target.startswith("twisted"):
                    self.assertNotIn("._", target, f"{name} imports {target}")

    def test_what_is_pure_loads_no_reactor(self) -> None:
        program = (
            f"import sys, {', '.join(PURE)}\n"
            "loaded = [name for name in sys.modules if name.startswith('twisted.internet.')]\n"
            "sys.exit(repr(loaded) if 'twisted.internet.reactor' in loaded else 0)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
