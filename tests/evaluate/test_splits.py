"""Splits by geography: buffers against brute force, planted copies across edges, shares, files, mistakes."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import shapely
from pyproj import Transformer
from scipy.sparse import csr_array

from terrasieve import keyed, manifest
from terrasieve.curate.scan import scan
from terrasieve.data.places import Places, unit_vectors
from terrasieve.errors import UserError
from terrasieve.evaluate import buffer, split_files, splits
from terrasieve.evaluate.splits import OUT, TEST, TRAIN, VAL, SplitSettings, divide
from terrasieve.evaluate.tasks import load_task
from terrasieve.imagery.geo import haversine_km


def points(lon: np.ndarray, lat: np.ndarray) -> Places:
    centre = np.stack([lon, lat], axis=1).astype(float)
    n, zero = len(centre), np.zeros(len(centre))
    radius = np.where(np.isfinite(centre).all(axis=1), zero, np.nan)
    return Places(centre, np.repeat(centre[:, None], 4, axis=1), radius, zero - 1, [], zero, np.zeros(n, np.int64))


def squares(lon: np.ndarray, lat: np.ndarray, half_km: np.ndarray) -> Places:
    """Squares in the projection around their own centres, so that poles and the antimeridian are as any place."""
    corners = []
    for x, y, half in zip(lon, lat, half_km, strict=True):
        back = Transformer.from_crs(f"+proj=aeqd +lat_0={y} +lon_0={x} +R=6371008.8", "+proj=longlat +R=6371008.8")
        corners.append(
            np.stack(back.transform(1000 * half * np.array([-1, 1, 1, -1]), 1000 * half * np.array([1, 1, -1, -1])), 1)
        )
    flat = points(lon, lat)
    corners_n42 = np.array(corners)
    radius = np.arccos(
        np.clip(np.einsum("nkc,nc->nk", unit_vectors(corners_n42), unit_vectors(flat.centre)), -1, 1)
    ).max(1)
    return replace(flat, corners=corners_n42, radius_m=(radius * 6371008.8).astype(np.float32))


def everywhere(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places all over the sphere, and many around the poles and the antimeridian."""
    draw = keyed.numpy_generator(seed, "places")
    lon, lat = draw.uniform(-180, 180, count), np.degrees(np.arcsin(draw.uniform(-1, 1, count)))
    lat[: count // 5] = 90 - draw.uniform(0, 2, count // 5)
    lon[count // 5 : count // 2] = 180 + draw.uniform(-2, 2, count // 2 - count // 5)
    lon = np.where(lon > 180, lon - 360, lon)
    return lon, lat


def ids_of(count: int) -> np.ndarray:
    return keyed.mixed(0, "ids", np.arange(count, dtype=np.uint64))


def split_of(places: Places, **settings: object) -> splits.Division:
    n = len(places)
    return divide(places, ids_of(n), csr_array((n, 0)), SplitSettings.model_validate(settings))


@pytest.mark.parametrize("buffer_km", [0.0, 20.0, 500.0])
def test_buffer_of_points_is_haversine_by_brute_force(buffer_km: float) -> None:
    lon, lat = everywhere(600)
    lon[590:], lat[590:] = lon[:10], lat[:10]  # the same places once more
    held, rows = np.arange(0, 600, 3), np.setdiff1d(np.arange(600), np.arange(0, 600, 3))
    km = haversine_km(lon[rows, None], lat[rows, None], lon[held], lat[held])
    expected = rows[km.min(axis=1) < max(buffer_km, 1e-3)]
    found = buffer.too_near(points(lon, lat), rows, held, buffer_km)
    assert np.array_equal(found.rows, expected)
    assert len(expected) > 3
    assert found.km == pytest.approx(
        haversine_km(lon[found.rows], lat[found.rows], lon[found.held], lat[found.held]), abs=1e-6
    )
    assert found.km == pytest.approx(km[np.isin(rows, expected)].min(axis=1), abs=1e-6)


def naive_gap(places: Places, a: int, b: int) -> tuple[float, float]:
    """Distance and shared fraction in an azimuthal projection of proj's, around the first image."""
    lon, lat = places.centre[a]
    to = Transformer.from_crs("+proj=longlat +R=6371008.8", f"+proj=aeqd +lat_0={lat} +lon_0={lon} +R=6371008.8")
    one, two = (shapely.Polygon(np.stack(to.transform(*places.corners[row].T), 1)) for row in (a, b))
    return one.distance(two) / 1000, one.intersection(two).area / min(one.area, two.area)


@pytest.mark.parametrize("buffer_km", [0.0, 30.0])
def test_buffer_of_outlines_by_brute_force(buffer_km: float) -> None:
    lon, lat = everywhere(240, seed=1)
    half_km = keyed.numpy_generator(0, "sizes").choice([0.5, 5, 60], 240)
    places = squares(lon, lat, half_km)
    held, rows = np.arange(0, 240, 3), np.setdiff1d(np.arange(240), np.arange(0, 240, 3))
    expected, unsure = set(), set()
    for row in rows:
        for other in held:
            if haversine_km(*places.centre[row], *places.centre[other]) < 300:
                gap, shared = naive_gap(places, row, other)
                if (gap < buffer_km) if buffer_km else shared >= 0.01:
                    expected.add(int(row))
                if abs(gap - buffer_km) < 0.02 * max(buffer_km, 1) and abs(shared - 0.01) < 0.01:
                    unsure.add(int(row))  # two projections differ by so much
    found = buffer.too_near(places, rows, held, buffer_km)
    assert set(found.rows.tolist()) - unsure == expected - unsure
    assert len(expected) > 20
    assert len(unsure) < 10


def test_neighbours_that_touch_are_no_copies_but_lie_within_any_buffer() -> None:
    lon = np.arange(6) * np.degrees(2 / 6371.0088)  # squares of 2 km, edge to edge on the equator
    places = squares(lon, np.zeros(6), np.ones(6))
    held = np.array([0])
    assert len(buffer.too_near(places, np.arange(1, 6), held, 0.0).rows) == 0
    assert buffer.too_near(places, np.arange(1, 6), held, 0.1).rows.tolist() == [1]
    assert buffer.too_near(places, np.arange(1, 6), held, 4.1).rows.tolist() == [1, 2, 3]


def test_a_large_scene_meets_the_chips_within_it() -> None:
    lon, lat = np.array([0.0, 0.5, 3.0]), np.array([0.0, 0.5, 0.0])
    scene_and_chips = squares(lon, lat, np.array([100.0, 0.1, 0.1]))
    found = buffer.too_near(scene_and_chips, np.array([1, 2]), np.array([0]), 0.0)
    assert found.rows.tolist() == [1]
    found = buffer.too_near(scene_and_chips, np.array([0]), np.array([1, 2]), 0.0)
    assert found.rows.tolist() == [0]
    corners, radius_m = scene_and_chips.corners.copy(), scene_and_chips.radius_m.copy()
    corners[1:], radius_m[1:] = scene_and_chips.centre[1:, None], 0
    mixed = replace(scene_and_chips, corners=corners, radius_m=radius_m)  # a scene, and points within and beside it
    assert buffer.too_near(mixed, np.array([1, 2]), np.array([0]), 0.0).rows.tolist() == [1]


@pytest.mark.parametrize("by", ["random", "blocks", "regions"])
def test_no_training_row_lies_within_the_buffer(by: str) -> None:
    lon, lat = everywhere(3000)
    lon[2000:], lat[2000:] = lon[1000:2000] + 0.01, lat[1000:2000]  # copies, some of them across an edge
    found = split_of(points(lon, lat), by=by, buffer_km=80, block_deg=4)
    train, val, test = (np.flatnonzero(found.part == number) for number in (TRAIN, VAL, TEST))
    for rows, held in ((train, np.concatenate([val, test])), (val, test)):
        assert haversine_km(lon[rows, None], lat[rows, None], lon[held], lat[held]).min() >= 80
    assert sorted(found.near.rows) == np.flatnonzero(found.part == OUT).tolist()
    assert len(test) == pytest.approx(600, abs=60 if by != "regions" else 250)


def test_planted_copies_across_a_block_edge_are_left_out() -> None:
    lon, lat = np.meshgrid(np.arange(-100, 100, 2.0), np.arange(-50, 50, 2.0))
    lon, lat = lon.ravel() + 1, lat.ravel() + 1
    edge = np.flatnonzero(np.isclose(lat % 10, 9))[:300]
    lon, lat = np.r_[lon, lon[edge]], np.r_[lat, lat[edge]]
    lat[edge], lat[-300:] = lat[edge] + 0.999, lat[edge] + 1.001  # 220 m apart, in two blocks
    places = points(lon, lat)
    plain, kept = split_of(places, block_deg=10, val=0), split_of(places, block_deg=10, val=0, buffer_km=1)
    twins = np.c_[edge, np.arange(len(lon) - 300, len(lon))]
    leaking = {TRAIN, TEST}
    apart = [set(pair) == leaking for pair in plain.part[twins].tolist()]
    assert sum(apart) > 30
    assert not any(set(pair) == leaking for pair in kept.part[twins].tolist())
    assert len(kept.near.rows) == sum(apart)
    assert kept.near.km.max() < 0.23


def test_a_division_depends_on_places_and_ids_alone_and_on_the_seed() -> None:
    lon, lat = everywhere(500)
    order = keyed.numpy_generator(0, "order").permutation(500)
    for by in ("random", "blocks", "regions"):
        settings = SplitSettings(by=by, buffer_km=30)  # type: ignore[arg-type]
        first = divide(points(lon, lat), ids_of(500), csr_array((500, 0)), settings)
        again = divide(points(lon[order], lat[order]), ids_of(500)[order], csr_array((500, 0)), settings)
        other = divide(points(lon, lat), ids_of(500), csr_array((500, 0)), settings.model_copy(update={"seed": 1}))
        assert np.array_equal(first.part[order], again.part)
        assert not np.array_equal(first.part, other.part)


def test_blocks_are_as_wide_as_high_everywhere_and_regions_hold_together() -> None:
    lon, lat = everywhere(4000)
    names, group = np.unique(splits.blocks(np.stack([lon, lat], 1), 5.0), return_inverse=True)
    for number in range(len(names)):
        mine = group == number
        assert np.ptp(lat[mine]) <= 5
        assert haversine_km(lon[mine], lat[mine], lon[mine][:1], lat[mine][:1]).max() < 5 * 111.2 * 1.7
    far = split_of(points(lon, lat), by="regions", regions=8, val=0)
    near = split_of(points(lon, lat), by="random", val=0)
    apart = []
    for found in (far, near):
        test, train = found.part == TEST, found.part == TRAIN
        apart.append(np.median(haversine_km(lon[test, None], lat[test, None], lon[train], lat[train]).min(axis=1)))
    assert apart[0] > 4 * apart[1]


def test_of_several_draws_the_one_that_leaves_no_class_out_is_taken() -> None:
    lon, lat = everywhere(2000)
    block = np.unique(splits.blocks(np.stack([lon, lat], 1), 10.0), return_inverse=True)[1]
    rare = (block % 97 == 0).astype(int)  # a class in a few blocks only
    classes = csr_array(np.stack([1 - rare, rare], 1))
    for seed in range(5):
        settings = SplitSettings(by="blocks", block_deg=10, seed=seed, val=0)
        part = divide(points(lon, lat), ids_of(2000), classes, settings).part
        assert set(rare[part == TRAIN]) == set(rare[part == TEST]) == {0, 1}
        assert (part == TEST).mean() == pytest.approx(0.2, abs=0.02)


def placed_manifest(root: Path) -> Path:
    """Eighty tiny images, every fourth as two windows, in 2 x 40 places, three of them without one."""
    from PIL import Image

    lines = ["path,lon,lat,label"]
    for number in range(80):
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 8), (number, 0, 0)).save(root / "images" / f"{number:02d}.png")
        place = "," if number < 3 else f"{number % 40},{10 * (number // 40)}"
        lines.append(f"images/{number:02d}.png,{place},{'ab'[number % 2]}")
    (root / "places.csv").write_text("\n".join(lines) + "\n")
    table = scan(root / "images", csv=root / "places.csv").table
    rows = table.to_pylist()
    for row in [row for row in rows if row["uri"].endswith("0.png")]:
        for x in (0, 8):
            window = {"window": [x, 0, 8, 8], "width": 8, "id": manifest.row_id(row["uri"], (x, 0, 8, 8))}
            rows.append(row | window)
        rows.remove(row)
    manifest.write(manifest.rows_to_table(rows), root / "m.parquet")
    return root / "m.parquet"


