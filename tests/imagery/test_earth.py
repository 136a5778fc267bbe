"""The procedural Earth: determinism, shared ground, exact truth, georeferencing, files."""

from __future__ import annotations

import datetime
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from terrasieve.errors import UserError
from terrasieve.imagery.earth import (
    BANDS,
    LAND_COVER,
    SCENES,
    Chip,
    Place,
    render,
    sample_place,
    sample_places,
    split_of,
)
from terrasieve.imagery.earth.grid import Grid, projection, zone_of

SEED = 3
BUILDING, SHIP, TANK = (LAND_COVER.index(name) for name in ("building", "ship", "tank"))


def _scene(scene: str, gsd_m: float = 10.0, size_px: int = 96, index: int = 0) -> Place:
    return sample_place(index, SEED, gsd_m=gsd_m, size_px=size_px, scenes=(scene,))


def _moved(place: Place, columns: int, rows: int) -> Place:
    """Return the place whose grid lies ``columns`` to the right of and ``rows`` below that of ``place``."""
    grid = Grid.around(place.lon, place.lat, place.gsd_m, place.size_px)
    left, bottom, right, top = grid.bounds_m
    x_m, y_m = (left + right) / 2 + columns * place.gsd_m, (bottom + top) / 2 - rows * place.gsd_m
    lon, lat = projection(grid.zone)(x_m, y_m, inverse=True)
    return replace(place, lon=lon, lat=lat)


def _inside(box: tuple[float, ...], size_px: int, radius: bool) -> np.ndarray:
    """Return which pixel centres lie in an oriented box (or in the circle that it holds)."""
    cx, cy, w, h, angle = box
    y, x = np.mgrid[0:size_px, 0:size_px] + 0.5
    u = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)
    v = -np.sin(angle) * (x - cx) + np.cos(angle) * (y - cy)
    return np.hypot(u, v) < w / 2 if radius else (abs(u) < w / 2) & (abs(v) < h / 2)


def test_another_process_renders_the_same_bits() -> None:
    place = _scene("town")
    code = (
        "import datetime, hashlib; from terrasieve.imagery.earth import Place, render\n"
        f"c = render({place!r}, {SEED})\n"
        "print(hashlib.sha256(c.image.tobytes() + c.mask.tobytes() + repr(c.boxes).encode()).hexdigest())"
    )
    hashes = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout for _ in "ab"
    }
    import hashlib

    chip = render(place, SEED)
    here = hashlib.sha256(chip.image.tobytes() + chip.mask.tobytes() + repr(chip.boxes).encode()).hexdigest()
    assert hashes == {here + "\n"}


@pytest.mark.parametrize("gsd_m", [0.5, 10.0])
@pytest.mark.parametrize("scene", SCENES)
def test_overlapping_chips_share_pixels_exactly(scene: str, gsd_m: float) -> None:
    place = _scene(scene, gsd_m, 64)
    columns, rows = 23, -17
    one, two = render(place, SEED), render(_moved(place, columns, rows), SEED)
    assert (two.grid.column - one.grid.column, two.grid.row - one.grid.row) == (columns, rows)
    a, b = np.s_[..., : 64 + rows, columns:], np.s_[..., -rows:, : 64 - columns]
    np.testing.assert_array_equal(one.image[a], two.image[b])
    np.testing.assert_array_equal(one.mask[a], two.mask[b])
    np.testing.assert_array_equal(one.cloud[a], two.cloud[b])


@pytest.mark.parametrize("scene", ["farmland", "town", "harbour", "forest"])
def test_another_date_shows_the_same_ground_in_other_colours(scene: str) -> None:
    place = _scene(scene)
    one = render(replace(place, date=datetime.date(2023, 1, 20)), SEED)
    two = render(replace(place, date=datetime.date(2024, 7, 20)), SEED)
    still = (one.mask != SHIP) & (two.mask != SHIP)
    assert still.mean() > 0.9
    np.testing.assert_array_equal(one.mask[still], two.mask[still])
    assert (one.image != two.image).mean() > 0.95


def test_ships_move_and_buildings_stay() -> None:
    place = _scene("harbour", 5.0, 256)
    days = [render(replace(place, date=datetime.date(2023, 5, day)), SEED) for day in (1, 2)]
    ships = [{box.obb for box in chip.boxes if box.name == "ship"} for chip in days]
    fixed = [[box for box in chip.boxes if box.name != "ship"] for chip in days]
    assert ships[0] and ships[1] and ships[0] != ships[1]
    assert fixed[0] == fixed[1] and fixed[0]


