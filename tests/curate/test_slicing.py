"""Windows of oversized scenes: inside, different, keyed; their places agree with the scene's transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform as to_degrees

from terrasieve import manifest
from terrasieve.curate import collect, listing, slicing, step
from terrasieve.curate.engine import Local
from terrasieve.curate.listing import SourceSettings
from terrasieve.curate.scan import scan
from terrasieve.curate.slicing import SliceSettings, choose, cut
from terrasieve.curate.step import Result, Work
from terrasieve.curate.store import HashSettings, hash_images, open_store
from terrasieve.imagery import geo
from terrasieve.imagery.raster import read


def scene(path: Path, size: tuple[int, int], **profile: Any) -> Path:
    shape = {"width": size[0], "height": size[1], "count": 1, "dtype": "uint8", "sparse_ok": True}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, **shape, **profile):
        return path


def apply(table: pa.Table, folder: Path, settings: SliceSettings, seed: int = 0) -> tuple[pa.Table, Result]:
    manifest.write(table, folder / "in.parquet")
    result = cut(folder / "in.parquet", folder / "out.parquet", settings, Work(folder, Local(1), seed))
    return manifest.read(folder / "out.parquet", empty_ok=True), result


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.integers(40, 700),
    st.integers(0, 20),
    st.sampled_from(["grid", "random"]),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_windows_are_inside_and_different(
    size: tuple[int, int], size_px: int, overlap_px: int, how: Any, most: int | None
) -> None:
    how_cut = SliceSettings(over_px=None, size_px=size_px, overlap_px=overlap_px, how=how, max_windows=most)
    windows = choose("00ff00ff00ff00ff", size, how_cut, 0)
    x, y, width, height = windows.T
    assert (width == min(size_px, size[0])).all() and (height == min(size_px, size[1])).all()
    assert x.min() >= 0 and y.min() >= 0 and (x + width).max() <= size[0] and (y + height).max() <= size[1]
    assert len(np.unique(windows, axis=0)) == len(windows) and (most is None or len(windows) <= most)
    assert np.array_equal(windows, windows[np.lexsort((x, y))])


def test_a_grid_covers_every_pixel_with_the_overlap_asked_for() -> None:
    settings = SliceSettings(over_px=None, size_px=100, overlap_px=20, how="grid")
    seen = np.zeros((333, 250), int)
    windows = choose("0" * 16, (250, 333), settings, 0)
    for x, y, width, height in windows.tolist():
        seen[y : y + height, x : x + width] += 1
    assert seen.min() == 1
    assert sorted(set(windows[:, 0].tolist())) == [0, 80, 150] and sorted(set(windows[:, 1].tolist())) == [
        0, 80, 160, 233,
    ]  # fmt: skip


def test_random_windows_are_keyed_by_seed_and_scene() -> None:
    settings = SliceSettings(size_px=512, coverage=2.0)
    one = choose("00000000000000aa", (4000, 3000), settings, 0)
    assert len(one) == round(2 * 4000 * 3000 / 512**2)
    assert np.array_equal(one, choose("00000000000000aa", (4000, 3000), settings, 0))
    assert not np.array_equal(one, choose("00000000000000ab", (4000, 3000), settings, 0))
    assert not np.array_equal(one, choose("00000000000000aa", (4000, 3000), settings, 1))


def test_rows_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slicing, "ROW_GROUP", 4)
    monkeypatch.setattr(step, "ROW_GROUP", 4)
    place = {"crs": "EPSG:32721", "transform": from_origin(300000, 6100000, 10, 10)}
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif", (90, 60), **place)
    scene(tmp_path / "in" / "b.tif", (200, 130), **place)
    scene(tmp_path / "in" / "c.tif", (100, 100))
    table = scan(tmp_path / "in").table
    after, result = apply(table, tmp_path, SliceSettings(over_px=100, size_px=64, how="grid"))
    rows = after.to_pylist()
    assert [Path(row["uri"]).name for row in rows] == ["a.tif"] + ["b.tif"] * 13 + ["c.tif"]
    assert rows[1]["reason"] == "sliced: into 12 windows of 64 px" and not rows[1]["keep"]
    assert (result.rows, result.kept, dict(result.dropped)) == (15, 14, {"sliced": 1})
    assert rows[0] == table.to_pylist()[0] and rows[14] == table.to_pylist()[2]
    for row in rows[2:14]:
        assert row["id"] == manifest.row_id(row["uri"], row["window"])
        x, y, width, height = row["window"]
        assert (row["width"], row["height"]) == (width, height) == (64, 64)
        assert row["keep"] and row["bands"] == rows[1]["bands"] and row["crs"] == "EPSG:32721"
        (lon,), (lat,) = to_degrees("EPSG:32721", "EPSG:4326", [300000 + 10 * (x + 32)], [6100000 - 10 * (y + 32)])
        assert (row["lon"], row["lat"]) == pytest.approx((lon, lat), abs=1e-9)
        corners = shapely.get_coordinates(shapely.from_wkb(row["geometry"]))
        (lon,), (lat,) = to_degrees("EPSG:32721", "EPSG:4326", [300000 + 10 * x], [6100000 - 10 * y])
        assert np.abs(corners - [lon, lat]).sum(axis=1).min() < 1e-9
        assert len(corners) == 5
    assert len({row["id"] for row in rows}) == 15


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32601", from_origin(166000, 7000000, 500, 500)),  # across the antimeridian
        ("EPSG:3031", from_origin(-500000, 500000, 1000, 1000)),  # around the pole
        ("EPSG:32633", Affine(8, 6, 500000, -6, 8, 5000000)),  # turned
        ("EPSG:4326", Affine(0.01, 0, 10, 0, 0.01, -5)),  # south up
    ],
)
def test_places_of_windows_lie_in_the_scene(tmp_path: Path, crs: str, transform: Affine) -> None:
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif", (1000, 1000), crs=crs, transform=transform)
    table = scan(tmp_path / "in").table
    after, _ = apply(table, tmp_path, SliceSettings(over_px=None, size_px=250, how="grid"))
    whole = shapely.from_wkb(table["geometry"][0].as_py())
    outlines = shapely.from_wkb([row["geometry"] for row in after.to_pylist()[1:]])
    assert len(outlines) == 16 and shapely.is_valid(outlines).all()
    assert shapely.area(outlines).sum() == pytest.approx(whole.area, rel=0.01)
    assert shapely.area(shapely.intersection(outlines, whole)).sum() == pytest.approx(whole.area, rel=0.01)
    lon, lat = (np.array(after[name].to_pylist()[1:]) for name in ("lon", "lat"))
    inside = shapely.distance(outlines, shapely.points(lon, lat)) < 1e-6
    assert inside.all()


def test_a_place_that_a_csv_gave_is_interpolated(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif", (400, 200))
    scene(tmp_path / "in" / "b.tif", (400, 200), crs="EPSG:32721", transform=from_origin(300000, 6100000, 10, 10))
    (tmp_path / "in.csv").write_text(
        "path,left,bottom,right,top,epsg\nin/a.tif,300000,6098000,304000,6100000,32721\nin/b.tif,,,,,\n"
    )
    table = scan(tmp_path / "in.csv").table
    after, _ = apply(table, tmp_path, SliceSettings(over_px=None, size_px=100, how="grid"))
    rows = [row for row in after.to_pylist() if row["keep"]]
    assert len(rows) == 16
    for one, other in zip(rows[:8], rows[8:], strict=True):
        assert one["window"] == other["window"]
        assert (one["lon"], one["lat"]) == pytest.approx((other["lon"], other["lat"]), abs=1e-5)  # 0.1 pixels
        shapes = shapely.from_wkb([one["geometry"], other["geometry"]])
        assert shapely.hausdorff_distance(*shapes) < 1e-5


def test_a_point_stays_the_place_of_every_window(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    scene(tmp_path / "in" / "a.tif", (400, 200))
    (tmp_path / "in.csv").write_text("path,lon,lat\nin/a.tif,10,50\n")
    after, _ = apply(scan(tmp_path / "in.csv").table, tmp_path, SliceSettings(over_px=None, size_px=200))
    assert {(row["lon"], row["lat"]) for row in after.to_pylist()} == {(10.0, 50.0)}
    assert len(set(after["geometry"].to_pylist())) == 1


def test_a_scene_that_changed_or_vanished_is_a_row_with_a_reason(tmp_path: Path) -> None:
    place = {"crs": "EPSG:32721", "transform": from_origin(300000, 6100000, 10, 10)}
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        scene(tmp_path / "in" / f"{name}.tif", (90, 60), **place)
    table = scan(tmp_path / "in").table
    scene(tmp_path / "in" / "a.tif", (90, 50), **place)
    (tmp_path / "in" / "b.tif").unlink()
    after, result = apply(table, tmp_path, SliceSettings(over_px=None, size_px=32, how="grid"))
    assert dict(result.dropped) == {"changed": 1, "missing": 1, "sliced": 1}
    assert after["reason"][0].as_py() == ("changed: the file is 90 x 50 px now and was 90 x 60; run the curation again")


def test_a_scene_of_ten_billion_pixels_is_never_read_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    place = {"crs": "EPSG:32721", "transform": from_origin(300000, 6100000, 10, 10)}
    path = scene(tmp_path / "in" / "a.tif", (100_000, 100_000), blockxsize=512, blockysize=512, **place)
    with rasterio.open(path, "r+") as file:
        file.write(np.full((1, 512, 512), 7, np.uint8), window=((99_488, 100_000), (99_488, 100_000)))
    assert path.stat().st_size < 5_000_000
    assert "huge_header" in scan(path).table["reason"][0].as_py(), "the index is read by image, not by window"
    source = SourceSettings(name="s", paths=str(path))
    found = listing.list_sources([source], tmp_path / "spool.parquet", lambda done, total: None)
    collect.collect(found, [source], tmp_path / "scan.parquet", collect.ScanSettings(), Work(tmp_path, Local(1)))
    table = manifest.read(tmp_path / "scan.parquet")
    after, result = apply(table, tmp_path, SliceSettings(size_px=512, how="grid", max_windows=200))
    assert (result.rows, result.kept) == (201, 200)
    last = after.slice(200).to_pylist()[0]
    assert last["window"] == [99_488, 99_488, 512, 512]
    assert (read(str(path), last["window"]).array == 7).all()
    hashed = hash_images(tmp_path / "out.parquet", tmp_path / "hash.parquet", HashSettings(), Work(tmp_path, Local(1)))
    assert hashed.kept == 200
    store = open_store(tmp_path / "hashes")
    assert len(store) == 200 and not any(store.column("reason"))
    row = store.rows(step.numbers(pa.chunked_array([[last["id"]]])))
    assert (store.thumbs(row) == 7).all()


@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:3031", "EPSG:4326", "EPSG:3857", 'LOCAL_CS["x"]'])
def test_places_of_many_windows_are_those_of_each(crs: str) -> None:
    origin = {"EPSG:4326": (179.0, 89.9, 0.01), "EPSG:3857": (-2.0e7, 8.0e6, 300.0)}.get(crs, (-4e5, 4e5, 800.0))
    transform = (origin[2], 0.1 * origin[2], origin[0], 0.05 * origin[2], -origin[2], origin[1])
    windows = choose("0" * 16, (1000, 1000), SliceSettings(over_px=None, size_px=130, how="grid"), 0)
    outlines, centres = geo.window_places(transform, crs, windows)
    a, b, c, d, e, f = transform
    for window, outline, middle in zip(windows.tolist(), outlines, centres.tolist(), strict=True):
        x, y, width, height = window
        own = (a, b, a * x + b * y + c, d, e, d * x + e * y + f)
        expected = geo.footprint(own, crs, width, height)
        assert (outline is None) == (expected is None)
        if expected is not None:
            assert shapely.equals_exact(outline.normalize(), expected.normalize(), 1e-9)
        assert np.array(middle) == pytest.approx(geo.centre(own, crs, width, height) or (np.nan, np.nan), nan_ok=True)
