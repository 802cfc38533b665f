"""Chromium, driven by Selenium, for tests of the page; a skip where there is none."""

import json
import shutil
import time
from contextlib import contextmanager

import pytest

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium(profile):
    """A browser with a fresh profile.

    Args:
      profile: folder that is made for it.
    """
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip(
            "no chromium and chromedriver here: apt-get install chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def look(browser, path, address="", width=1400, scheme="light"):
    """Opens a page anew, and waits until it is drawn."""
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(f"{path.as_uri()}{address}")
    wait(browser, "document.body.dataset.ready !== undefined")


def wait(browser, condition):
    """Until a JavaScript expression is true."""
    for _ in range(400):
        if browser.execute_script(f"return {condition}"):
            return
        time.sleep(0.05)
    raise AssertionError(f"never came true: {condition}")


def frames(browser):
    """Lets the page draw what it was asked to."""
    browser.execute_async_script(
        "const done = arguments[0];"
        "requestAnimationFrame(() => requestAnimationFrame(done))"
    )


def complaints(browser):
    """What the console has been told."""
    return [entry["message"] for entry in browser.get_log("browser")]


def requests(browser):
    """Addresses that the page has asked for, but for what it holds itself."""
    messages = (
        json.loads(e["message"])["message"] for e in browser.get_log("performance")
    )
    urls = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith(("data:", "about:"))]
