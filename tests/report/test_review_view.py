"""The review page in Chromium as it is seen: pictures, names, screens of any size, and the page without a server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from terrasieve.curate import decisions
from terrasieve.report.review_static import write_static

from .review_of import at, kept, opened, press, review_of, serving

pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium: apt-get install chromium"),
]


def test_pictures_are_seen(context: Any, folder: Path) -> None:
    with serving(folder) as server:
        page = opened(context, server.url)
        sizes = page.evaluate("[...document.querySelectorAll('.view img')].map(i => i.naturalWidth)")
        assert min(sizes) == 48
        page.wait_for_function("() => [...document.querySelectorAll('.thumbs img')].every(i => i.naturalWidth > 0)")
        assert page.locator(".thumbs img").count() == 2
        page.select_option("#kind", "overlap")
        at(page, 6)
        outline, ground = (page.locator(f"#left {part}").bounding_box() for part in (".shared", ".ground"))
        assert outline["x"] == pytest.approx(ground["x"] + ground["width"] / 2, abs=1)
        press(page, "o")
        for kind in ("under", "upper"):
            image, ground = page.locator(f".{kind}").bounding_box(), page.locator("#compare .ground").bounding_box()
            assert image["width"] == pytest.approx(2 * ground["width"], rel=0.01)
        page.mouse.move(*(outline[axis] + 30 for axis in "xy"))
        crosses = [
            page.locator(f"#{side} .cross").evaluate("c => parseFloat(c.style.left)") for side in ("left", "right")
        ]
        assert crosses[0] - crosses[1] == pytest.approx(50, abs=0.1)  # the same ground in both


def test_a_page_without_a_server(context: Any, folder: Path, tmp_path: Path) -> None:
    decisions.append(
        folder / "decisions.jsonl", *(review_of(folder).pair(5)[name] for name in ("id_a", "id_b")), "left", "x"
    )
    assert write_static(review_of(folder), "curated", tmp_path / "review.html", most=5) == (5, 1)
    html = (tmp_path / "review.html").read_text(encoding="utf-8")
    assert "class<0>" not in html and "1 more are left out" in html
    page = opened(context, (tmp_path / "review.html").as_uri())
    press(page, "a", 1)
    press(page, "b", 2)
    press(page, "d", 3)
    press(page, "u", 2)
    page.select_option("#sort", "farthest")
    at(page, 4)
    page.select_option("#sort", "closest")
    at(page, 2)
    page.reload()
    at(page, 2)
    assert min(page.evaluate("[...document.querySelectorAll('img')].map(i => i.naturalWidth)")) > 0
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "decisions.jsonl"
    with (folder / "decisions.jsonl").open("a") as file:
        file.write(Path(download.value.path()).read_text())
    assert kept(folder) == {5: "left", 0: "left", 1: "both"}


def test_everything_has_a_name_and_can_be_reached(context: Any, folder: Path) -> None:
    with serving(folder) as server:
        page = opened(context, server.url)
        nameless = """[...document.querySelectorAll('button, input, select, progress, img, dialog')].filter(e =>
            e.checkVisibility() && !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.alt
            && !e.textContent.trim()).map(e => e.outerHTML)"""
        assert page.evaluate(nameless) == []
        assert page.locator("html").get_attribute("lang") == "en" and page.locator("h1").count() == 1
        reached = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id"))
        assert {
            "verdict",
            "undecided",
            "place",
            "ask",
            "keep-left",
            "keep-both",
            "keep-right",
            "undo",
            "next",
        } <= reached
        page.locator("#keep-both").focus()
        press(page, "Enter", 1)
        assert kept(folder) == {0: "both"}
        assert "kept both" in page.locator("[aria-live]").inner_text()
        page.locator("#verdict").focus()
        press(page, "b")  # chooses in the list, decides nothing
        page.wait_for_timeout(100)
        assert kept(folder) == {0: "both"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 800), (1200, 800), (2560, 1440)])
def test_it_fits_the_screen(browser: Any, folder: Path, width: int, height: int, scheme: str) -> None:
    with serving(folder) as server:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = opened(context, server.url)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        parts = "[...document.querySelectorAll('.view, button, select')]"
        assert page.evaluate(f"{parts}.filter(e => e.getBoundingClientRect().right > innerWidth).length") == 0
        if width > 1000:  # pictures and keys are seen without scrolling
            for part in ("#left .view", "#right .view", "#compare .view", "#keep-left", "#keep-right"):
                box = page.locator(part).bounding_box()
                assert box["y"] >= 0 and box["y"] + box["height"] <= height, part
            assert page.locator("#left .view").bounding_box()["width"] > width / 4
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert shade == {"light": "rgb(251, 250, 247)", "dark": "rgb(19, 23, 21)"}[scheme]
        context.close()