def test_csv_and_manifest_of_a_split_divide_a_task_alike(tmp_path: Path) -> None:
    source = placed_manifest(tmp_path)
    settings = SplitSettings(by="blocks", block_deg=2, buffer_km=150)
    written = split_files.write_split(source, tmp_path / "s.csv", settings)
    split_files.write_split(source, tmp_path / "s.parquet", settings)
    spelt = load_task(f"manifest:{source}", "blocks:2,buffer_km=150")
    by_csv = load_task(f"manifest:{source}", "s.csv")
    by_manifest = load_task(f"manifest:{tmp_path / 's.parquet'}")
    divisions = [sorted(zip(t.uris, map(str, t.windows), t.split, strict=True)) for t in (spelt, by_csv, by_manifest)]
    assert divisions[0] == divisions[1] == divisions[2]
    assert {part for _, _, part in divisions[0]} == {"train", "val", "test"}
    with (tmp_path / "s_left_out.csv").open() as stream:
        left_out = list(csv.DictReader(stream))
    assert len(left_out) + len(divisions[0]) == 88
    assert sum(line["reason"] == "no_place" for line in left_out) == 4  # 00.png is two windows
    assert all(float(line["km"]) < 150 for line in left_out if line["reason"] == "too_near")
    assert written.division.unplaced == 4
    assert any("4 images without coordinates are left out" in note for note in spelt.notes)
    reasons = manifest.read(tmp_path / "s.parquet").filter(
        pa.compute.invert(manifest.read(tmp_path / "s.parquet")["keep"])
    )
    assert sorted({text.split(":")[0] for text in reasons["reason"].to_pylist()}) == ["no_place", "too_near"]
    assert sum(written.balance.sum(axis=1)) == len(divisions[0])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("blocks:2,bufer_km=3", "no such key"),
        ("blocks:zwei", "block_deg"),
        ("blocks:test=.8,val=.3", "nothing is left for train"),
        ("blocks:90", "All 84 images lie in one place"),
        ("regions:90", "lower it"),
        ("blocks:2,buffer_km=19000", "no training image is that far"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_task(f"manifest:{placed_manifest(tmp_path)}", spec)


def test_images_without_places_and_other_endings_are_refused(tmp_path: Path) -> None:
    source = placed_manifest(tmp_path)
    with pytest.raises(UserError, match="csv"):
        split_files.write_split(source, tmp_path / "s.json", SplitSettings())
    with pytest.raises(UserError, match="the manifest itself"):
        split_files.write_split(source, source, SplitSettings())
    with pytest.raises(UserError, match="index"):
        load_task(f"folder:{tmp_path}", "blocks:2")
    manifest.write(scan(tmp_path / "images").table, tmp_path / "nowhere.parquet")
    with pytest.raises(UserError, match="coordinates"):
        split_files.write_split(tmp_path / "nowhere.parquet", tmp_path / "s.csv", SplitSettings())
    found = split_files.write_split(tmp_path / "nowhere.parquet", tmp_path / "s.csv", SplitSettings(by="random"))
    assert [int((found.division.part == number).sum()) for number in range(3)] == [56, 8, 16]


def test_blocks_may_be_as_small_as_windows_of_aerial_images() -> None:
    """Squares of 56 m over windows of 25 m: whole squares are held out, and each holds a few windows."""
    step = 0.00023
    lat, lon = (grid.ravel() for grid in np.mgrid[0:12, 0:12] * step)
    centre_N2 = np.stack([lon + 6.1, lat + 45.9], axis=1)
    sizes = np.unique(splits.blocks(centre_N2, 0.0005), return_counts=True)[1]
    assert 4 <= np.median(sizes) <= 9 and len(sizes) >= 16
    assert splits.SplitSettings(block_deg=0.0005).block_deg == 0.0005
