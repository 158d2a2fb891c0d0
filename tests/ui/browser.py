"""Headless Chromium, and the few things that the tests do with it. Nothing sleeps: everything is waited for."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")

#: Only a test that fails takes so long.
PATIENCE = 180.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)
FIND = """
    const [css, text] = arguments;
    const folded = (one) => one && one !== document.body
        && (one.clientHeight === 0 && getComputedStyle(one).overflowY === 'hidden' || folded(one.parentElement));
    const seen = (one) => {
        const {width, height} = one.getBoundingClientRect();
        const shown = one.checkVisibility({visibilityProperty: true, opacityProperty: true});
        return width > 0 && height > 0 && shown && !folded(one.parentElement);
    };
    return [...document.querySelectorAll(css)].filter((one) => (one.innerText || '').includes(text) && seen(one));
"""
#: Where screenshots go, when somebody wants to look at them.
SHOTS = os.environ.get("QARNOT_UI_SHOTS")


#: Answers once something that matches can be seen, or after *milliseconds* with nothing.
SEE = (
    """
    const [css, text, milliseconds, done] = arguments;
    const find = () => { """
    + FIND.replace("const [css, text] = arguments;", "")
    + """ };
    const ends = performance.now() + milliseconds;
    const look = () => {
        const found = find();
        if (found.length || performance.now() > ends) done(found);
        else setTimeout(look, 20);
    };
    look();
"""
)


class Browser:
    """A Chromium with a profile of its own. Its tests are at :attr:`base`."""

    def __init__(self) -> None:
        self.base = ""
        self._profile = tempfile.mkdtemp(prefix="qarnot-ui-")
        options = webdriver.ChromeOptions()
        for flag in FLAGS:
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={self._profile}")
        options.binary_location = shutil.which("chromium") or ""
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(60)

    def begin(self, base: str) -> None:
        """Begin a test at *base*: nothing is left of tests of other sites."""
        self.driver.switch_to.default_content()
        if base != self.base:
            self.base = base
            # Cookies do not depend on the port.
            self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        self.resize(1400, 900)

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def resize(self, width: int, height: int) -> None:
        """The size of the page's own area."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def go(self, path: str) -> None:
        self.driver.get(self.base + path)

    def path(self) -> str:
        """Where the page that Airflow shows is."""
        return str(self.driver.execute_script("return window.top.location.pathname"))

    def wait(self, look: Callable[[], T], what: str) -> T:
        """Look until there is something true. A page that is just being drawn again is looked at again."""
        deadline, pause = time.monotonic() + PATIENCE, 0.02
        while True:
            try:
                if found := look():
                    return found
            except WebDriverException:
                if time.monotonic() >= deadline:
                    raise
            if time.monotonic() >= deadline:
                shown = self.driver.find_element(By.TAG_NAME, "body").text
                raise AssertionError(f"Waited {PATIENCE:.0f} s for {what}. The page says:\n{shown[:3000]}")
            time.sleep(pause)
            pause = min(0.1, pause * 1.5)

    def find(self, css: str, text: str = "") -> list[WebElement]:
        """What can be seen and matches, with *text* in it. One call of the driver, however many there are."""
        found: list[WebElement] = self.driver.execute_script(FIND, css, text)
        return found

    def see(self, css: str, text: str = "") -> WebElement:
        """The first that can be seen and matches, as soon as there is one."""

        def seen() -> list[WebElement]:
            found: list[WebElement] = self.driver.execute_async_script(SEE, css, text, 1000)
            return found

        return self.wait(seen, f"{css} with {text!r}")[0]

    def click(self, css: str, text: str = "") -> None:
        """Click on it, once it can be clicked on."""

        def clicked() -> bool:
            found = self.find(css, text)
            if not found or not found[0].is_enabled():
                return False
            found[0].click()
            return True

        self.wait(clicked, f"{css} with {text!r} that can be clicked on")

    def write(self, css: str, text: str) -> None:
        """Replace what an input holds, as somebody does who selects all of it and types."""

        def written() -> bool:
            field = self.find(css)[0]
            if field.get_attribute("value") != text:
                field.click()
                field.send_keys(Keys.CONTROL, "a")
                field.send_keys(text)
                # The page takes letters one by one. Nothing is written twice while there are more of them.
                held, ends = "", time.monotonic() + 5
                while (value := field.get_attribute("value")) != text and time.monotonic() < ends:
                    if value != held:
                        held, ends = value, time.monotonic() + 5
                    time.sleep(0.02)
            return field.get_attribute("value") == text

        self.wait(lambda: self.find(css) and written(), f"{css} to take {text!r}")

    def press(self, keys: str) -> None:
        """Press keys wherever the focus is: an element that has it may be drawn anew at any time."""
        ActionChains(self.driver).send_keys(keys).perform()

    def unfold(self, css: str, section: str) -> None:
        """Make *css* seen, which may be in a folded section of a form."""

        def shown() -> bool:
            # One section is open at a time, and the name of another one may begin alike.
            headings = [
                one for one in self.find("[role=dialog] button", section) if one.text.strip() == section
            ]
            folded = [one for one in headings if one.get_attribute("aria-expanded") != "true"]
            if folded and len(folded) == len(headings):
                # A section that folds is seen for a while.
                folded[0].click()
                self.wait(
                    lambda: folded[0].get_attribute("aria-expanded") == "true", f"{section!r} to unfold"
                )
            return bool(self.find(css))

        self.wait(shown, f"{css} in the section {section!r}")

    @contextmanager
    def frame(self) -> Iterator[None]:
        """The page inside Airflow's page."""
        self.driver.switch_to.default_content()
        self.driver.switch_to.frame(self.see("iframe"))
        try:
            yield
        finally:
            self.driver.switch_to.default_content()

    def in_frame(self, look: Callable[[], T], what: str) -> T:
        """As :meth:`wait`, inside the frame, which may be loaded anew meanwhile."""

        def inside() -> T:
            with self.frame():
                return look()

        return self.wait(inside, what)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def shot(self, name: str) -> None:
        """A picture for somebody to look at, where one is wanted."""
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(SHOTS) / f"{name}.png"))
            (Path(SHOTS) / f"{name}.html").write_text(self.driver.page_source)
