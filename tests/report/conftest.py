"""A browser, a window of it that must not be complained to, and a folder with pairs to review."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .review_of import write_review


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
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
