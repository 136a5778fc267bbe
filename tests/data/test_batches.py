"""Batches by place: a function of seed and step alone, read alike by all, explained, and surveyed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from places_on_globe import globe, haversine_km, lopsided, made

from terrasieve import keyed, manifest
from terrasieve.data import batch_survey
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings
from terrasieve.data.batches import (
    GlobalBatches,
    MixedBatches,
    PlacedSampler,
    RegionalBatches,
    regional_rows,
)
from terrasieve.data.loader import LoaderSettings, placed_batches, settled, train_batches
from terrasieve.errors import UserError
from terrasieve.pretrain import pretrain, resumed
from terrasieve.recipe import Recipe
from terrasieve.report.near_pairs import near_pairs
from terrasieve.report.run_folder import read_run


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
