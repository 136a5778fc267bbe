"""Batches by place: exact regions anywhere on the globe, even areas, and a function of seed and step alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrasieve import keyed, manifest
from terrasieve.data import batch_survey, regions
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings
from terrasieve.data.batches import (
    GlobalBatches,
    MixedBatches,
    PlacedBatches,
    PlacedSampler,
    RegionalBatches,
    regional_rows,
)
from terrasieve.data.loader import LoaderSettings, StepSampler, placed_batches, settled, train_batches
from terrasieve.data.regions import Regions, equal_area_cells, weights_of
from terrasieve.errors import UserError
from terrasieve.pretrain import pretrain, resumed
from terrasieve.recipe import Recipe
from terrasieve.report.near_pairs import near_pairs
from terrasieve.report.run_folder import read_run

Places = tuple[np.ndarray, np.ndarray]


def haversine_km(lon1: float, lat1: float, lon2: float, lat2: float) -> float:
    """Measure a distance with the textbook's formula."""
    a, b, c, d = (math.radians(v) for v in (lon1, lat1, lon2, lat2))
    h = math.sin((d - b) / 2) ** 2 + math.cos(b) * math.cos(d) * math.sin((c - a) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(min(h, 1)))


def globe(count: int, seed: int = 0) -> Places:
    """Return places evenly over the sphere, some of which are poles, on the antimeridian, or unknown."""
    draw = keyed.numpy_generator(seed, "test")
    lon, lat = draw.uniform(-180, 180, count), np.degrees(np.arcsin(draw.uniform(-1, 1, count)))
    lat[:3], lat[3:6], lon[6:60:2], lon[7:60:2] = 90, -90, 180, -180
    lon[60:70], lat[70:80] = np.nan, np.nan
    return lon, lat


