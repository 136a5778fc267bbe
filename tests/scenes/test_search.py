"""Search by example: the nearest vectors exactly, from both kinds of file, and what the page holds."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from typer.testing import CliRunner

from terrasieve import manifest
from terrasieve.cli import app
from terrasieve.errors import UserError
from terrasieve.report.similar_page import around, codes
from terrasieve.scenes import table
from terrasieve.scenes.scene import open_scene
from terrasieve.scenes.similar import APART, alike
from terrasieve.scenes.vectors import open_vectors
from terrasieve.searching import search

from .scene_file import NAMES, write_scene

WIDTH = 24


def drawn(count: int) -> np.ndarray:
    """Vectors in clusters, far from 0."""
    draw = np.random.Generator(np.random.Philox(8))
    kinds = draw.normal(size=(6, WIDTH))
    return (5 + kinds[draw.integers(6, size=count)] + 0.4 * draw.normal(size=(count, WIDTH))).astype(np.float32)


def naive(vectors: np.ndarray, query: int) -> np.ndarray:
    centred = vectors.astype(np.float64) - np.nanmean(vectors, axis=0, dtype=np.float64)
    lengths = np.sqrt((centred**2).sum(1))
    return (centred @ centred[query]) / lengths / lengths[query]


def images_file(folder: Path, count: int = 60, placed: bool = True) -> tuple[Path, np.ndarray, list[dict[str, Any]]]:
    """A table of images on a grid of the ground; the last cannot be read."""
    vectors, rows = drawn(count), []
    for number in range(count):
        path = folder / f"{number:03d}.png"
        lon, lat = 10 + number % 10 * 0.1, 50 - number // 10 * 0.1
        Image.fromarray(np.full((16, 16, 3), 40 + 3 * number, np.uint8)).save(path)
        outline = rasterio.coords.BoundingBox(lon - 0.04, lat - 0.04, lon + 0.04, lat + 0.04)
        rows.append(
            {"id": manifest.row_id(str(path)), "uri": str(path), "lon": lon, "lat": lat, "geometry": wkb(outline)}
        )
        if not placed:
            rows[-1] |= {"lon": None, "lat": None, "geometry": None}
    (folder / f"{count - 1:03d}.png").write_bytes(b"no picture")
    out = folder / "vectors.parquet"
    with table.writing(out, WIDTH, {"made_of": "images.parquet"}) as writer:
        writer.write(table.places(rows), vectors)
    return out, vectors, rows


def wkb(box: Any) -> bytes:
    import shapely

    outline: bytes = shapely.to_wkb(shapely.box(*box))
    return outline


def map_file(folder: Path, **how: Any) -> tuple[Path, np.ndarray]:
    """A COG of features as embed writes it, of cells of 4 px; a corner without data."""
    scene = write_scene(folder / "scene.tif", 80, 120)
    assert open_scene(scene, NAMES).width == 120
    vectors = drawn(20 * 30)
    vectors.reshape(20, 30, WIDTH)[:2, :3] = np.nan
    place = {"crs": "EPSG:32721", "transform": from_origin(500000, 6100000, 40, 40)}
    shape = {"width": 30, "height": 20, "count": WIDTH, "dtype": "float32", "nodata": float("nan")}
    layout = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    with rasterio.open(folder / "features.tif", "w", driver="GTiff", **shape, **layout, **(place | how)) as file:
        file.write(vectors.T.reshape(WIDTH, 20, 30))
        file.update_tags(terrasieve_encoder="x", terrasieve_scene=str(scene), cell_px="4")
    return folder / "features.tif", vectors


def held(page: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(re.search(r'id="held">(.*?)</script>', page.read_text(), re.S)[1])  # type: ignore[index]
    return content


@pytest.mark.parametrize("pool", [20, 59, 60, 500])
def test_the_nearest_images_are_those_of_a_naive_search(tmp_path: Path, pool: int) -> None:
    path, vectors, rows = images_file(tmp_path)
    scores = naive(vectors, 7)
    expected = [n for n in np.argsort(-scores) if n != 7][:12]
    done = search(path, rows[7]["id"], tmp_path / "page.html", count=12, pool=pool)
    assert [name for name, _, _ in done.hits] == [rows[n]["id"] for n in expected]
    assert [score for _, _, score in done.hits] == pytest.approx(scores[expected], abs=1e-5)
    board = held(tmp_path / "page.html")
    assert board["ids"][:13] == [rows[7]["id"], *(rows[n]["id"] for n in expected)]
    assert len(set(board["ids"])) == len(board["ids"]) == min(pool, 60)
    assert done.failed == ([] if rows[59]["id"] not in board["ids"] else [(rows[59]["uri"], done.failed[0][1])])


def test_codes_keep_cosines() -> None:
    unit = drawn(300) - drawn(300).mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    back = np.frombuffer(codes(unit), np.int8).reshape(300, WIDTH).astype(np.float64)
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    assert np.abs(back @ back.T - unit @ unit.T).max() < 0.01


def test_cells_of_a_scene_are_found_apart_from_each_other(tmp_path: Path) -> None:
    path, vectors = map_file(tmp_path)
    query = 8 * 30 + 11
    found = alike(open_vectors(path), query, count=9, pool=40)
    scores = naive(vectors, query)
    kept = [query]
    for cell in sorted(np.flatnonzero(np.isfinite(scores)), key=lambda cell: -scores[cell]):
        if all(max(abs(cell // 30 - k // 30), abs(cell % 30 - k % 30)) >= APART for k in kept):
            kept.append(int(cell))
    assert found.nearest.tolist() == kept[1:10] and found.real == 600 - 6
    assert np.isfinite(found.unit_MD).all() and len(set(found.rows.tolist())) == len(found.rows) == 40
    centred = vectors - np.nanmean(vectors, axis=0, dtype=np.float64)
    assert np.allclose(found.unit_MD @ found.unit_MD[0], naive(vectors, query)[found.rows], atol=1e-5)
    assert np.isnan(centred[found.rows]).sum() == 0


def test_a_place_is_found_by_its_coordinates(tmp_path: Path) -> None:
    path, _ = map_file(tmp_path)
    vectors = open_vectors(path)
    cell = 13 * 30 + 22
    places = vectors.places([cell])
    lon, lat = places.lonlat_N2[0]
    assert vectors.find(f"{lon},{lat}") == cell
    assert (places.ids, places.windows) == (["13,22"], [(88, 52, 4, 4)])
    images, _, rows = images_file(tmp_path)
    opened = open_vectors(images)
    assert opened.find("10.33,49.98") == 3 and opened.find(rows[5]["id"]) == 5
    with pytest.raises(UserError, match=r"no image holds this place; the nearest, .*, is \d+"):
        opened.find("10.35,52")
    with pytest.raises(UserError, match="no row says where it lies"):
        open_vectors(images_file(tmp_path, placed=False)[0]).find("10.33,49.98")
    name = Path(rows[5]["uri"]).name
    assert opened.find(name) == opened.find(rows[5]["uri"]) == 5
    with pytest.raises(UserError, match="no row has this id or is of such a file"):
        opened.find(name[1:])  # the end of a name is not a name
    corner = r"{:.4f},{:.4f}".format(*vectors.places([0]).lonlat_N2[0])
    with pytest.raises(UserError, match=f"does not hold this place; its corners are at {corner} and "):
        vectors.find("0,0")
    with pytest.raises(UserError, match="give LON,LAT"):
        vectors.find("13:22")
    with pytest.raises(UserError, match="no data at this place"):
        alike(vectors, 31, 5, 20)


def test_windows_around_cells_stay_in_the_image() -> None:
    assert around((40, 40, 4, 4), 120, 80) == ((32, 32, 20, 20), (0.4, 0.4, 0.6, 0.6))
    assert around((0, 76, 4, 4), 120, 80) == ((0, 60, 20, 20), (0.0, 0.8, 0.2, 1.0))
    assert around((4, 4, 4, 4), 10, 80)[0] == (0, 0, 10, 20)


def test_the_command_says_what_it_found(tmp_path: Path) -> None:
    path, _ = map_file(tmp_path)
    lon, lat = open_vectors(path).places([251]).lonlat_N2[0]
    page = tmp_path / "page.html"
    result = CliRunner().invoke(
        app, ["search", str(path), "--like", f"{lon},{lat}", "-n", "8", "--pool", "90", "-o", str(page)]
    )
    assert result.exit_code == 0, result.output
    best = alike(open_vectors(path), 251, 8, 90)
    assert f"{best.scores[0]:.3f}" in result.output and "8 of 594" in result.output
    board = held(page)
    assert len(board["ids"]) == 90 and board["apart"] == APART * 4
    assert len(base64.b64decode(board["codes"])) == 90 * WIDTH


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"out": "page.pdf"}, "ends in .html"),
        ({"count": 0}, "-n 0"),
        ({"pool": 5}, "--pool 5"),
        ({"path": "no"}, "no file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    path, _, rows = images_file(tmp_path)
    out = tmp_path / how.get("out", "page.html")
    with pytest.raises(UserError, match=words):
        search(
            tmp_path / how["path"] if "path" in how else path, rows[0]["id"], out,
            count=how.get("count", 10), pool=how.get("pool", 30),
        )  # fmt: skip


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no map of features"):
        open_vectors(write_scene(tmp_path / "scene.tif", 20, 20))
    (tmp_path / "text.tif").write_text("text")
    with pytest.raises(UserError, match="no GeoTIFF"):
        open_vectors(tmp_path / "text.tif")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="no column uri"):
        open_vectors(tmp_path / "other.parquet")
