"""The family's studies: every file loads, the parts do not leak, the measure finds what is planted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from terrasieve import manifest
from terrasieve.study.places import held_out_places
from terrasieve.study.plan import load

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import family_data  # noqa: E402
import family_page  # noqa: E402

FILES = sorted((ROOT / "recipes" / "studies").glob("family_*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_arm_of_every_study_is_a_recipe(path: Path) -> None:
    read = load(str(path))
    assert len({str(read.recipe_of(arm, 0) | {"name": ""}) for arm in read.arms}) == len(read.arms)


@pytest.fixture
def planet(tmp_path: Path) -> Path:
    """A manifest of 600 places all over the sphere, whose class is their hemisphere; no files."""
    draw = np.random.default_rng(0)
    lon, lat = draw.uniform(-180, 180, 600), np.degrees(np.arcsin(draw.uniform(-1, 1, 600)))
    rows = [
        {
            "id": str(number), "uri": f"/there/{number}.tif", "width": 66, "height": 66, "bands": ["red"],
            "dtype": "uint16", "lon": x, "lat": y, "label": "north" if y > 0 else "south", "keep": True,
            "split": "test" if number % 5 == 0 else "train",
        }
        for number, (x, y) in enumerate(zip(lon.tolist(), lat.tolist(), strict=True))
    ]  # fmt: skip
    manifest.write(manifest.rows_to_table(rows), tmp_path / "manifest.parquet")
    family_data.earth(tmp_path, buffer_km=300)
    return tmp_path


def columns(folder: Path) -> dict[str, np.ndarray]:
    table = pa.csv.read_csv(folder / "places.csv")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def test_no_pretraining_place_lies_near_a_test_place(planet: Path) -> None:
    there = columns(planet)
    lon, lat = np.radians(there["lon"]), np.radians(there["lat"])
    part = there["part"]
    train, test = np.flatnonzero(part == "train"), np.flatnonzero((part == "blocks") | (part == "shift"))
    haversine = (
        np.sin((lat[train, None] - lat[test]) / 2) ** 2
        + np.cos(lat[train, None]) * np.cos(lat[test]) * np.sin((lon[train, None] - lon[test]) / 2) ** 2
    )
    near_km = 2 * 6371.0088 * np.arcsin(np.sqrt(haversine)).min(axis=1)
    assert near_km.min() >= 300
    assert (part == "buffer").any()
    assert (there["lon"][part == "shift"] >= 90).all()
    assert (there["lon"][part != "shift"] < 90).all()
    pretrained = set(manifest.read(planet / "pretrain.parquet")["uri"].to_pylist())
    assert pretrained == set(there["uri"][part == "train"])
    eighth = set(manifest.read(planet / "pretrain_eighth.parquet")["uri"].to_pylist())
    assert eighth < pretrained and len(eighth) == len(pretrained) // 8


def test_windows_are_the_middle_of_the_images(planet: Path, tmp_path: Path) -> None:
    family_data.window(planet, tmp_path / "small", size_px=30)
    table = manifest.read(tmp_path / "small" / "all.parquet")
    assert {tuple(window) for window in table["window"].to_pylist()} == {(18, 18, 30, 30)}
    assert set(table["width"].to_pylist()) == {30}


def test_measure_finds_planted_classes_and_planted_places(planet: Path) -> None:
    table = manifest.read(planet / "all.parquet")
    lon, lat = (np.radians(np.array(table[name].to_pylist())) for name in ("lon", "lat"))
    places = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1).astype(np.float32)
    told = held_out_places(
        places,
        table,
        planet,
        places=str(planet / "places.csv"),
        parts=["blocks", "shift"],
        tasks=["scene"],
        max_km=3000,
    )
    assert told["distance blocks"] == pytest.approx(-1)
    assert told["linear scene blocks"] > 0.95
    flipped = table.take(pa.array(np.arange(table.num_rows)[::-1]))  # rows and places.csv in other orders
    again = held_out_places(
        places[::-1].copy(),
        flipped,
        planet,
        places=str(planet / "places.csv"),
        parts=["blocks", "shift"],
        tasks=["scene"],
        max_km=3000,
    )
    assert again["knn scene shift"] == pytest.approx(told["knn scene shift"])
    noise = np.random.default_rng(1).normal(size=places.shape).astype(np.float32)
    unrelated = held_out_places(
        noise, table, planet, places=str(planet / "places.csv"), parts=["blocks"], tasks=["scene"], max_km=3000
    )
    assert abs(unrelated["distance blocks"]) < 0.1
    assert unrelated["linear scene blocks"] < 0.75


def test_page_takes_differences_seed_by_seed(tmp_path: Path) -> None:
    rows = [("moco-none", 0, 0.5), ("moco-none", 1, 0.6), ("moco-georank", 0, 0.52), ("moco-georank", 1, 0.62)]
    lines = [
        f'{{"arm": "{arm}", "seed": {seed}, "scores": {{"knn scene blocks": {value}}}}}' for arm, seed, value in rows
    ]
    (tmp_path / "family_earth").mkdir()
    (tmp_path / "family_earth" / "runs.jsonl").write_text("\n".join([*lines, '{"arm": "half']))
    family_page.main([tmp_path / "family_earth"], tmp_path / "family")
    text = (tmp_path / "family.md").read_text()
    assert "**+2.0 [+2.0, +2.0]**" in text
    assert "| MoCo | 55.0 [-8.5, 118.5] |" in text
    assert (tmp_path / "family.png").stat().st_size > 10_000
