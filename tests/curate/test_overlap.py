"""Overlap: by footprint against shapely and counted pixels, by content against crops whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import simplejpeg

from terrasieve import manifest
from terrasieve.curate import footprints
from terrasieve.curate.engine import Local
from terrasieve.curate.overlap import Notes, OverlapSettings, find_overlaps, overlapping
from terrasieve.curate.rows import Rows
from terrasieve.curate.scan import scan
from terrasieve.curate.step import Work
from terrasieve.imagery import geo
from terrasieve.imagery.earth import RGB, render, sample_place


def rows_of(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    full = [
        {"id": manifest.row_id(row["uri"], row.get("window")), "keep": True, "reason": "", "bands": list(RGB)} | row
        for row in rows
    ]
    manifest.write(manifest.rows_to_table(full), path)
    return path


def placed(
    uri: str, left: float, top: float, size: tuple[int, int], gsd: float = 10, epsg: int = 32721
) -> dict[str, Any]:
    outline = geo.footprint((gsd, 0, left, 0, -gsd, top), f"EPSG:{epsg}", *size)
    return {
        "uri": uri,
        "width": size[0],
        "height": size[1],
        "geometry": shapely.to_wkb(outline),
        "crs": f"EPSG:{epsg}",
        "gsd_m": gsd,
    }


def found(path: Path, tmp_path: Path, others: Sequence[Path] = (), **settings: Any) -> list[dict[str, Any]]:
    work = Work(tmp_path / "work", Local(1))
    if not others:
        return list(find_overlaps(path, OverlapSettings(**settings), work).to_pylist())
    rows = Rows([path, *others])
    pairs, _ = overlapping(rows, OverlapSettings(**settings), work)
    names = [rows.take(column, ["uri"])["uri"].to_pylist() for column in (pairs.a, pairs.b)]
    return [
        {"uri_a": a, "uri_b": b, "dx_px": dx, "dy_px": dy}
        for a, b, dx, dy in zip(*names, pairs.dx, pairs.dy, strict=True)
    ]


def test_offsets_of_equal_grids_are_those_of_counted_pixels(tmp_path: Path) -> None:
    draw = np.random.Generator(np.random.Philox(1))
    places = [
        (f"{k}.tif", 300_000 + 10 * int(draw.integers(400)), 6_100_000 + 10 * int(draw.integers(400)),
         (int(draw.integers(60, 200)), int(draw.integers(60, 200))))
        for k in range(40)
    ]  # fmt: skip
    path = rows_of(tmp_path / "m.parquet", [placed(*place) for place in places])
    by_pair = {(pair["uri_a"], pair["uri_b"]): pair for pair in found(path, tmp_path)}
    expected = 0
    for i, (name_a, left_a, top_a, (wide_a, high_a)) in enumerate(places):
        for name_b, left_b, top_b, (wide_b, high_b) in places[i + 1 :]:
            dx, dy = (left_b - left_a) // 10, (top_a - top_b) // 10
            ground = np.zeros((1200, 1200), np.uint8)  # count the pixels that both cover
            ground[500 : 500 + high_a, 500 : 500 + wide_a] += 1
            ground[500 + dy : 500 + dy + high_b, 500 + dx : 500 + dx + wide_b] += 1
            fraction = (ground == 2).sum() / min(wide_a * high_a, wide_b * high_b)
            if fraction >= 0.2:
                expected += 1
                pair = by_pair.pop((name_a, name_b))
                assert (pair["dx_px"], pair["dy_px"], pair["by"], pair["score"]) == (dx, dy, "footprint", 1)
                assert pair["shared_fraction"] == pytest.approx(fraction, abs=1e-6)
    assert expected > 20 and not by_pair


def test_other_pixels_and_projections_give_a_fraction_without_an_offset(tmp_path: Path) -> None:
    rows = [
        placed("ten.tif", 300_000, 6_100_000, (100, 100)),
        placed("twenty.tif", 300_500, 6_100_000, (50, 50), gsd=20),
        placed("degrees.tif", -59.1, -34.9, (100, 100), gsd=1e-4, epsg=4326),
        placed("elsewhere.tif", 800_000, 6_100_000, (100, 100)),
    ]
    rows[2] = placed("other_zone.tif", 847_000, 6_100_000, (100, 100), epsg=32720)
    path = rows_of(tmp_path / "m.parquet", rows)
    shapes = [shapely.from_wkb(row["geometry"]) for row in rows]
    pairs = {(pair["uri_a"], pair["uri_b"]): pair for pair in found(path, tmp_path, least_shared=0.01)}
    assert pairs["ten.tif", "twenty.tif"]["shared_fraction"] == pytest.approx(0.5, abs=0.01)
    for (name_a, name_b), pair in pairs.items():
        a, b = (shapes[[row["uri"] for row in rows].index(name)] for name in (name_a, name_b))
        assert pair["dx_px"] is None and pair["dy_px"] is None
        assert pair["shared_fraction"] == pytest.approx(a.intersection(b).area / min(a.area, b.area), abs=1e-5)
    assert not any("elsewhere.tif" in key for key in pairs)


def test_windows_of_one_file_share_pixels_without_coordinates(tmp_path: Path) -> None:
    windows = [(0, 0, 100, 100), (40, 10, 100, 100), (200, 0, 50, 50), (0, 0, 100, 100)]
    rows = [{"uri": "scene.tif", "window": w, "width": w[2], "height": w[3]} for w in windows[:3]]
    rows += [{"uri": "other.tif", "window": windows[3], "width": 100, "height": 100}]
    rows += [{"uri": "scene.tif", "width": 300, "height": 200}]
    path = rows_of(tmp_path / "m.parquet", rows)
    pairs = found(path, tmp_path, match="none")
    ids = {manifest.row_id("scene.tif", w): w for w in windows[:3]} | {manifest.row_id("scene.tif"): None}
    seen = {(ids[p["id_a"]], ids[p["id_b"]], p["dx_px"], p["dy_px"], round(p["shared_fraction"], 4)) for p in pairs}
    assert seen == {
        (windows[0], windows[1], 40, 10, 0.54),
        (windows[0], None, 0, 0, 1.0),
        (windows[1], None, -40, -10, 1.0),
        (windows[2], None, -200, 0, 1.0),
    }


def test_stretches_of_the_sweep_miss_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.Generator(np.random.Philox(2))
    rows = [placed(f"{k}.tif", *(300_000 + draw.uniform(0, 9e3, 1)), 6_100_000, (90, 90)) for k in range(60)]
    path = rows_of(tmp_path / "m.parquet", rows)
    whole = found(path, tmp_path)
    monkeypatch.setattr(footprints, "_STRETCH", 7)
    assert found(path, tmp_path) == whole and len(whole) > 60


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str, int, int]]]:
    """Crops of the procedural Earth, JPEG of several qualities, pairs of them overlapping; their truth."""
    root = tmp_path_factory.mktemp("crops")
    draw = np.random.Generator(np.random.Philox(3))
    truth = []
    for k in range(14):
        place = sample_place(k, 11, gsd_m=(0.5, 2.0)[k % 2], size_px=320, bands=RGB, dtype="uint8")
        scene = render(place, 11).image.transpose(1, 2, 0)
        dx, dy = ((64, -64), (100, 0), (0, 8), (-60, 80), (32, 32), (-8, 0), (0, 64))[k % 7]
        x, y = max(-dx, 0), max(-dy, 0)
        side = 200
        a, b = scene[y : y + side, x : x + side], scene[y + dy : y + dy + side, x + dx : x + dx + side]
        if k % 3 == 1:
            b = ((b / 255) ** 1.4 * 255).astype(np.uint8)
        if k % 3 == 2:
            b = np.clip(b * 0.8 + 20, 0, 255).astype(np.uint8)
        for name, image in (("a", a), ("b", b)):
            quality = int(draw.integers(75, 95))
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality)
            (root / f"{k:02d}{name}.jpg").write_bytes(data)
        truth.append((str(root / f"{k:02d}a.jpg"), str(root / f"{k:02d}b.jpg"), dx, dy))
    path = root / "m.parquet"
    manifest.write(scan(root, labels="none").table, path)
    return path, truth


def test_content_finds_planted_crops_with_their_offsets_and_nothing_else(
    crops: tuple[Path, list[tuple[str, str, int, int]]], tmp_path: Path
) -> None:
    path, truth = crops
    pairs = found(path, tmp_path)
    seen = {(pair["uri_a"], pair["uri_b"], pair["dx_px"], pair["dy_px"]) for pair in pairs}
    assert seen <= set(truth)
    textured = [each for each in truth if each in seen]
    assert len(textured) >= 12  # 14 scenes drawn; some may be open water
    for pair in pairs:
        share = (200 - abs(pair["dx_px"])) * (200 - abs(pair["dy_px"])) / 200**2
        assert pair["shared_fraction"] == pytest.approx(share) and pair["by"] == "matching"


def test_a_rerun_reads_no_image_and_parts_and_workers_change_nothing(
    crops: tuple[Path, list[tuple[str, str, int, int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terrasieve.curate import matching

    path, _ = crops
    work = Work(tmp_path / "one", Local(1))
    first = find_overlaps(path, OverlapSettings(), work)
    monkeypatch.setattr(matching, "interest_points", None)  # a second reading would fail
    assert find_overlaps(path, OverlapSettings(), work).equals(first)
    monkeypatch.undo()
    monkeypatch.setattr(matching, "_BLOCK", 20)
    monkeypatch.setattr(matching, "_PART", 7)
    monkeypatch.setattr("terrasieve.curate.votes._RANGE", 500)
    assert find_overlaps(path, OverlapSettings(), Work(tmp_path / "two", Local(2))).equals(first)


def test_between_manifests_only_pairs_across_them_count(
    crops: tuple[Path, list[tuple[str, str, int, int]]], tmp_path: Path
) -> None:
    path, _ = crops
    table = manifest.read(path)
    number = pa.array([int(Path(uri).name[:2]) for uri in table["uri"].to_pylist()])
    is_a = pa.array([uri.endswith("a.jpg") for uri in table["uri"].to_pylist()])
    low = pa.compute.less(number, 7)
    left, right = tmp_path / "left.parquet", tmp_path / "right.parquet"
    manifest.write(table.filter(pa.compute.or_(low, is_a)), left)  # whole pairs below 7, the a of the others
    manifest.write(table.filter(pa.compute.and_(pa.compute.invert(low), pa.compute.invert(is_a))), right)
    alone, across = found(path, tmp_path), found(left, tmp_path, [right])
    columns = ("uri_a", "uri_b", "dx_px", "dy_px")
    expected = [{name: pair[name] for name in columns} for pair in alone if int(Path(pair["uri_a"]).name[:2]) >= 7]
    assert across == expected and expected


def test_what_repeats_is_no_overlap(tmp_path: Path) -> None:
    draw = np.random.Generator(np.random.Philox(5))
    x = np.mgrid[:256, :256][1]
    for k in range(6):  # fields of the same rows, each with noise of its own
        rows = 120 + 50 * np.sin(2 * np.pi * (x + 3 * k) / 9) + draw.normal(0, 12, (256, 256))
        image = np.clip(np.repeat(rows[..., None], 3, 2), 0, 255).astype(np.uint8)
        (tmp_path / f"{k}.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=90))
    manifest.write(scan(tmp_path, labels="none").table, tmp_path / "m.parquet")
    assert found(tmp_path / "m.parquet", tmp_path, least_votes=1, least_score=0.3) == []


def test_unreadable_images_are_counted(crops: tuple[Path, list[tuple[str, str, int, int]]], tmp_path: Path) -> None:
    table = manifest.read(crops[0]).slice(0, 4)
    (tmp_path / "cut.jpg").write_bytes(Path(table["uri"][0].as_py()).read_bytes()[:3000])
    uri = [*table["uri"].to_pylist()[:3], str(tmp_path / "cut.jpg")]
    table = table.set_column(table.schema.get_field_index("uri"), "uri", pa.array(uri))
    manifest.write(table, tmp_path / "m.parquet")
    notes = Notes()
    find_overlaps(tmp_path / "m.parquet", OverlapSettings(), Work(tmp_path / "w", Local(1)), notes=notes)
    assert notes.lines() == ["not matched: 1 images, truncated"]


def test_rows_are_fetched_in_the_order_asked_for(tmp_path: Path) -> None:
    first = rows_of(tmp_path / "a.parquet", [{"uri": f"a{k}"} for k in range(5)])
    second = tmp_path / "b.parquet"
    table = manifest.read(rows_of(second, [{"uri": f"b{k}"} for k in range(7)]))
    pq.write_table(table.replace_schema_metadata(manifest.version_metadata()), second, row_group_size=2)
    rows = Rows([first, second])
    numbers = np.array([11, 0, 4, 5, 0, 8])
    assert rows.take(numbers, ["uri"])["uri"].to_pylist() == ["b6", "a0", "a4", "b0", "a0", "b3"]
    assert rows.sides.tolist() == [0] * 5 + [1] * 7


@pytest.mark.slow
def test_ucmerced_overlaps_are_those_that_were_looked_at(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "ucm.parquet"
    manifest.write(scan(shared_data / "ucmerced" / "Images").table, path)
    pairs = {(Path(p["uri_a"]).stem, Path(p["uri_b"]).stem): p for p in found(path, tmp_path)}
    assert pairs["airplane01", "airplane02"]["shared_fraction"] == 1
    assert len(pairs) == 22 and {p["score"] > 0.6 for p in pairs.values()} == {True}
    assert (pairs["parkinglot20", "parkinglot28"]["dx_px"], pairs["parkinglot20", "parkinglot28"]["dy_px"]) == (1, 88)
    assert ("tenniscourt26", "tenniscourt27") not in pairs  # two courts of the same kind


def test_naip_years_lie_on_each_other(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "naip.parquet"
    manifest.write(scan(shared_data / "naip_timeseries_north_dakota").table, path)
    pairs = found(path, tmp_path)
    assert len(pairs) == 45 and {pair["by"] for pair in pairs} == {"footprint"}
    for pair in pairs:
        with rasterio.open(pair["uri_a"]) as a, rasterio.open(pair["uri_b"]) as b:
            left = round((b.transform.c - a.transform.c) / a.transform.a)
            assert (pair["dx_px"], pair["dy_px"]) == (left, round((b.transform.f - a.transform.f) / a.transform.e))
