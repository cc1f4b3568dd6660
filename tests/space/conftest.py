"""A real browser, headless, and pages of laws. Without Chromium, its driver and selenium these tests are skipped."""

import os
import shutil
import warnings

import numpy as np
import pytest

from hf_muscaling import ChinchillaLaw, KaplanLaw, KaplanStepLaw, PowerLaw

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TRUTH = {"N_c": 8e13, "alpha_N": 0.076, "S_c": 2.1e3, "alpha_S": 0.76, "B_star": 2e8, "alpha_B": 0.21}


@pytest.fixture(scope="session")
def laws():
    """One law of each kind, fitted to runs of a step law with 0.4 % of noise."""
    n, s, b = (
        v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 5), [2e3, 8e3, 3e4, 1e5], [6e4, 5e5, 2e6])
    )  # fmt: skip
    loss = KaplanStepLaw.loss(n, s, b, **TRUTH) * np.exp(0.004 * np.random.default_rng(0).normal(size=len(n)))
    runs = {"N": n, "S": s, "B": b, "D": s * b, "loss": loss}
    last = (s == 1e5) & (b == 2e6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "power": PowerLaw().fit({"N": n[last], "loss": loss[last]}),
            "chinchilla": ChinchillaLaw().fit(runs),
            "kaplan": KaplanLaw().fit(runs),
            "steps": KaplanStepLaw().fit(runs),
        }


@pytest.fixture(scope="session")
def page(laws, tmp_path_factory):
    """The page of all four."""
    from hf_muscaling.space import write_space

    return write_space(laws, tmp_path_factory.mktemp("space"), title="Four laws")


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
        import json

        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture
def browser(driver):
    return Browser(driver)