def made(places: Places, how: GlobalBatches, batch_size: int = 32, seed: int = 5) -> PlacedBatches:
    rest = batch_size - how.regional(batch_size)
    shuffled = StepSampler(len(places[0]), seed, range(0), (0, rest), rest)
    return PlacedBatches(*places, how, seed, batch_size, shuffled.keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("radius_km", [1500.0, 6000.0])
@pytest.mark.parametrize("regions_of_a_batch", [1, 3])
def test_every_regional_batch_lies_within_its_radius(
    radius_km: float, regions_of_a_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lon, lat = globe(6000)
    centres: list[int] = []
    around = Regions.around
    monkeypatch.setattr(Regions, "around", lambda self, row: (centres.append(row), around(self, row))[1])
    drawn = made((lon, lat), RegionalBatches(radius_km=radius_km, regions=regions_of_a_batch))
    for step in range(40):
        centres.clear()
        rows = [row for _, row in drawn.of(step)]
        assert len(set(rows)) == 32
        parts = np.split(rows, np.linspace(0, 32, regions_of_a_batch + 1).astype(int)[1:-1])
        if len(centres) == regions_of_a_batch:
            for centre, part in zip(centres, parts, strict=True):
                assert part[0] == centre
                far = max(haversine_km(lon[centre], lat[centre], lon[row], lat[row]) for row in part)
                assert far <= radius_km
                assert far > radius_km / 3, "and they are not all next to each other"
    assert drawn.refused <= drawn.centres / 2


@pytest.mark.parametrize("centre", [(179.9, 10.0), (-180.0, -60.0), (33.0, 90.0), (0.0, -90.0), (12.0, 47.0)])
def test_a_region_holds_all_but_its_border(centre: tuple[float, float]) -> None:
    """Against all distances: nothing beyond the radius, everything within three quarters of it."""
    lon, lat = globe(20_000)
    lon[100], lat[100] = centre
    sorted_by_place = Regions(lon, lat, 900.0, np.ones(len(lon)))
    found = {int(r) for start, stop in sorted_by_place.around(100) for r in sorted_by_place._rows[start:stop]}
    apart = {
        row: haversine_km(*centre, lon[row], lat[row]) for row in range(len(lon)) if not math.isnan(lon[row] + lat[row])
    }
    assert max(apart[row] for row in found) <= 900
    assert {row for row, km in apart.items() if km <= 675} <= found
    assert len(found) > 0.75 * sum(km <= 900 for km in apart.values())


@settings(max_examples=12, deadline=None)
@given(st.floats(50, 15_000))
def test_cells_have_equal_areas(side_km: float) -> None:
    """Evenly spread places fall into cells evenly: a chi-square statistic of the order of its degrees of freedom."""
    i = np.arange(100_000)  # a Fibonacci lattice, more even than chance
    lat = np.degrees(np.arcsin(1 - 2 * (i + 0.5) / len(i)))
    cells = equal_area_cells(i * 137.50776405003785, lat, side_km)
    counts = np.bincount(cells)
    asked = 4 * math.pi * 6371.0088**2 / side_km**2
    assert len(counts) == max(round(asked), 1) or len(counts) >= 0.98 * asked
    if counts.mean() > 100:
        assert counts.min() > 0.75 * counts.mean() and counts.max() < 1.25 * counts.mean()


def test_cells_know_no_seam() -> None:
    lon = np.array([-180.0, 180.0, 540.0, 359.999, -0.001, 0.0])
    ring = equal_area_cells(lon, np.full(6, 5.0), 100.0)
    assert ring[0] == ring[1] == ring[2] and ring[3] == ring[4]
    assert ring[3] - ring[5] + 1 == pytest.approx(2 * math.pi * 63.71 * math.cos(math.radians(5)), abs=3)
    ends = equal_area_cells(np.array([10.0, 10.0]), np.array([90.0, -90.0]), 100.0)
    assert 0 <= ends[0] < 4 and ends[1] == pytest.approx(4 * math.pi * 63.71**2, abs=5)


def lopsided() -> Places:
    """9,000 images of one square of 5 degrees and 300 of another one, as large, on the other side."""
    draw = keyed.numpy_generator(1, "test")
    lon = np.concatenate([draw.uniform(0, 5, 9000), draw.uniform(175, 180, 300)])
    return lon, draw.uniform(-2.5, 2.5, 9300)


@pytest.mark.parametrize(
    ("name", "balance"), [("global", 1), ("regional", 1), ("regional", 0), ("mixed", 1), ("mixed", 0)]
)
def test_dense_regions_are_not_drawn_more_often_where_areas_are_balanced(name: str, balance: float) -> None:
    kinds = {"global": GlobalBatches, "regional": RegionalBatches, "mixed": MixedBatches}
    places, steps = lopsided(), 600
    cells = equal_area_cells(*places, 100.0)
    occupied, thinly = len(set(cells.tolist())), len(set(cells[9000:].tolist()))
    share = thinly / occupied if balance else 300 / 9300
    assert share == pytest.approx(0.5 if balance else 0.032, abs=0.03)
    drawn = made(places, kinds[name](balance=balance, **({} if name == "global" else {"radius_km": 800})), 16)
    thin = [sum(row >= 9000 for _, row in drawn.of(step)) for step in range(steps)]
    error = math.sqrt(share * (1 - share) / (steps * (16 if name == "global" else 1)))  # a region is one draw
    assert sum(thin) / (16 * steps) == pytest.approx(share, abs=3 * error)
    if name == "regional":
        assert set(thin) == {0, 16}, "a batch is of one region"


def test_weights_are_those_of_a_loop() -> None:
    lon, lat = globe(500)
    cells = equal_area_cells(np.nan_to_num(lon), np.nan_to_num(lat), 2000.0)
    placed = [row for row in range(500) if not math.isnan(lon[row] + lat[row])]
    counts = Counter(cells[row] for row in placed)
    weights = weights_of(lon, lat, 2000.0, 0.5)
    assert all(weights[row] == pytest.approx(counts[cells[row]] ** -0.5) for row in placed)
    mean = np.mean([weights[row] for row in placed])
    assert all(weights[row] == pytest.approx(mean) for row in range(500) if row not in placed)


@pytest.mark.parametrize("listed", [0, 4096])
def test_draws_follow_the_weights(listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs drawn without replacement come up as often as by hand: P(a then b) = w_a / W x w_b / (W - w_a)."""
    monkeypatch.setattr(regions, "_LISTED", listed)
    lon, lat = np.linspace(0, 1, 12), np.zeros(12)
    weights = np.arange(1, 13) / 7
    sorted_by_place = Regions(lon, lat, 500.0, weights)
    stretches = np.array([[0, 3], [5, 7], [10, 12]])
    inside = [int(r) for start, stop in stretches for r in sorted_by_place._rows[start:stop]]
    draw, taken = keyed.numpy_generator(3, "test"), np.zeros(12, bool)
    taken[inside[1]] = True
    free = [row for row in inside if not taken[row]]
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(6000):
        rows = sorted_by_place.draw(draw, stretches, 2 if listed else 1, taken)
        assert rows is not None
        seen[tuple(rows.tolist())] += 1
    total = sum(weights[row] for row in free)
    if listed:
        chances = {(a, b): weights[a] / total * weights[b] / (total - weights[a]) for a in free for b in free if a != b}
    else:
        chances = {(a,): weights[a] / total for a in free}
    assert set(seen) <= set(chances)
    chi_square = sum((seen[key] - 6000 * p) ** 2 / (6000 * p) for key, p in chances.items())
    freedom = len(chances) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    assert sorted_by_place.draw(draw, stretches, len(free) + 1, taken) is None
    everything = sorted_by_place.draw(draw, stretches, len(free), taken)
    assert everything is not None and sorted(everything.tolist()) == sorted(free)


def every(how: GlobalBatches, batch_size: int, steps: range, rows: tuple[int, int]) -> list[list[tuple[int, int]]]:
    return list(PlacedSampler(made(globe(900), how, batch_size), steps, rows))


CASES = [
    RegionalBatches(radius_km=4000),
    RegionalBatches(radius_km=4000, regions=4, balance=0.5),
    MixedBatches(radius_km=4000, share=0.3),
    MixedBatches(radius_km=4000, balance=0, regions=2),
    GlobalBatches(balance=1),
]


@pytest.mark.parametrize("how", CASES, ids=lambda how: f"{how.name}-{how.balance:g}-{getattr(how, 'regions', 0)}")
def test_a_step_alone_says_what_its_batch_holds(how: GlobalBatches) -> None:
    whole = every(how, 16, range(80), (0, 16))
    assert every(how, 16, range(37, 80), (0, 16)) == whole[37:]
    halves = [every(how, 16, range(80), rows) for rows in ((0, 8), (8, 16))]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert len({tuple(row for _, row in keys) for keys in whole}) == 80
    assert all(len({row for _, row in keys}) == 16 for keys in whole if not (how.name == "mixed" and not how.balance))
    assert len({key for keys in whole for key in keys}) == 80 * 16, "no two crops of an image are the same one"
    other = list(PlacedSampler(made(globe(900), how, 16, seed=6), range(80), (0, 16)))
    assert other[0] != whole[0]


def test_the_rest_of_a_mixed_batch_is_a_shuffle_of_all_images() -> None:
    how = MixedBatches(radius_km=4000, share=0.25, balance=0)
    places = globe(900)
    at = regional_rows(how, 16)
    assert at.sum() == 4 and all(at[start : start + 4].sum() == 1 for start in range(0, 16, 4))
    drawn = made(places, how, 16)
    batches = [drawn.of(step) for step in range(150)]
    rest = [key for keys in batches for key, regional in zip(keys, at, strict=True) if not regional]
    assert len(rest) == 1800
    for epoch in (0, 1):
        order = keyed.numpy_generator(5, "order", epoch).permutation(900)
        assert rest[900 * epoch : 900 * (epoch + 1)] == [(epoch, row) for row in order.tolist()]
    unplaced = set(range(60, 80))
    regional = [row for keys in batches for (_, row), one in zip(keys, at, strict=True) if one]
    assert not unplaced & set(regional) and unplaced <= {row for _, row in rest}


def test_images_without_a_place_are_drawn_globally_by_their_share() -> None:
    lon, lat = lopsided()
    lon[::3] = np.nan
    drawn = made((lon, lat), GlobalBatches(balance=1), 64)
    rows = np.array([row for step in range(100) for _, row in drawn.of(step)])
    assert np.isnan(lon[rows]).mean() == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / 6400))
    assert len(made((lon[:10], lat[:10]), GlobalBatches(balance=1), 64).of(0)) == 64, "more rows than images"


def placed_manifest(small_manifest: Path, tmp_path: Path, unplaced: int) -> Path:
    """The small manifest, without the coordinates of the first few images."""
    table = manifest.read(small_manifest)
    for name in ("lon", "lat"):
        values = [None if row < unplaced else v for row, v in enumerate(table[name].to_pylist())]
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    manifest.write(table, tmp_path / f"placed{unplaced}.parquet")
    return tmp_path / f"placed{unplaced}.parquet"


def test_batches_are_read_alike_by_any_workers_and_processes(small_manifest: Path) -> None:
    images = imagery.from_table(manifest.read(small_manifest))
    how: dict[str, Any] = {"seed": 3, "batch_size": 8}

    def indices(name: dict[str, Any], steps: range = range(6), workers: int = 0, **more: Any) -> list[list[int]]:
        loader = LoaderSettings.model_validate({"workers": workers, "batches": name})
        found = train_batches(images, ImageSettings(size_px=24), loader, steps=steps, **how, **more)
        return [batch.index.tolist() for batch in found]

    order = np.concatenate([keyed.numpy_generator(3, "order", epoch).permutation(24) for epoch in range(2)])
    assert indices({"name": "global"}) == order.reshape(6, 8).tolist(), "as it has always been"
    regional = {"name": "regional", "radius_km": 3}
    whole = indices(regional)
    assert whole == indices(regional, workers=2) and whole[4:] == indices(regional, range(4, 6))
    halves = [indices(regional, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    for rows in whole:
        lon, lat = images.lon[rows], images.lat[rows]
        assert max(haversine_km(lon[0], lat[0], *place) for place in zip(lon, lat, strict=True)) <= 6


def test_what_cannot_be_drawn_is_explained(tiny: Callable[..., Recipe], small_manifest: Path, tmp_path: Path) -> None:
    lon, lat = globe(900)
    with pytest.raises(UserError, match=r"none of them lie 63 .*radius_km 100 .*half of the images have so many"):
        made((lon, lat), RegionalBatches(radius_km=100), 64).of(0)
    with pytest.raises(UserError, match=r"none of 900 images has lon and lat"):
        made((np.full(900, np.nan), lat), RegionalBatches())
    with pytest.raises(UserError, match=r"2 of 900 images have a latitude beyond 90 degrees, the first one in row 5"):
        made((lon, np.where(np.isin(np.arange(900), (5, 9)), 100.0, lat)), RegionalBatches())
    with pytest.raises(UserError, match=r"loader\.batches\.regions 3: 4 of the 4 rows .* each region needs 2"):
        tiny(loader={"batches": {"name": "regional", "regions": 3}})
    with pytest.raises(UserError, match="order shards chooses images by their files"):
        tiny(loader={"batches": {"name": "mixed"}, "order": "shards"})
    with pytest.raises(UserError, match=r"'regionl' is not one of global, regional, mixed. Did you mean 'regional'"):
        tiny(loader={"batches": {"name": "regionl"}})
    remote = imagery.from_table(manifest.read(small_manifest))
    remote = imagery.replace(remote, uris=["https://there/shard.tar#0-9/a.tif"] * len(remote))
    assert settled(LoaderSettings(batches=RegionalBatches()), remote).order == "uniform"


def test_a_run_says_what_its_batches_hold_and_keeps_them(
    tiny: Callable[..., Recipe], small_manifest: Path, tmp_path: Path
) -> None:
    path = placed_manifest(small_manifest, tmp_path, 6)
    said: list[str] = []
    loader = {"workers": 0, "batches": {"name": "mixed", "radius_km": 2}}
    settings = tiny(data=str(path), steps=5, loader=loader)
    pretrain(settings, tmp_path / "whole", on_note=said.append)
    assert said[0].startswith("mixed batches: 100.0% of pairs lie within 3,000 km, the nearest other image at ")
    assert said[1] == "6 of 24 images have no lon and lat and are drawn globally only"
    pretrain(settings, tmp_path / "parts", stop_at=3)
    with pytest.raises(UserError, match=r"loader\.batches would differ"):
        resumed(tmp_path / "parts", ["loader.batches.radius_km=3"])
    pretrain(resumed(tmp_path / "parts", ["loader.workers=1"]), tmp_path / "parts", resume=True)
    a, b = ((tmp_path / run / "weights.safetensors").read_bytes() for run in ("whole", "parts"))
    assert a == b
    run = read_run(tmp_path / "whole")
    assert near_pairs(run) == [("Near pairs", "100.0%", "of mixed batches' pairs, within 3,000 km")]
    (tmp_path / "whole" / "batches.json").write_text('{"batches": "mixed"}')
    assert near_pairs(run) == [] and "batches.json cannot be read" in run.problems[-1]


def test_the_survey_is_a_loop_over_pairs(small_manifest: Path) -> None:
    images = imagery.from_table(manifest.read(small_manifest))
    lon, lat = globe(400)
    images = imagery.replace(images.take(np.arange(400) % 24), lon=lon, lat=lat)
    how = MixedBatches(radius_km=5000, balance=0.5)
    found = batch_survey.take(images, how, 1, 16, 3000.0)
    drawn = placed_batches(images, how, 1, 16)
    near = pairs = 0
    nearest = []
    for step in range(20):
        rows = [row for _, row in drawn.of(step) if not math.isnan(lon[row] + lat[row])]
        for one in rows:
            apart = [haversine_km(lon[one], lat[one], lon[other], lat[other]) for other in rows if other != one]
            near, pairs = near + sum(km <= 3000 for km in apart), pairs + len(apart)
            nearest.append(min(apart))
    assert found["pairs_within"] == pytest.approx(near / pairs)
    assert found["nearest_km"] == pytest.approx(float(np.median(nearest)))
    assert (found["images"], found["placed"]) == (400, 380)
