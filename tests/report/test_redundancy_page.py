"""The redundancy page: what its figures count, in what order they stand, and what its masks keep."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from terrasieve.evaluate.redundancy import SCORES, RedundancySettings
from terrasieve.keyed import numpy_generator
from terrasieve.report import redundancy_figures as figures
from terrasieve.report.redundancy_gallery import GAP_PX, TILE_PX, strip
from terrasieve.report.redundancy_page import Example, by_redundancy, write_redundancy_report

HOSTILE = "<script>document.title='owned'</script>"
SETTINGS = RedundancySettings(patch_px=8)


def table_of(count: int = 300, groups: int = 3, **columns: list) -> pa.Table:
    draw = numpy_generator(4, "test-page")
    rows = {
        "uri": [f"/data/{HOSTILE}/{n}.tif" for n in range(count)],
        "lon": (10 + draw.random(count)).tolist(),
        "lat": (50 + draw.random(count)).tolist(),
        "source": ["naip" if n % 2 else None for n in range(count)],
        "label": [f"{HOSTILE}{n % groups:03d}" for n in range(count)],
        "labels": [None] * count,
        "patches": [16] * count,
        "no_data_patches": [n % 2 for n in range(count)],
        **{name: ((np.arange(count) % groups + draw.random(count)) / groups).tolist() for name in SCORES},
        "reason": [""] * count,
    }
    return pa.table(rows | columns)


def page_of(folder: Path, table: pa.Table, settings: RedundancySettings = SETTINGS) -> str:
    example = Example("/data/a/b.tif", "sea", jpeg())
    return write_redundancy_report(folder, table, settings, {"mean": [1.0, 2.0]}, [example]).read_text()


def jpeg(score: torch.Tensor | None = None, **how: object) -> bytes:
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[0], image[1, ::2] = 200, 90
    return strip(image, None, torch.arange(16.0) if score is None else score, 8, ("red", "green", "blue"), **how)  # type: ignore[arg-type]


def test_page_has_every_part_and_no_way_out(tmp_path: Path) -> None:
    html = page_of(tmp_path, table_of())
    for part in ("means", "distributions", "classes", "sources", "map", "gallery", "unscored", "settings"):
        assert f'<section id="{part}">' in html, part
    assert html.count("<figcaption") == len(SCORES) + 1
    assert "<script" not in html and HOSTILE not in html
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert html.count("<circle") == 300
    rows = re.findall(r'<tr><td>(all|naip|\(none\))</td><td class="number">(\d+)</td>', html)
    assert rows == [("all", "300"), ("(none)", "150"), ("naip", "150")]
    assert "3.1 %" in html  # of the patches hold no data: 150 of 4,800


def test_parts_without_content_are_left_out(tmp_path: Path) -> None:
    nothing = [None] * 5
    plain = table_of(5, lon=nothing, lat=nothing, source=["a"] * 5, label=nothing)
    html = page_of(tmp_path, plain.set_column(plain.column_names.index("lon"), "lon", pa.array(nothing, pa.float64())))
    for part in ("classes", "sources", "map"):
        assert f'<section id="{part}">' not in html, part
    assert "None: every image was scored." in html


def test_unscored_images_are_counted_and_do_not_count(tmp_path: Path) -> None:
    reasons = ["", "truncated: cut", "no_data: 0 of 16 patches are real", "truncated: cut", ""] * 60
    scores = {name: [None if why else 0.5 for why in reasons] for name in SCORES}
    html = page_of(tmp_path, table_of(reason=reasons, **scores))
    assert "180 rows of the manifest: 120 truncated, 60 no_data." in html
    assert html.count("<circle") == 120
    assert html.count('<td class="reason">') == 180


def test_groups_stand_in_order_and_the_middle_is_left_out(tmp_path: Path) -> None:
    labels = [f"c{n % 60:03d}" for n in range(300)]
    html = page_of(tmp_path, table_of(groups=60, label=labels))
    names = re.findall(r'text-anchor="end">(c\d+) <tspan>\(5\)', html)
    assert names == [f"c{n:03d}" for n in [*range(59, 39, -1), *range(19, -1, -1)]]
    assert "20 of 60 groups in the middle are not drawn" in html
    covered = page_of(
        tmp_path, table_of(label=["a", "b", "c"] * 100), RedundancySettings(patch_px=8, reduction="cover")
    )
    assert re.findall(r'text-anchor="end">(\w) <tspan>\(100\)', covered) == [
        "a",
        "b",
        "c",
    ]  # kept least: most redundant


def test_labels_of_a_multilabel_image_all_count(tmp_path: Path) -> None:
    table = table_of(4, label=[None] * 4, labels=[["a", "b"], ["b"], [], ["b", "a"]])
    html = page_of(tmp_path, table)
    assert set(re.findall(r"end\">(\S+) <tspan>\((\d)\)", html)) >= {("a", "2"), ("b", "3"), ("(none)", "1")}


def test_ranking_goes_from_most_to_least_redundant() -> None:
    table = table_of(4, cosine_mean=[0.1, None, 0.9, 0.5], cover_kept=[0.1, None, 0.9, 0.5], reason=["", "x", "", ""])
    assert by_redundancy(table, SETTINGS).tolist() == [2, 3, 0]
    assert by_redundancy(table, RedundancySettings(reduction="cover")).tolist() == [0, 3, 2]


def test_histogram_holds_every_image() -> None:
    values = np.concatenate([numpy_generator(0, "h").random(999), [1e6]])  # one far out: counted in the last bar
    svg = figures.histogram("x", values)
    heights = [float(h) for h in re.findall(r'class="bar".*?height="([\d.]+)"', svg)]
    unit = max(heights) / np.histogram(values.clip(*figures.limits(values)), figures.BINS)[0].max()
    assert sum(heights) / unit == pytest.approx(1000, rel=0.01)
    assert "mean 1" in svg
    assert figures.histogram("flat", np.full(7, 3.0)).count('class="bar"') == 1


def test_map_draws_points_or_cells_and_odd_places() -> None:
    draw = numpy_generator(1, "map")
    many = figures.POINTS + 1
    lon, lat = draw.random(many) * 360 - 180, draw.random(many) * 180 - 90
    svg = figures.world("x", lon, lat, lon)
    assert "<circle" not in svg
    west, east = (re.findall(rf'class="s{shade}" x="([\d.]+)"', svg) for shade in (0, 8))
    assert max(map(float, west)) < 400 and max(map(float, east)) > 700  # the score is the longitude
    for place in (np.zeros(1), np.full(3, 89.9)):
        svg = figures.world("x", place, place, place)
        assert svg.count("<circle") == len(place) and "nan" not in svg and "inf" not in svg


def tiles(content: bytes) -> list[np.ndarray]:
    sheet = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    return [sheet[:, start : start + TILE_PX] for start in range(0, sheet.shape[1], TILE_PX + GAP_PX)]


def test_masks_keep_the_least_redundant_in_colour() -> None:
    found = tiles(jpeg(torch.arange(16.0).flip(0)))  # the last patch is the least redundant
    assert len(found) == 5
    side = TILE_PX / 4
    for tile, kept in zip(found, (16, 12, 8, 4, 2), strict=True):
        middles = [(round((n // 4 + 0.5) * side), round((n % 4 + 0.5) * side)) for n in range(16)]
        coloured = [n for n, (y, x) in enumerate(middles) if tile[y, x, 0] - tile[y, x, 2] > 90]
        assert coloured == list(range(16 - kept, 16))


def test_masks_of_missing_data_and_wide_images() -> None:
    valid = torch.ones(16, 32, dtype=torch.bool)
    valid[:8] = False
    image = torch.rand(1, 16, 32, generator=torch.Generator().manual_seed(0)) * 5000
    score = torch.tensor([torch.inf] * 4 + [0.1, 0.2, 0.3, 0.4])
    sheet = Image.open(io.BytesIO(strip(image, valid, score, 8, ("sar",), ratios=(0.5,))))
    assert sheet.size == (2 * (2 * TILE_PX) + GAP_PX, TILE_PX)
    first = np.asarray(sheet)[: TILE_PX // 3, : 2 * TILE_PX].astype(int)
    assert abs(first - 128).max() < 12


sync_api = pytest.importorskip("playwright.sync_api")


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [360, 1200])
def test_page_in_a_browser(tmp_path: Path, width: int) -> None:
    page_of(tmp_path, table_of())
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
        assert page.title().endswith("redundancy · terrasieve")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
