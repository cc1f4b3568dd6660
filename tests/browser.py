"""A real browser, headless, as a fixture. Without Chromium, its driver and selenium such tests are skipped.

Import `browser` and `driver` where a test needs them.
"""

import json
import os
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="session")
def driver():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    chromedriver = shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        pytest.skip("needs Chromium or Chrome and chromedriver on the path (Debian: apt install chromium-driver)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has no sandbox for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield found
    found.quit()


class Browser:
    """The driver with what these tests ask of it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path, *, width=1280, height=900, mobile=False, **media):
        """Load a file; `media` are features such as prefers_color_scheme="dark"."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
        )
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(path.as_uri())
        self.wait("return 'value' in document.getElementById('check').dataset")
        self.wait("return document.querySelector('#chart .band') !== null")
        return self

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition, seconds=20):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda d: d.execute_script(condition))

    def value(self, name):
        """The number behind what an element shows."""
        return float(self.run("return document.getElementById(arguments[0]).dataset.value", name))

    def text(self, name):
        return self.run("return document.getElementById(arguments[0]).textContent", name)

    def keys(self, *keys):
        """Press keys where the focus is, as a person without a mouse does."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def focused(self):
        return self.run("const e = document.activeElement; return e.id || e.tagName")

    def type(self, name, text):
        """Replace a field's text by the keyboard."""
        from selenium.webdriver import ActionChains, Keys

        self.run("document.getElementById(arguments[0]).focus()", name)
        chain = ActionChains(self.driver, duration=0)
        chain.key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(text).perform()

    def choose(self, name, value):
        from selenium.webdriver.support.ui import Select

        Select(self.driver.find_element("id", name)).select_by_value(value)

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self):
        """Addresses that were asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture
def browser(driver):
    return Browser(driver)