@pytest.mark.parametrize(("scene", "gsd_m"), [("town", 1.0), ("village", 0.7), ("harbour", 4.0), ("harbour", 10.0)])
def test_boxes_and_mask_agree(scene: str, gsd_m: float) -> None:
    chip = render(_scene(scene, gsd_m, 192), SEED)
    assert chip.boxes
    covered = {name: np.zeros(chip.mask.shape, bool) for name in ("building", "ship", "tank")}
    for box in chip.boxes:
        inside = _inside(box.obb, 192, box.name == "tank")
        covered[box.name] |= inside
        rows, columns = np.nonzero(inside)
        left, top, right, bottom = box.xyxy
        assert rows.size
        assert columns.min() + 0.5 >= left - 1e-3 and columns.max() + 0.5 <= right + 1e-3
        assert rows.min() + 0.5 >= top - 1e-3 and rows.max() + 0.5 <= bottom + 1e-3
        assert 0 <= left < right <= 192 and 0 <= top < bottom <= 192
        # Tight: the outline's extreme points lie on the horizontal box, so no side is more than a pixel loose
        # (a hull's bow narrows to a point, which can miss every pixel centre near it).
        if box.name == "building" and min(left, top, 192 - right, 192 - bottom) > 0 and min(box.obb[2:4]) > 4:
            assert right - left - (columns.max() - columns.min() + 1) < 3
    objects = np.isin(chip.mask, (BUILDING, SHIP, TANK))
    assert not (objects & ~(covered["building"] | covered["ship"] | covered["tank"])).any()
    np.testing.assert_array_equal((chip.mask == TANK) & ~covered["building"], covered["tank"] & ~covered["building"])
    np.testing.assert_array_equal((chip.mask == BUILDING) | (chip.mask == TANK), covered["building"] | covered["tank"])
    ships = (chip.mask == SHIP).sum()
    assert not ((chip.mask == SHIP) & ~covered["ship"]).any()
    if ships > 100:
        assert ships > 0.8 * covered["ship"].sum()


def test_oriented_box_encloses_tightly_as_the_mask_sees_it() -> None:
    """At a fine resolution the area of the mask is the area of the boxes."""
    chip = render(_scene("village", 0.25, 384), SEED)
    whole = [b for b in chip.boxes if min(b.xyxy) > 0 and max(b.xyxy) < 384 and b.name == "building"]
    assert whole
    for box in whole:
        inside = _inside(box.obb, 384, False)
        assert inside.sum() == pytest.approx(box.obb[2] * box.obb[3], rel=0.05)
        assert (chip.mask[inside] == BUILDING).all()


def test_every_scene_is_drawn_equally_and_almost_always_hit() -> None:
    places = sample_places(5 * len(SCENES), SEED)
    assert places[:7] == sample_places(7, SEED)
    assert len(set(places)) == len(places)
    labels = [render(place, SEED).label for place in places]
    assert set(labels) == set(SCENES)
    assert min(labels.count(scene) for scene in SCENES) >= 3


def test_every_land_cover_is_reached() -> None:
    found: set[str] = set()
    for index in range(400):
        found |= set(render(sample_place(index, SEED, size_px=160, gsd_m=10.0, bands=("red",)), SEED).labels)
        if len(found) == len(LAND_COVER):
            return
    raise AssertionError(set(LAND_COVER) - found)


def test_other_worlds_differ() -> None:
    place = _scene("farmland")
    assert (render(place, SEED).image != render(place, SEED + 1).image).mean() > 0.9


@pytest.mark.parametrize(
    ("lon", "lat"),
    [(0.0, 90.0), (12.0, -90.0), (180.0, 10.0), (-180.0, -10.0), (179.999, 65.0), (3.0, 84.0), (30.0, 0.0)],
)
def test_poles_antimeridian_and_equator(lon: float, lat: float) -> None:
    chip = render(Place(lon, lat, size_px=32), SEED)
    assert chip.image.min() > 0
    assert abs(chip.lat - lat) < 1e-3
    x_m, y_m = projection(chip.grid.zone)(chip.lon, chip.lat)
    ask_x, ask_y = projection(chip.grid.zone)(lon, lat)
    assert np.hypot(x_m - ask_x, y_m - ask_y) <= 10.0 * 0.5**0.5 + 1e-6


