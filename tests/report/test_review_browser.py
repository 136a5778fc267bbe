"""The review page in Chromium: keys, filters, undo, two tabs, a server that is killed, and the page without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from terrasieve.curate import decisions
from terrasieve.report.review_static import write_static

from .review_of import review_of, serving, write_review

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A browser window whose pages must not complain, nor ask anything of another host."""
    made = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    made.set_default_timeout(10_000)
    said: list[str] = []
    made.on("console", lambda message: said.append(message.text))
    made.on("weberror", lambda error: said.append(str(error.error)))
    made.on(
        "request",
        lambda request: re.match(r"(http://127\.0\.0\.1:|file:|data:|blob:)", request.url) or said.append(request.url),
    )
    yield made
    made.close()
    assert said == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_review(tmp_path / "curated")


def opened(context: Any, url: str) -> Any:
    page = context.new_page()
    page.goto(url)
    at(page, 0)
    return page


def at(page: Any, number: int) -> None:
    """Wait until the pair is there, its pictures too."""
    page.wait_for_function("number => shown !== null && shown.number === number && !busy", arg=number)


def press(page: Any, key: str, then: int | None = None) -> None:
    page.keyboard.press(key)
    if then is not None:
        at(page, then)


def kept(folder: Path) -> dict[int, str]:
    review = review_of(folder)
    ids = {(pair["id_a"], pair["id_b"]): n for n in range(len(review.pairs)) if (pair := review.pair(n))}
    return {ids[pair]: what for pair, what in decisions.read(folder / "decisions.jsonl").items()}


def test_every_key(context: Any, folder: Path) -> None:
    with serving(folder) as server:
        page = opened(context, server.url)
        assert page.title() == "curated · review · terrasieve"
        for key, then, said in (
            ("ArrowLeft", 1, "left"),
            ("d", 2, "right"),
            ("b", 3, "both"),
            ("a", 4, "left"),
            ("ArrowRight", 5, "right"),
        ):
            press(page, key, then)
            assert kept(folder)[then - 1] == said
        assert page.locator("#progress").inner_text().startswith("5 of 7 decided")
        press(page, "u", 4)
        press(page, "u", 3)
        assert sorted(kept(folder)) == [0, 1, 2]
        press(page, "ArrowUp", 2)
        assert page.locator("#left .verdict").inner_text() == page.locator("#right .verdict").inner_text() == "keep"
        press(page, "k", 1)
        assert page.locator("#left .verdict").inner_text() == "drop"
        press(page, "j", 2)
        press(page, "ArrowDown", 3)
        press(page, "o")
        assert page.locator("#overlay").is_visible() and not page.locator("#difference").is_visible()
        press(page, " ")
        assert page.locator("#wipe").input_value() == "100"
        press(page, "f")
        assert page.locator("#difference").is_visible() and not page.locator("#overlay").is_visible()
        press(page, "z")
        assert page.evaluate("zoom") == 2
        press(page, "0")
        assert page.evaluate("zoom") == 1
        press(page, "?")
        assert page.locator("#help").is_visible()
        press(page, "a")  # not a decision while help is open
        press(page, "Escape")
        assert sorted(kept(folder)) == [0, 1, 2]
        page.evaluate(
            "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', repeat: true, bubbles: true}))"
        )
        press(page, "Control+d")
        page.wait_for_timeout(100)
        assert sorted(kept(folder)) == [0, 1, 2]


def test_done_and_look_again(context: Any, folder: Path) -> None:
    with serving(folder) as server:
        page = opened(context, server.url)
        for then in (1, 2, 3, 4, 5, 6):
            press(page, "b", then)
        press(page, "a")
        page.locator("#done").wait_for()
        assert page.locator("#done h2").inner_text() == "All 7 pairs are decided"
        assert "kept left 1" in page.locator("#done .counts").inner_text()
        assert "terrasieve curate" in page.locator("#done").inner_text()
        assert kept(folder) == {**dict.fromkeys(range(6), "both"), 6: "left"}
        page.reload()
        page.locator("#done").wait_for()
        press(page, "u", 6)
        assert 6 not in kept(folder)
        press(page, "a")
        page.locator("#again").click()
        at(page, 0)
        page.locator("#undecided").check()
        page.locator("#done").wait_for()


def test_filters(context: Any, folder: Path) -> None:
    with serving(folder) as server:
        page = opened(context, server.url)
        page.select_option("#kind", "rotated")
        at(page, 1)
        assert page.locator("#total").inner_text() == "of 1"
        page.select_option("#kind", "all")
        page.select_option("#source", "two")
        at(page, 1)
        press(page, "j", 3)
        page.select_option("#source", "all")
        page.select_option("#sort", "farthest")
        at(page, 6)
        page.select_option("#verdict", "duplicate")
        at(page, 7)
        assert "missing" in page.locator("#right .error").inner_text()
        page.select_option("#verdict", "review")
        page.select_option("#sort", "closest")
        at(page, 0)
        press(page, "b", 1)
        page.locator("#undecided").check()
        page.wait_for_function("() => order.length === 6")
        at(page, 1)
        assert page.locator("#total").inner_text() == "of 6" and page.locator("#bar").evaluate("bar => bar.value") == 1
        press(page, "b", 2)
        page.fill("#place", "5")
        press(page, "Enter", 5)
        page.get_by_role("button", name="only this group").click()
        page.wait_for_function("() => order.length === 2")
        page.locator("#group").click()
        page.wait_for_function("() => order.length === 5")


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


def test_two_tabs_see_each_other(context: Any, folder: Path) -> None:
    with serving(folder) as server:
        one, two = opened(context, server.url), opened(context, server.url)
        press(one, "a", 1)
        two.wait_for_function("() => decisions.get(0) === 'left'")
        assert two.locator("#left .verdict").inner_text() == "keep"
        press(two, "j", 1)
        press(two, "b", 2)
        one.wait_for_function("() => decisions.get(1) === 'both'")
        press(one, "u", 0)  # this tab's own last decision, not the other's
        two.wait_for_function("() => !decisions.has(0)")
        assert kept(folder) == {1: "both"}
        lines = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
        assert [line["tab"] == lines[0]["tab"] for line in lines] == [True, False, True]


def test_a_killed_server_loses_nothing(browser: Any, context: Any, folder: Path) -> None:
    def start(port: int) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "terrasieve", "review", str(folder), "--port", str(port)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        return server, next(line.strip() for line in lines if "http" in line)

    server, url = start(0)
    try:
        other = browser.new_context()  # its console will complain of the server
        page = opened(other, url)
        press(page, "a", 1)
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        press(page, "b")
        page.locator("#trouble").wait_for()
        assert "not kept" in page.locator("#trouble").inner_text()
        other.close()
        server, url = start(0)
        page = context.new_page()
        page.goto(url)
        at(page, 1)
        assert kept(folder) == {0: "left"} and page.locator("#progress").inner_text().startswith("1 of 7")
        press(page, "b", 2)
        assert kept(folder) == {0: "left", 1: "both"}
        page.close()
    finally:
        server.kill()
        server.wait()


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
