"""Chromium, driven by Selenium, and axe-core, which looks for what people who cannot see, or use a
keyboard, would stumble over.

Missing are they where nobody has installed them: Debian's ``chromium`` and ``chromium-driver``,
``selenium`` from PyPI, and ``npm ci`` in ``tests/axe``. Then such tests are skipped, unless
``BROWSER=needed`` is in the environment.
"""

from __future__ import annotations

import atexit
import base64
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SkipTest

AXE = Path(__file__).parents[1] / "axe" / "node_modules" / "axe-core" / "axe.min.js"
PROGRAMS = ("/usr/bin/chromium", "/usr/bin/chromedriver")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 60
"""Seconds."""
TALL = 900
"""Pixels."""
_LOOK = """
const done = arguments[0];
axe.run().then(
    found => done(found.violations.map(each =>
        each.id + ": " + each.help + ": " + each.nodes.map(node => node.html).join(" "))),
    error => done([String(error)]));
"""


class Browser:
    """A browser without a window, in an empty folder of its own."""

    _usual: ClassVar[Browser | None] = None

    @classmethod
    def usual(cls) -> Browser:
        """The one of this process, which ends with it: it starts slowly."""
        if cls._usual is None:
            cls._usual = cls()
            atexit.register(cls._usual.close)
        return cls._usual

    def __init__(self) -> None:
        missing = [name for name in (*PROGRAMS, str(AXE)) if not Path(name).exists()]
        if find_spec("selenium") is None:
            missing.append("selenium")
        if missing and os.environ.get("BROWSER") == "needed":
            raise AssertionError(f"not installed: {missing}")
        if missing:
            raise SkipTest(f"not installed: {', '.join(missing)}")
        from selenium import webdriver  # noqa: PLC0415 - may be missing
        from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

        self._folder = tempfile.mkdtemp(prefix="xaps-")
        options = webdriver.ChromeOptions()
        options.binary_location, driver = PROGRAMS
        for option in (*OPTIONS, f"--user-data-dir={self._folder}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_script_timeout(PATIENCE)
        self.driver.set_page_load_timeout(PATIENCE)

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._folder, ignore_errors=True)

    def authorize(self, password: str) -> None:
        """Know this password from now on."""
        basic = base64.b64encode(f"admin:{password}".encode()).decode()
        self._command("Network.enable")
        self._command("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {basic}"})

    def look_like(self, width: int, scheme: str) -> None:
        """Be so many pixels wide, and prefer ``light`` or ``dark``."""
        self._width = width
        size = {"width": width, "height": TALL, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", features=features)

    def show(self, url: str) -> None:
        self.driver.get(url)
        self.driver.execute_script(AXE.read_text())

    @property
    def text(self) -> str:
        """What is to be read on the page."""
        return str(self.driver.execute_script("return document.body.innerText"))

    def stumbles(self) -> list[str]:
        """What axe finds; the page must have been shown by `show`."""
        return list(self.driver.execute_async_script(_LOOK))

    @property
    def too_wide(self) -> int:
        """Pixels by which the page is wider than it may be. The window's own width does not tell:
        on a phone it grows with the page."""
        script = "return document.documentElement.scrollWidth"
        return max(0, int(self.driver.execute_script(script)) - self._width)

    def complaints(self) -> list[str]:
        """What the browser has said on its console since the last time: what its policy forbids."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if "favicon" not in entry["message"]
        ]

    def picture(self, file: Path) -> None:
        """The whole page as PNG."""
        shot = self._command("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _command(self, name: str, **settings: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, settings)