def test_world_is_whole_across_the_equator() -> None:
    """North and south of the equator the pixels come from one grid, although the CRS differs."""
    north, south = render(Place(31.0, 0.0009, size_px=40), SEED), render(Place(31.0, -0.0009, size_px=40), SEED)
    assert north.crs == "EPSG:32636" and south.crs == "EPSG:32736"
    shift = south.grid.row - north.grid.row
    assert 0 < shift < 40 and south.grid.column == north.grid.column
    np.testing.assert_array_equal(north.mask[shift:], south.mask[:-shift])


def test_ground_lands_in_the_right_pixel() -> None:
    """A building's corner coordinates, taken from one crop through its CRS, point at the same building in another."""
    rasterio_warp = pytest.importorskip("rasterio.warp")
    place = _scene("village", 1.0, 160)
    one, two = render(place, SEED), render(_moved(place, 31, 12), SEED)
    box = next(b for b in one.boxes if 60 < b.obb[0] < 130 and 40 < b.obb[1] < 130)
    a, _, c, _, e, f = one.transform
    lon, lat = rasterio_warp.transform(one.crs, "EPSG:4326", [a * box.obb[0] + c], [e * box.obb[1] + f])
    x_m, y_m = rasterio_warp.transform("EPSG:4326", two.crs, lon, lat)
    column, row = (x_m[0] - two.transform[2]) / 1.0, (two.transform[5] - y_m[0]) / 1.0
    assert two.mask[int(row), int(column)] == BUILDING
    near = min(two.boxes, key=lambda b: np.hypot(b.obb[0] - column, b.obb[1] - row))
    assert near.obb[:2] == pytest.approx((column, row), abs=1e-2)
    assert near.obb[2:] == pytest.approx(box.obb[2:])


def test_bands_are_independent_of_each_other() -> None:
    place = _scene("farmland", size_px=48)
    every = render(replace(place, bands=BANDS), SEED)
    assert every.image.shape == (7, 48, 48) and every.image.dtype == np.uint16
    nir = render(replace(place, bands=("nir",)), SEED)
    # Noise is drawn by channel position, so only the reflectance agrees, to within it.
    assert np.abs(nir.image[0].astype(int) - every.image[BANDS.index("nir")].astype(int)).max() < 400
    red, near = (every.image[BANDS.index(name)].astype(float).mean() for name in ("red", "nir"))
    assert near > red


def test_splits_are_whole_five_degree_blocks() -> None:
    splits = {(lon, lat): split_of(lon + 0.1, lat + 0.1, 0) for lon in range(-180, 180, 5) for lat in range(-90, 90, 5)}
    assert 0.15 < list(splits.values()).count("test") / len(splits) < 0.25
    for (lon, lat), split in list(splits.items())[:50]:
        assert split_of(lon + 4.9, lat + 4.9, 0) == split


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lon": 200.0}, "not on Earth"),
        ({"gsd_m": 0.0}, "gsd_m = 0.0"),
        ({"size_px": 0}, "size_px"),
        ({"bands": ("red", "infra")}, "infra"),
        ({"bands": ()}, "none asked"),
        ({"dtype": "float32"}, "float32"),
    ],
)
def test_bad_places_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(Place(0.0, 0.0), **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="volcano"):
        sample_places(1, scenes=("volcano",))


def test_zones() -> None:
    places = ((-180.0, 0.0), (179.9, 0.0), (180.0, 0.0), (2.9, 48.0), (0.0, 84.0), (0.0, -80.1))
    assert [zone_of(*place) for place in places] == [1, 60, 1, 31, 0, 61]


def test_kernels_compile_without_a_writable_cache(tmp_path: Path) -> None:
    """Where numba finds no folder to write, kernels are compiled in memory instead of failing."""
    code = (
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"
        "from terrasieve.imagery.earth.noise import kernel\n"
        "print(kernel(lambda x: x + 1)(1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr


def test_chip_is_what_the_place_asked() -> None:
    place = _scene("coast")
    chip = render(place, SEED)
    assert isinstance(chip, Chip) and chip.place == place
    assert chip.image.shape == (4, 96, 96) and chip.mask.shape == chip.cloud.shape == (96, 96)
    left, bottom, right, top = chip.bounds
    assert (right - left, top - bottom) == (960.0, 960.0)
    shares = {name: (chip.mask == index).mean() for index, name in enumerate(LAND_COVER)}
    assert all(shares[name] >= 0.04 or name in ("building", "ship", "tank") for name in chip.labels)
    assert all(name in chip.labels for name, share in shares.items() if share >= 0.04)
