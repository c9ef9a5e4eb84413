"""The interactive page of docs on the theory, in a headless Chromium: it draws, reacts, fits, and asks for no network.

mkdocs is not needed: the Markdown around the drawings is shown as it is.
"""

from pathlib import Path

import chromium
import pytest

if chromium.PROGRAM is None:
    reason = f"no headless browser: none of {', '.join(chromium.NAMES)} is on PATH; `make test-page` gets one"
    pytest.skip(reason, allow_module_level=True)

DOCS = Path(__file__).parents[2] / "docs"
HEAD = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
PAUSE = "new Promise(resolve => setTimeout(resolve, {}))"
VERDICT = "document.querySelector('#theory-chains p').textContent"
TOLD = "document.querySelector('#theory-steps .controls:nth-child(3) output').textContent"
TYPED = """(() => {
  const field = document.querySelector('[aria-label="chain 1: probability of B after A"]')
  field.value = "0.8"
  field.dispatchEvent(new Event("change"))
})()"""
CHAIN = """[...document.querySelectorAll("#theory-chains fieldset:first-child td input")].map(field => field.value)"""
RING = """(() => {
  const box = document.querySelector("#theory-chains .handle").getBoundingClientRect()
  return [box.x + box.width / 2, box.y + box.height / 2]
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, tmp_path):
    """The browser with the page open."""
    (tmp_path / "theory").symlink_to(DOCS / "theory")
    text = (DOCS / "theory.md").read_text(encoding="utf-8")
    included = '--8<-- "docs/theory/recorded.json"'
    assert included in text
    path = tmp_path / "theory.html"
    path.write_text(HEAD + text.replace(included, (DOCS / "theory" / "recorded.json").read_text()), encoding="utf-8")
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    browser.open(path)
    yield browser
    complaints = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed")
    assert [found for name in complaints for found in browser.found(name)] == []
    asked = [event["request"]["url"] for event in browser.found("Network.requestWillBeSent")]
    assert len(asked) == 5 and all(url.startswith("file:") for url in asked)


def test_it_shows_something_at_once_and_fits_a_phone(page):
    assert "gain 0.688 nats per sequence" in page.evaluate(VERDICT)
    assert page.evaluate("document.querySelectorAll('.theory svg.map').length") == 1 + 1 + 3
    assert page.evaluate("document.querySelectorAll('.theory .wide > svg').length") == 3
    assert page.evaluate(TOLD).startswith("Step 80: loss 0.6478 nats per token.")  # winner takes all has collapsed
    assert page.evaluate("document.querySelector('.theory').scrollWidth <= innerWidth")


def test_typing_a_probability(page):
    page.evaluate(TYPED)
    assert page.evaluate(CHAIN) == ["0.2", "0.8", "0.8", "0.2"]
    assert page.evaluate("document.querySelector('#theory-chains select').value") == "Your own"
    page.evaluate(PAUSE.format(1000))
    assert "gain 0.6" in page.evaluate(VERDICT) and "gain 0.688" not in page.evaluate(VERDICT)
    assert "loss 0.6478" not in page.evaluate(TOLD)


def test_dragging_a_chain(page):
    x, y = page.evaluate(RING)
    for kind, left in (("mousePressed", x), ("mouseMoved", x - 20), ("mouseMoved", x - 40), ("mouseReleased", x - 40)):
        page.call("Input.dispatchMouseEvent", type=kind, x=left, y=y, button="left", buttons=1, clickCount=1)
    stay, leave, *rest = map(float, page.evaluate(CHAIN))
    assert 0.4 < leave < 0.6 and stay + leave == pytest.approx(1) and rest == [0.8, 0.2]
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=0)
    assert float(page.evaluate(CHAIN)[1]) == leave  # let go
