"""The review page in Chromium: keys, filters, undo, two tabs, a server that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .review_of import at, kept, opened, press, serving

pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium: apt-get install chromium"),
]


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
