"""Neighbours: against a naive loop over shapely boxes, at the antimeridian and the poles, on real scenes, keyed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely

from terrasieve import keyed, manifest
from terrasieve.curate.scan import scan
from terrasieve.data.pairs import Neighbours, PairSettings
from terrasieve.data.places import find_places
from terrasieve.errors import UserError
from terrasieve.imagery import geo

ALL = ("same_place", "overlap", "adjacent", "near", "site")
START = datetime(2020, 1, 1, tzinfo=UTC)


def row(number: int, x: float, y: float, crs: str = "EPSG:32721", side_px: int = 32, gsd: float = 10, days: float = 0):
    """One image whose upper left corner is at x, y."""
    transform = (gsd, 0.0, x, 0.0, -gsd, y)
    outline = geo.footprint(transform, crs, side_px, side_px)
    lon, lat = geo.centre(transform, crs, side_px, side_px)
    uri = f"/scenes/{number}.tif"
    size = {"width": side_px, "height": side_px, "gsd_m": geo.gsd_m(transform, crs, side_px, side_px)}
    place = {"geometry": shapely.to_wkb(outline), "lon": lon, "lat": lat, "crs": crs}
    known = {"id": manifest.row_id(uri), "uri": uri, "keep": True, "datetime": START + timedelta(days=days)}
    return known | size | place


def index_of(rows: list[dict[str, Any]], **settings: Any) -> Neighbours:
    return Neighbours(find_places(manifest.rows_to_table(rows)), PairSettings(kinds=ALL, **settings))


def test_kinds_are_those_of_a_naive_loop() -> None:
    draw = np.random.Generator(np.random.Philox(1))
    corners = draw.integers(0, 30, (120, 2)) * 40.0
    sides = draw.choice([16, 32, 64], 120)
    rows = [
        row(i, 300000 + x, 6100000 + y, side_px=int(side), days=float(draw.integers(0, 3)))
        for i, ((x, y), side) in enumerate(zip(corners, sides, strict=True))
    ]
    index = index_of(rows, max_km=0.5)
    seen: Counter[str] = Counter()
    boxes = [
        shapely.box(300000 + x, 6100000 + y - 10 * s, 300000 + x + 10 * s, 6100000 + y)
        for (x, y), s in zip(corners, sides, strict=True)
    ]
    for i in range(120):
        expected: dict[str, list[int]] = {}
        for j in range(120):
            iou = boxes[i].intersection(boxes[j]).area / boxes[i].union(boxes[j]).area
            (a, b, c, d), (e, f, g, h) = boxes[i].bounds, boxes[j].bounds
            gap = max(e - c, a - g, f - d, b - h, 0)
            apart = boxes[i].centroid.distance(boxes[j].centroid)
            if i == j:
                continue
            if iou >= 0.9 and abs((rows[i]["datetime"] - rows[j]["datetime"]).days) >= 1:
                expected.setdefault("same_place", []).append(j)
            elif 0.05 <= iou < 0.9:
                expected.setdefault("overlap", []).append(j)
            elif iou == 0 and gap <= 0.1 * 10 * sides[i]:
                expected.setdefault("adjacent", []).append(j)
            elif apart <= 500 * 0.999:
                expected.setdefault("near", []).append(j)
        found = {kind: others.tolist() for kind, others in index.of(i).items()}
        # Great-circle distance and grid distance differ by up to a part in a thousand around the limit of "near".
        border = {j for j in range(120) if abs(boxes[i].centroid.distance(boxes[j].centroid) - 500) < 1}
        found = {kind: [j for j in others if kind != "near" or j not in border] for kind, others in found.items()}
        expected = {kind: [j for j in others if kind != "near" or j not in border] for kind, others in expected.items()}
        assert {k: v for k, v in found.items() if v} == {k: v for k, v in expected.items() if v}
        seen.update(found.keys())
    assert min(seen[kind] for kind in ("same_place", "overlap", "adjacent", "near")) > 3


def test_boxes_are_exact_in_the_images_own_grid() -> None:
    index = index_of([row(0, 300000, 6100000), row(1, 300100, 6100050)])
    pair = index.draw(0, 0)
    assert (pair.row, pair.kind) == (1, "overlap")
    expected = [[300000, 6100000, 300320, 6099680], [300100, 6100050, 300420, 6099730]]
    assert pair.boxes_24 == pytest.approx(np.array(expected), abs=1e-3)


def test_antimeridian_pole_and_mixed_grids() -> None:
    east, west = row(0, 179.99, 10.0, "EPSG:4326", 200, 1e-4), row(1, -179.995, 10.0, "EPSG:4326", 200, 1e-4)
    pole, near = row(2, -1000, 1000, "EPSG:3413", 200, 10), row(3, 0, 1000, "EPSG:3413", 200, 10)
    # The same ground at the border of UTM zones 21 and 22, in either zone's grid
    one = row(4, 788000, 6100000, "EPSG:32721", 200, 10)
    other = row(5, 0, 0, "EPSG:32722", 200, 10) | {k: one[k] for k in ("geometry", "lon", "lat")}
    index = index_of([east, west, pole, near, one, other], min_days=0)
    assert {i: {k: v.tolist() for k, v in index.of(i).items()} for i in range(6)} == {
        0: {"overlap": [1]}, 1: {"overlap": [0]}, 2: {"overlap": [3]}, 3: {"overlap": [2]},
        4: {"same_place": [5]}, 5: {"same_place": [4]},
    }  # fmt: skip


def test_draws_are_keyed_and_kinds_balanced() -> None:
    rows = [row(0, 300000, 6100000, days=0), row(1, 300000, 6100000, days=5)]
    rows += [row(2 + i, 300000 + 320 * (i % 3 - 1), 6100000 + 320 * (i // 3 - 1)) for i in range(9) if i != 4]
    index = index_of(rows, gap=0.01)
    drawn = [index.draw(0, epoch) for epoch in range(400)]
    kinds = Counter(pair.kind for pair in drawn)
    assert set(kinds) == {"same_place", "adjacent"} and 150 < kinds["same_place"] < 250
    assert len({pair.row for pair in drawn}) == 9
    assert [index.draw(0, epoch).row for epoch in range(50)] == [pair.row for pair in drawn[:50]]
    other = Neighbours(index.places, index.settings, seed=1)
    assert [other.draw(0, epoch).row for epoch in range(50)] != [pair.row for pair in drawn[:50]]


def test_images_without_a_place_have_their_folder_and_lonely_ones_themselves() -> None:
    rows = [{"uri": f"/a/{folder}/{i}.jpg", "width": 9, "height": 9, "keep": True} for folder in "xy" for i in range(3)]
    rows.append({"uri": "/a/z/0.jpg", "width": 9, "height": 9, "keep": True})
    rows.append(row(0, 300000, 6100000))
    index = index_of(rows)
    assert index.of(1)["site"].tolist() == [0, 2] and index.of(4)["site"].tolist() == [3, 5]
    for alone in (6, 7):
        assert (index.draw(alone, 0).row, index.draw(alone, 0).kind) == (alone, "alone")
    assert index.draw(1, 0).boxes_24.tolist() == [[0, 1, 1, 0]] * 2
    assert index.census(np.arange(8)) == Counter({"site": 6, "alone": 2})


def test_drawing_several_is_a_naive_loop_over_lists() -> None:
    draw = np.random.Generator(np.random.Philox(2))
    rows: list[dict[str, Any]] = [
        row(i, 300000 + 40.0 * x, 6100000 + 40.0 * y, days=float(i % 3))
        for i, (x, y) in enumerate(draw.integers(0, 9, (24, 2)))
    ]
    rows += [{"uri": f"/a/{i % 2}/{i}.jpg", "width": 9, "height": 9, "keep": True} for i in range(9)]
    index = index_of(rows)
    for anchor in range(len(rows)):
        found = {kind: others.tolist() for kind, others in index.of(anchor).items()}
        drawn = index.draw_several(anchor, 3, 7)
        naive, kinds, numbers = [anchor], [], keyed.numpy_generator(index.seed, "pair", 3, anchor)
        for _ in range(7):
            left = {kind: [r for r in others if r not in naive] for kind, others in found.items()}
            left = {kind: others for kind, others in left.items() if others} or found
            kinds.append(list(left)[int(numbers.integers(len(left)))] if left else "alone")
            naive.append(left[kinds[-1]][int(numbers.integers(len(left[kinds[-1]])))] if left else anchor)
        assert (drawn.rows, drawn.kinds) == (naive, kinds)
        known = np.isfinite(index.places.radius_m[anchor])
        boxes = index.places.boxes(np.array(naive), anchor) if known else np.tile([0.0, 1, 1, 0], (8, 1))
        np.testing.assert_array_equal(drawn.boxes_K4, boxes)


def test_doubtful_places_are_counted_and_swapped_ones_refused() -> None:
    wrong_gsd = row(0, 300000, 6100000) | {"gsd_m": 60.0}
    flat = row(1, 300000, 6100000) | {"geometry": shapely.to_wkb(shapely.Point(-59, -35))}
    no_crs = row(2, 300000, 6100000) | {"crs": None}
    nowhere = {"uri": "/a/b.jpg", "width": 9, "height": 9, "keep": True}
    places = find_places(manifest.rows_to_table([wrong_gsd, flat, no_crs, nowhere, row(3, 300000, 6100000)]))
    assert places.doubts == Counter(
        {
            "no place": 1,
            "a footprint without a CRS": 1,
            "a footprint without area": 1,
            "a footprint that contradicts the GSD by more than 10 %": 1,
        }
    )
    assert places.examples["a footprint that contradicts the GSD by more than 10 %"] == ["/scenes/0.tif"]
    swapped = row(4, 300000, 6100000) | {"lon": -34.6, "lat": -158.4}
    with pytest.raises(UserError, match=r"1 of 1 images have a latitude beyond 90.*swapped"):
        find_places(manifest.rows_to_table([swapped]))


def test_footprints_of_any_kind_are_read_as_shapely_reads_them() -> None:
    corners = [(-59.0, -34.9), (-58.9, -34.91), (-58.91, -35.0), (-59.01, -34.99)]
    quad = shapely.Polygon(corners)
    hole = shapely.Polygon(corners, [[(-58.96, -34.95), (-58.95, -34.95), (-58.95, -34.96)]])
    shapes = [
        shapely.to_wkb(quad), shapely.to_wkb(quad, byte_order=0), shapely.to_wkb(shapely.force_3d(quad, 5.0)),
        shapely.to_wkb(hole), shapely.to_wkb(shapely.Polygon()), None, shapely.to_wkb(shapely.Point(-59, -35)),
        shapely.to_wkb(shapely.segmentize(quad, 0.01)), shapely.to_wkb(shapely.MultiPolygon([quad])),
        shapely.to_wkb(shapely.Polygon(corners[:3])), shapely.to_wkb(quad, include_srid=True),
        shapely.to_wkb(shapely.set_srid(quad, 4326), include_srid=True), shapely.to_wkb(quad),
    ]  # fmt: skip
    known = row(0, 300000, 6100000) | {"lon": -58.96, "lat": -34.95, "crs": "EPSG:4326"}
    rows = [known | {"uri": f"/s/{i}.tif", "geometry": wkb} for i, wkb in enumerate(shapes)]
    west, south, east, north = quad.bounds
    box = [(west, north), (east, north), (east, south), (west, south)]
    third = shapely.Polygon(corners[:3]).bounds
    expected = [corners] * 3 + [box] + [[(-58.96, -34.95)] * 4] * 3 + [box] * 2
    expected += [[(third[x], third[y]) for x, y in ((0, 3), (2, 3), (2, 1), (0, 1))], *[corners] * 3]
    for chunks in (1, 4):
        table = manifest.rows_to_table(rows)
        parts = [table.slice(i, -(-len(rows) // chunks)) for i in range(0, len(rows), -(-len(rows) // chunks))]
        places = find_places(pa.concat_tables(parts))
        for i, wanted in enumerate(expected):
            assert np.allclose(places.corners[i], wanted), i


def test_footprints_that_contradict_each_other_or_their_coordinates_are_counted() -> None:
    fine, coarse = row(0, 300000, 6100000), row(1, 300000, 6100000, gsd=60)
    elsewhere = row(2, 400000, 6100000)
    off = elsewhere | {"uri": "/scenes/off.tif", "lon": elsewhere["lon"] + 0.01}
    swapped = elsewhere | {"uri": "/scenes/swapped.tif", "lon": elsewhere["lat"], "lat": elsewhere["lon"]}
    other_folder = row(3, 300000, 6100000, gsd=30) | {"uri": "/other/3.tif"}
    near_enough = row(4, 500000, 6100000) | {"lon": row(4, 500000, 6100000)["lon"] + 0.0005}
    rows = [fine, coarse, elsewhere, off, swapped, other_folder, near_enough]
    places = find_places(manifest.rows_to_table(rows))
    assert {words.split(",")[0]: places.examples[words] for words in places.doubts} == {
        "longitude and latitude swapped": ["/scenes/swapped.tif"],
        "a longitude and latitude that are not their footprint's centre": ["/scenes/off.tif"],
        "the corner and the size in pixels of another image of their folder": ["/scenes/1.tif"],
    }
    assert places.warnings()[0].startswith("1 of 7 images have longitude and latitude swapped")


def test_real_scenes(shared_data: Path) -> None:
    naip = find_places(scan(shared_data / "naip_timeseries_north_dakota", labels="none").table)
    index = Neighbours(naip, PairSettings())
    assert all(len(index.of(i)["same_place"]) == 9 for i in range(10))
    pair = index.draw(0, 0)
    assert pair.boxes_24[0] == pytest.approx([485900, 5209247, 490570, 5205627], abs=1e-2)
    bigearthnet = find_places(scan(shared_data / "bigearthnet_v2_samples", labels="none").table)
    ((words, images),) = bigearthnet.doubts.items()
    assert "the GSD of one of the two is wrong" in words and images == 9
    assert all(uri.endswith("s2.tif") for uri in bigearthnet.examples[words])
    chips = shared_data / "s2_buenos_aires_chips"
    table = scan(chips, csv=chips / "locations.csv", labels="none").table
    index = Neighbours(find_places(table), PairSettings())
    adjacent = [i for i in range(len(table)) if "adjacent" in index.of(i)]
    assert adjacent
    boxes = index.draw(adjacent[0], 0).boxes_24
    touching = {abs(boxes[0, a] - boxes[1, b]) for a, b in ((0, 2), (2, 0), (1, 3), (3, 1))}
    assert min(touching) < 0.01


def test_kept_rows_only_in_the_order_of_the_images(small_manifest: Path) -> None:
    table = manifest.read(small_manifest)
    keep = np.ones(len(table), bool)
    keep[5] = False
    fewer = table.set_column(table.schema.get_field_index("keep"), "keep", pa.array(keep))
    whole, part = find_places(table), find_places(fewer)
    assert np.array_equal(part.corners, whole.corners[keep])
