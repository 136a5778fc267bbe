"""A small review for the tests: pairs of small images, most in the review band, their server, its page in Chromium."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from terrasieve import manifest
from terrasieve.curate import decisions
from terrasieve.report.review_pairs import ReviewPairs
from terrasieve.report.review_server import ReviewServer

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id_a", "id_b", "kind", "verdict", "by")),
        *((name, pa.uint8()) for name in ("distance", "orientation")),
        *((name, pa.int32()) for name in ("dx_px", "dy_px")),
        *((name, pa.float32()) for name in ("correlation", "shared_fraction", "score")),
    ]
)


def write_review(folder: Path, count: int = 6) -> Path:
    """Write ``count`` pairs of the review band of two sources, a duplicate, an overlap and one that cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.Generator(np.random.Philox(0))
    rows: list[dict[str, Any]] = []

    def image(name: str, pixels: np.ndarray, **more: Any) -> str:
        Image.fromarray(pixels).save(folder / name)
        uri = str(folder / name)
        size = {
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "bands": ["red", "green", "blue"],
            "dtype": "uint8",
        }
        rows.append(
            {"id": manifest.row_id(uri), "uri": uri, "keep": True, "reason": "", "source": "one", **size, **more}
        )
        return str(rows[-1]["id"])

    pairs: list[dict[str, Any]] = []
    for n in range(count):
        pixels = draw.integers(0, 255, (8, 8, 3)).astype(np.uint8).repeat(6, 0).repeat(6, 1)
        a = image(f"a{n}.png", pixels, group=n // 2, label=f"class<{n}>")
        b = image(f"b{n}.png", pixels // 2, group=n // 2, source="two" if n % 2 else "one", gsd_m=0.5)
        about = {"kind": "rotated" if n == 1 else "near", "distance": n, "correlation": 0.95 - n / 100}
        pairs.append({"id_a": a, "id_b": b, "verdict": "review", "by": "rule", **about})
    wide = draw.integers(0, 255, (40, 60, 3)).astype(np.uint8)
    a, b = image("left.png", wide[:, :40]), image("right.png", wide[:, 20:])
    about = {"kind": "overlap", "dx_px": 20, "dy_px": 0, "shared_fraction": 0.5, "score": 0.5}
    pairs.append({"id_a": a, "id_b": b, "verdict": "review", "by": "rule", **about})
    a, b = image("twin.png", wide), image("gone.png", wide)
    (folder / "gone.png").unlink()
    pairs.append({"id_a": a, "id_b": b, "kind": "exact", "verdict": "duplicate", "by": "rule", "correlation": 1.0})
    manifest.write(manifest.rows_to_table(rows), folder / "manifest.parquet")
    pq.write_table(pa.Table.from_pylist(pairs, SCHEMA), folder / "pairs.parquet")
    return folder


def review_of(folder: Path) -> ReviewPairs:
    return ReviewPairs(folder / "pairs.parquet", [folder / "manifest.parquet"], folder / "decisions.jsonl")


@contextmanager
def serving(folder: Path) -> Iterator[ReviewServer]:
    with ReviewServer(review_of(folder), folder.name) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


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
