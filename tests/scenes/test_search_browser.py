"""The page of a search in Chromium: what it compares itself, clicks, the browser's own buttons, and no request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from terrasieve.scenes.similar import alike
from terrasieve.scenes.vectors import open_vectors
from terrasieve.searching import search

from .test_search import images_file, map_file, naive

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]
SHOWN = "[...document.querySelectorAll('#hits button')].map(e => e.title)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def opened(browser: Any, path: Path, width: int = 1300) -> tuple[Any, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("data:", path.as_uri())) or wrong.append(request.url))
    page.goto(path.as_uri())
    return page, wrong


def nearly(shown: list[str], ids: list[str], scores: np.ndarray, own: int) -> None:
    """Check an order that is that of the scores but where they are closer than the page's bytes can tell."""
    found = [scores[ids.index(name)] for name in shown]
    best = np.sort(np.delete(scores, own))[::-1][: len(shown)]
    assert len(set(shown)) == len(shown) and ids[own] not in shown
    assert np.abs(np.array(found) - best).max() < 0.02


def test_any_result_is_asked_by_a_click(browser: Any, tmp_path: Path) -> None:
    path, vectors, rows = images_file(tmp_path)
    ids = [row["id"] for row in rows]
    done = search(path, ids[7], tmp_path / "page.html", count=12)
    page, wrong = opened(browser, tmp_path / "page.html")
    first = page.evaluate(SHOWN)
    nearly(first, ids, naive(vectors, 7), 7)
    assert float(page.locator("#hits .score").first.text_content()) == pytest.approx(done.hits[0][2], abs=0.01)
    assert page.locator("#asked .place").text_content() == "50.0000°N 10.7000°E"
    assert page.locator("#marks rect").count() == 60 and page.locator("#marks .hit").count() == 12
    page.locator("#hits button").nth(2).click()
    page.wait_for_function("location.hash.length > 1")
    second = ids.index(first[2])
    nearly(page.evaluate(SHOWN), ids, naive(vectors, second), second)
    assert ids[second] in page.locator("#asked .id").text_content()
    page.locator("#marks rect:not(.hit):not(.own)").first.dispatch_event("click")
    page.wait_for_function(f"!document.querySelector('#asked .id').textContent.includes('{ids[second]}')")
    page.go_back()
    page.wait_for_function(f"document.querySelector('#asked .id').textContent.includes('{ids[second]}')")
    page.get_by_text("Back to the first").click()
    page.wait_for_function("location.hash === '#0'")
    assert page.evaluate(SHOWN) == first and page.locator("#first").is_disabled()
    assert wrong == []
    page.close()


def test_cells_of_a_scene_lie_on_its_picture(browser: Any, tmp_path: Path) -> None:
    path, _ = map_file(tmp_path)
    vectors = open_vectors(path)
    lon, lat = vectors.places([251]).lonlat_N2[0]
    search(path, f"{lon},{lat}", tmp_path / "page.html", count=10, pool=150)
    page, wrong = opened(browser, tmp_path / "page.html")
    shown = [tuple(map(int, name.split(","))) for name in page.evaluate(SHOWN)]
    expected = [divmod(int(cell), 30) for cell in alike(vectors, 251, 10, 2000).nearest]
    assert len(set(shown) & set(expected)) >= 9  # of two that are all but equally like either may be the last
    own, picture = page.locator("#marks .own").bounding_box(), page.locator("#map image").bounding_box()
    assert own["x"] - picture["x"] == pytest.approx(11 / 30 * picture["width"], abs=3)
    assert own["y"] - picture["y"] == pytest.approx(8 / 20 * picture["height"], abs=3)
    shade = "getComputedStyle(document.querySelector('#hits .thumb')).backgroundPosition"
    before = page.evaluate(shade)
    page.locator("#hits button").last.click()
    page.wait_for_function(f"{shade} !== '{before}'")
    assert wrong == []
    page.close()


def test_images_without_a_place_have_no_map(browser: Any, tmp_path: Path) -> None:
    path, vectors, rows = images_file(tmp_path, placed=False)
    ids = [row["id"] for row in rows]
    search(path, ids[7], tmp_path / "page.html", count=12)
    page, wrong = opened(browser, tmp_path / "page.html")
    assert page.locator("#map").count() == 0 and page.locator("#asked .place").text_content() == "007.png"
    second = ids.index(page.evaluate(SHOWN)[1])
    page.locator("#hits button").nth(1).click()
    page.wait_for_function(f"document.querySelector('#asked .id').textContent.includes('{ids[second]}')")
    nearly(page.evaluate(SHOWN), ids, naive(vectors, second), second)
    assert wrong == []
    page.close()


@pytest.mark.parametrize("width", [360, 900, 1300])
def test_nothing_sticks_out(browser: Any, tmp_path: Path, width: int) -> None:
    path, _ = map_file(tmp_path)
    lon, lat = open_vectors(path).places([251]).lonlat_N2[0]
    search(path, f"{lon},{lat}", tmp_path / "page.html", count=10, pool=60)
    page, wrong = opened(browser, tmp_path / "page.html", width)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator("#hits .thumb").first.bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1) and box["width"] > 80
    assert wrong == []
    page.close()
