"""The page in a real browser: it computes what Python does, from the keyboard, on a phone, in the dark, and alone."""

import json
import re
import warnings

import numpy as np
import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
Keys = webdriver.Keys
SIX_DIGITS = 1e-7
NAMES = ("power", "chinchilla", "kaplan", "steps")


def quiet(law, level, **at):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return law.predict(level=level, **at)


def record(page):
    return json.loads((page.parent / "space.json").read_text())


def test_the_page_checks_itself_against_python(browser, page):
    browser.open(page)
    assert browser.value("check") < SIX_DIGITS
    vectors = record(page)["vectors"]
    numbers = sum(4 + 2 * ("critical_batch" in v) for v in vectors["laws"]) + 4 * len(vectors["designs"])
    assert int(browser.run("return document.getElementById('check').dataset.count")) == numbers > 150
    assert browser.text("check").startswith("✓")
    assert browser.complaints() == []


@pytest.mark.parametrize("spoiled", ["sigma", "a"])
def test_a_page_that_computes_something_else_says_so(browser, page, tmp_path, spoiled):
    """The control: one number in a thousandth of its digits."""
    html = page.read_text()
    start = html.index(f'"{spoiled}":', html.index('"interval"'))
    found = re.compile(r"-?\d[\d.e+-]*").search(html, html.index(":", start))
    (tmp_path / "index.html").write_text(html[: found.start()] + str(1.5 * float(found[0])) + html[found.end() :])
    browser.open(tmp_path / "index.html")
    assert browser.value("check") > SIX_DIGITS
    if browser.value("check") > 1e-6:
        assert browser.text("check").startswith("✗")


@pytest.mark.parametrize("index", range(4), ids=NAMES)
def test_predictions_the_page_has_never_seen(browser, page, laws, index):
    """At points and levels that are not among its vectors, the loss and both ends agree to 6 digits."""
    browser.open(page)
    law, rng = laws[NAMES[index]], np.random.default_rng(index)
    for _ in range(12):
        at = {n: float(np.exp(rng.uniform(np.log(lo / 5), np.log(200 * hi)))) for n, (lo, hi) in law.range_.items()}
        level = float(rng.uniform(0.3, 0.98))
        p = quiet(law, level, **at)
        script = "return Laws.predict(JSON.parse(document.getElementById('space').textContent).laws[arguments[0]], arguments[1], arguments[2])"  # noqa: E501
        found = browser.run(script, index, at, level)
        own = [found[name] for name in ("loss", "low", "high", "extrapolation")]
        np.testing.assert_allclose(own, [p.loss, p.low, p.high, p.extrapolation], rtol=SIX_DIGITS)
        assert not np.isclose(found["low"], quiet(law, level + 0.01, **at).low, rtol=SIX_DIGITS)  # the test can fail


@pytest.mark.parametrize("name", NAMES)
def test_the_controls_lead_to_the_prediction(browser, page, laws, name):
    browser.open(page)
    law, design = laws[name], record(page)["designs"][0]
    browser.choose("law", str(NAMES.index(name)))
    browser.choose("level", "0.95")
    for field, text in (("width", "2048"), ("depth", "24"), ("tokens", "300B"), ("batch", "2.5e6")):
        browser.type(field, text)
    p0 = design["polynomials"]["N"]
    n = p0[0] + p0[1] * 2048 + p0[2] * 2048**2 + 24 * (p0[3] + p0[4] * 2048 + p0[5] * 2048**2)
    chosen = {"N": n, "D": 3e11, "B": 2.5e6, "S": 3e11 / 2.5e6}
    p = quiet(law, 0.95, **{v: chosen[v] for v in law.variables})
    shown = [browser.value(x) for x in ("loss", "low", "high")]
    np.testing.assert_allclose(shown, [p.loss, p.low, p.high], rtol=SIX_DIGITS)
    assert browser.text("loss") == f"{p.loss:.4f}"
    assert browser.value("flops") == pytest.approx(6 * n * 3e11, rel=1e-9)
    assert browser.value("steps") == pytest.approx(120_000)
    step = laws["steps"]
    assert browser.value("critical") == pytest.approx(step.critical_batch_size(p.loss), rel=SIX_DIGITS)
    in_table = browser.run("return [...document.querySelectorAll('#laws tbody tr')].map(r => r.cells[1].dataset.value)")
    at = [{v: chosen[v] for v in laws[other].variables} for other in NAMES]
    expected = [quiet(laws[other], 0.9, **x).loss for other, x in zip(NAMES, at, strict=True)]
    np.testing.assert_allclose([float(v) for v in in_table], expected, rtol=SIX_DIGITS)


