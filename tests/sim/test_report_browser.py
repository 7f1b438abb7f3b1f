"""The report in a real browser: headless Chromium opens it, with and without its script, light, dark and narrow."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import BROWSER, FLAGS, MISSING
from report_folders import study_folder

from veilmesh.sim.report import write_report

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: the report's page is not opened"
)

PICTURES = 5 * (4 * 3 + 5 * 2) + 2 * 3  # five galleries of four large triples and five pairs, two of a single triple
EVIL = '<img src="http://127.0.0.1:9/x"><script>document.title="owned"</script>'

pytestmark = pytest.mark.skipif(BROWSER is None, reason=MISSING)


@pytest.fixture(scope="module")
def browser() -> "Iterator[sync_api.Browser]":
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        try:
            yield started
        finally:
            started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(study_folder(tmp_path_factory.mktemp("study")))


class Opened:
    """A page and everything it complained about or asked for while it was open."""

    def __init__(self, context: "sync_api.BrowserContext", file: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = context.new_page()
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri(), wait_until="load")


@pytest.mark.parametrize("script", [True, False])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 400)])
def test_it_opens_without_an_error_and_fetches_nothing(
    browser: "sync_api.Browser", report: Path, scheme: str, width: int, script: bool
) -> None:
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, java_script_enabled=script
    )
    opened = Opened(context, report)
    page = opened.page
    assert page.title().startswith("A malicious peer, a server, and a defence")
    assert page.locator("img").count() == PICTURES
    sizes = page.locator("img").evaluate_all("all => all.map(image => image.naturalWidth)")
    assert min(sizes) > 0
    assert page.locator("svg.mesh .peer.malicious").count() == 2
    assert page.locator("svg.mesh .peer.malicious .ring").first.is_visible()
    assert page.locator("svg.chart path.line").count() == 2 * 3 + 2 * 2 + 2 * 2 + 2 * 1  # its hub measured nothing
    assert page.locator(".claim").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in opened.requests)
    context.close()


def test_light_and_dark_differ_and_the_switch_turns_them(browser: "sync_api.Browser", report: Path) -> None:
    context = browser.new_context(color_scheme="light")
    page = Opened(context, report).page
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(paper) != light
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(paper) == light
    context.close()


def test_a_chart_is_read_out_at_the_pointer_and_by_keys(browser: "sync_api.Browser", report: Path) -> None:
    context = browser.new_context()
    opened = Opened(context, report)
    plot = opened.page.locator("figure.plot").first
    last = plot.locator(".value").first.inner_text()
    plot.locator("svg.chart").hover(position={"x": 120, "y": 60})
    assert plot.locator(".at").inner_text().startswith("round ")
    assert plot.locator(".value").first.inner_text() != last
    opened.page.mouse.move(0, 0)
    assert plot.locator(".value").first.inner_text() == last
    plot.locator("svg.chart").focus()
    opened.page.keyboard.press("ArrowLeft")
    assert plot.locator(".at").inner_text() == "round 119"
    assert opened.complaints == []
    context.close()


def test_everything_is_folded_open_for_printing(browser: "sync_api.Browser", report: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = Opened(context, report).page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    context.close()


def test_the_policy_stops_what_escaping_would_have_missed(
    browser: "sync_api.Browser", report: Path, tmp_path: Path
) -> None:
    """The page's own policy is a second wall: markup put into it by hand neither runs nor fetches anything."""
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text(report.read_text(encoding="utf-8").replace("<main>", f"<main>{EVIL}", 1), encoding="utf-8")
    context = browser.new_context()
    opened = Opened(context, spoiled)
    assert opened.page.title() != "owned"
    assert opened.page.locator("main > img").evaluate("image => image.naturalWidth") == 0
    assert len(opened.complaints) == 2
    assert all("Content Security Policy" in said for said in opened.complaints)
    context.close()
