"""The page of a run in a headless Chromium: everything renders, nothing fails to load, no network is asked for.

`make test-page` gets Debian's Chromium if the machine has none, and fails if these tests do not run.
"""

import chromium
import made_up_run as made_up
import pytest

from experiments.common import page
from experiments.compare import answers
from experiments.compare.runs import FinishedRun
from mcl_jax.json_io import to_json

if chromium.PROGRAM is None:
    reason = f"no headless browser: none of {', '.join(chromium.NAMES)} is on PATH; `make test-page` gets one"
    pytest.skip(reason, allow_module_level=True)

PICTURES = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
CLIPS = """(async () => {
  const clips = [...document.querySelectorAll("audio")], known = clip => clip.readyState >= 2 || clip.error
  for (let i = 0; i < 200 && !clips.every(known); i++) await new Promise(resolve => setTimeout(resolve, 25))
  return clips.map(clip => clip.readyState >= 2 && !clip.error ? clip.duration : 0)
})()"""
DIRECTIONS = """[...new Set([...document.querySelectorAll("td")].filter(cell => cell.textContent.includes("مرحبا"))
  .flatMap(cell => [...cell.children].map(child => child.tagName + " " + getComputedStyle(child).direction)))]"""
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    run = made_up.run(tmp_path_factory.mktemp("browser") / "run")
    return page.write(run, made_up.results(), made_up.records(), made_up.COLUMNS)


def complaints(browser, path):
    """What the console says, requests for anything but the page and what it holds, and those that failed."""
    asked = [event["request"]["url"] for event in browser.found("Network.requestWillBeSent")]
    assert asked[0] == path.as_uri()
    return [
        *(event["entry"]["text"] for event in browser.found("Log.entryAdded")),
        *browser.found("Runtime.consoleAPICalled"),
        *browser.found("Runtime.exceptionThrown"),
        *browser.found("Network.loadingFailed"),
        *(url for url in asked[1:] if not url.startswith("data:")),
    ]


def test_everything_is_shown(browser, path):
    browser.open(path)
    assert browser.evaluate(PICTURES) == [True] * 3
    assert browser.evaluate(CLIPS) == [pytest.approx(made_up.SECONDS, abs=0.01)]
    assert browser.evaluate("document.querySelectorAll('article').length") == 12
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("typeof window.trapped") == "undefined"
    assert browser.evaluate(DIRECTIONS) == ["BDI rtl", "SMALL ltr"]  # "1.5-" is no number
    assert complaints(browser, path) == []


def test_answers_of_several_runs_are_shown(browser, tmp_path):
    run = FinishedRun(tmp_path, {}, to_json(made_up.results(), "results")["methods"])
    path = tmp_path / "answers.html"
    answers.write(path, [run, run], ["<a>", "b"], [])
    browser.open(path)
    assert browser.evaluate("document.querySelectorAll('article').length") == made_up.NUM_SAMPLES
    assert browser.evaluate("document.scripts.length") == 0 and browser.evaluate(DIRECTIONS) == ["BDI rtl", "SMALL ltr"]
    assert complaints(browser, path) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_only_tables_scroll_sideways(browser, path, width):
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    browser.open(path)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate(OVERFLOW) <= 0


@pytest.mark.slow
def test_dark_where_it_is_wanted(browser, path):
    found = []
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(path)
        found.append(browser.evaluate(BACKGROUND))
    assert found == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]


@pytest.mark.slow
@pytest.mark.parametrize("old", ["data:image/jpeg;base64,", "data:image/png;base64,", "data:audio/flac;base64,"])
def test_what_is_broken_would_be_found(browser, path, tmp_path, old):
    broken = tmp_path / "broken.html"
    broken.write_text(path.read_text("utf-8").replace(old, old + "AAAA"), "utf-8")
    browser.open(broken)
    assert not all(browser.evaluate(PICTURES) + browser.evaluate(CLIPS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "added", ["<img src='http://localhost:9/a.png'>", "<img src='a.png'>", "<script>window.trapped = 3</script>"]
)
def test_what_is_fetched_or_run_would_be_found(browser, path, tmp_path, added):
    changed = tmp_path / "changed.html"
    changed.write_text(path.read_text("utf-8").replace("</body>", f"{added}</body>"), "utf-8")
    browser.open(changed)
    assert complaints(browser, changed)
    assert browser.evaluate("typeof window.trapped") == "undefined"  # the page's policy