def test_memory_and_sizes_are_those_of_the_planner(browser, page):
    from hf_muscaling import MuLlamaConfig, count_parameters
    from hf_muscaling.memory import training_memory

    browser.open(page)
    config = MuLlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2752, num_attention_heads=8, num_hidden_layers=12
    )
    for field, text in (("width", "1024"), ("depth", "12"), ("sequences", "4")):
        browser.type(field, text)
    for precision, checkpointing in (("bf16", False), ("bf16", True), ("fp32", True)):
        browser.choose("precision", precision)
        if browser.driver.find_element("id", "checkpointing").is_selected() != checkpointing:
            browser.driver.find_element("id", "checkpointing").click()
        memory = training_memory(config, 4, 4096, precision=precision, checkpointing=checkpointing)
        assert browser.value("memory") == pytest.approx(memory.total, rel=SIX_DIGITS)
    assert browser.value("parameters") == count_parameters(config)
    assert browser.value("parameters-hint") == count_parameters(config, "non_embedding")


def test_any_size_and_either_count(browser, page, laws):
    browser.open(page)
    browser.choose("law", "2")
    browser.choose("count", "non_embedding")
    assert browser.value("loss") == pytest.approx(
        quiet(laws["kaplan"], 0.9, N=browser.value("parameters-hint"), D=browser.value("steps") * 2e6).loss, rel=1e-3
    )
    browser.choose("design", "any")
    browser.type("size", "7B")
    browser.type("tokens", "1.4T")
    assert browser.value("loss") == pytest.approx(quiet(laws["kaplan"], 0.9, N=7e9, D=1.4e12).loss, rel=SIX_DIGITS)
    assert not browser.driver.find_element("id", "width").is_displayed()
    assert browser.value("memory") == 16 * 7e9


def test_the_keyboard_alone(browser, page):
    """Tab reaches every control in order, each shows its focus, arrows and typing work, and Tab leaves the page."""
    browser.open(page)
    seen = []
    for _ in range(60):
        browser.keys(Keys.TAB)
        name = browser.focused()
        if name == "BODY":
            break
        outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"{name} does not show its focus"
        seen.append(name)
    assert seen[1:12] == [
        "design", "width", "width-slider", "depth", "depth-slider", "count", "tokens", "tokens-slider", "batch",
        "batch-slider", "law",
    ]  # fmt: skip
    assert {"level", "sequences", "precision", "checkpointing", "axis", "SUMMARY"} <= set(seen)
    assert browser.focused() == "BODY", "the focus is trapped"

    browser.keys(Keys.TAB)  # the first again: the link past the controls
    browser.keys(Keys.ENTER)
    assert browser.focused() == "prediction"

    browser.run("document.getElementById('width').focus()")
    before = browser.value("loss")
    browser.keys(Keys.TAB)
    width = browser.run("return document.getElementById('width').value")
    browser.keys(Keys.ARROW_RIGHT)
    assert int(browser.run("return document.getElementById('width').value")) > int(width)
    assert browser.value("loss") < before
    browser.keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert browser.value("loss") > before

    browser.run("document.getElementById('law').focus()")
    browser.keys("s")  # typing chooses "steps"
    assert browser.run("return document.getElementById('law').value") == str(NAMES.index("steps"))


def test_the_result_is_announced_and_mistakes_are_explained(browser, page):
    browser.open(page)
    browser.wait("return document.getElementById('announce').textContent !== ''")
    browser.type("tokens", "700B")
    loss = browser.text("loss")
    browser.wait(f"return document.getElementById('announce').textContent.includes('{loss}')")
    assert browser.run("return document.getElementById('announce').getAttribute('aria-live')") == "polite"
    for field, text in (("tokens", "many"), ("tokens", "-5"), ("width", "1000"), ("depth", "0.5"), ("batch", "1e15")):
        old = browser.run("return document.getElementById(arguments[0]).value", field)
        browser.type(field, text)
        assert browser.run("return document.getElementById(arguments[0]).getAttribute('aria-invalid')", field) == "true"
        assert browser.text(f"{field}-error")
        assert browser.text("loss") == loss
        browser.type(field, old)
        assert browser.text(f"{field}-error") == ""


