"""The report in Chromium: nothing is requested, nothing complains, nothing sticks out of a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from terrasieve.report import Figure, write_report

from .run_of import write_run

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 4">'
    '<script>document.title=1</script><rect width="9" height="4"/></svg>'
)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("report") / "selective-mae")
    return write_report(folder, [Figure("Redundancy", "of patches", SVG)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_page_in_a_browser(browser: object, page_path: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[attr-defined]
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_path.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_path.as_uri()]
    assert page.title() == "selective-mae · terrasieve"
    for name in ("pictures", "scores", "figures", "curves", "throughput", "skipped", "environment", "recipe"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["height"] > 60 and box["width"] > 300, name
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 8 and min(widths) > 0  # latest, six earlier, one figure: all decoded
    parts = "[...document.querySelectorAll('.score > *, .facts *, svg')]"
    assert page.evaluate(f"{parts}.filter(e => e.getBoundingClientRect().right > innerWidth).length") == 0
    whisker, point = (page.locator(f".plot .{kind}").first.bounding_box() for kind in ("whisker", "point"))
    assert whisker["x"] < point["x"] + point["width"] / 2 < whisker["x"] + whisker["width"]
    page.close()


def test_dark_and_light_differ(browser: object, page_path: Path) -> None:
    shades = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)  # type: ignore[attr-defined]
        page.goto(page_path.as_uri())
        shades.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert shades == ["rgb(251, 250, 247)", "rgb(19, 23, 21)"]