def test_every_control_has_a_name(browser, page):
    nameless = "return [...document.querySelectorAll('input, select')].filter(e => !e.labels.length && !e.ariaLabel).map(e => e.id)"  # noqa: E501
    assert browser.open(page).run(nameless) == []
    assert browser.run("return document.documentElement.lang") == "en"
    assert browser.run("return document.querySelectorAll('h1').length") == 1


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone(browser, page, width):
    browser.open(page, width=width, height=700, mobile=True)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    small = (
        "return [...document.querySelectorAll('input, select, summary')].filter(e => e.offsetParent && "
        "e.getBoundingClientRect().height < 18).map(e => e.id)"
    )
    assert browser.run(small) == []
    dock = browser.driver.find_element("id", "dock")
    browser.wait("return !document.getElementById('dock').hidden")
    assert browser.text("loss") in dock.text
    browser.run("document.getElementById('loss').scrollIntoView({block: 'center'})")
    browser.wait("return document.getElementById('dock').hidden")


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const behind = (e) => {
  const layers = [];
  for (let at = e; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
  const over = (below, [r, g, b, a]) => [r, g, b].map((v, i) => v * a / 255 + below[i] * (1 - a / 255));
  return layers.reverse().reduce(over, [255, 255, 255]);
};
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
document.querySelectorAll('details').forEach(d => d.open = true);
const worst = [];
for (const e of document.querySelectorAll('body *')) {
  const svg = e instanceof SVGElement;
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || (!svg && !e.offsetParent) || ['SCRIPT', 'NOSCRIPT', 'OPTION', 'title'].includes(e.tagName)) continue;
  const ink = light(rgba(svg ? getComputedStyle(e).fill : getComputedStyle(e).color)), page = light(behind(e));
  const name = e.id || e.className.baseVal || e.className || e.tagName;
  worst.push([(Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05), name]);
}
return worst.sort((a, b) => a[0] - b[0]);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser, page, scheme):
    """WCAG 2 AA: 4.5 to 1 for every text, in both schemes."""
    browser.open(page, prefers_color_scheme=scheme)
    found = browser.run(CONTRAST)
    assert len(found) > 60
    assert found[0][0] >= 4.5, found[:3]
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    bright = np.mean([int(v) for v in re.findall(r"\d+", background)[:3]])
    assert bright > 200 if scheme == "light" else bright < 60


def test_nothing_moves_where_that_is_asked_for(browser, page):
    moving = "return [...document.querySelectorAll('*')].filter(e => { const s = getComputedStyle(e); return s.transitionDuration.split(', ').some(d => parseFloat(d) > 0) || s.animationName !== 'none' }).length"  # noqa: E501
    assert browser.open(page, prefers_reduced_motion="reduce").run(moving) == 0
    assert browser.open(page, prefers_reduced_motion="no-preference").run(moving) > 0


def test_it_asks_nobody_for_anything(browser, page):
    browser.open(page)
    browser.type("tokens", "900B")
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.complaints() == []


@pytest.mark.parametrize("axis", ["N", "D", "B", "S"])
def test_the_chart_over_each_variable(browser, page, axis):
    browser.open(page)
    for index in range(4):
        browser.choose("law", str(index))
        browser.choose("axis", axis)
        browser.wait(f"return document.getElementById('chart').dataset.drawn === '{axis} {index}'")
        drawn = browser.run("return document.getElementById('chart').outerHTML")
        assert "NaN" not in drawn and "Infinity" not in drawn
        assert drawn.count('class="curve law-') == 4
        assert ('class="zone"' in drawn) == (axis in record(page)["laws"][index]["variables"])
    rows = browser.run("return document.querySelectorAll('#curve tbody tr').length")
    assert rows > 8


def test_hostile_names_are_text(browser, laws, tmp_path):
    from hf_muscaling.space import write_space

    name = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>\u2028'\"&{{ data }}"
    page = write_space({name: laws["power"], "--": laws["chinchilla"]}, tmp_path / "out", title=name)
    browser.open(page)
    assert browser.run("return window.pwned") is None
    assert "<img src=x" in browser.text("title")
    assert browser.run("return document.title").startswith("</script><script>")
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert sorted(p.name for p in (tmp_path / "out" / "laws").iterdir())[0].endswith(".json")
    assert browser.complaints() == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.split("---\n")[1].count("\n") < 20 and "sdk: static" in card
