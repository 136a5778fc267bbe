"""The catalog: every data set is read from a small copy in its true layout, and a wrong one is told what it lacks."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copies_of_sets import WRITERS
from typer.testing import CliRunner

from terrasieve import cli, manifest
from terrasieve.curate import catalogued
from terrasieve.data import catalog, images
from terrasieve.data.catalog import boxes
from terrasieve.errors import UserError

Copies = dict[str, tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """One copy of each data set, named as $TERRASIEVE_DATA has it."""
    top = tmp_path_factory.mktemp("sets")
    return {name: (top / name, write(top / name)) for name, write in WRITERS.items()}


def test_every_entry_has_a_copy() -> None:
    assert set(WRITERS) == set(catalog.ENTRIES)


@pytest.mark.parametrize("name", sorted(catalog.ENTRIES))
def test_true_layout(name: str, copies: Copies) -> None:
    root, wanted = copies[name]
    found = catalogued.gather(f"catalog:{name}@{root}")
    table = catalogued.table_of(found, workers=1)
    reasons = [reason for reason in table["reason"].to_pylist() if reason]
    assert not reasons, reasons
    assert Counter(table["split"].to_pylist()) == wanted["splits"]
    assert {len(bands) for bands in table["bands"].to_pylist()} == {wanted["bands"]}
    entry = catalog.find(name)
    read = images.from_table(table)
    assert entry.bands in ((), read.bands)
    first, last = read.read(0), read.read(len(read) - 1)
    assert first.array.shape[0] == wanted["bands"]
    assert last.array.std() > 0
    given = {label for item in found.items for label in (item.labels or (item.label,)) if label}
    if "boxes" in wanted:
        drawn = catalogued.boxes_of(found, table)
        assert drawn is not None
        assert drawn.num_rows == wanted["boxes"]
        assert set(drawn["id"].to_pylist()) == set(table["id"].to_pylist())
        given = set(drawn["name"].to_pylist())
    if "classes" in wanted:
        assert given == wanted["classes"]
        assert given <= set(entry.classes)
    if "placed" in wanted:
        assert np.allclose((table["lon"][0].as_py(), table["lat"][0].as_py()), wanted["placed"], atol=1e-3)
    if entry.coordinates:
        assert table["lon"].null_count == 0, "the source holds coordinates, so the manifest does"


@pytest.mark.parametrize("name", sorted(catalog.ENTRIES))
def test_wrong_layout_gets_the_diagnosis(name: str, copies: Copies, tmp_path: Path) -> None:
    entry = catalog.find(name)
    with pytest.raises(UserError, match=r"is no copy of .*\n?.*Expected:"):
        catalogued.gather(f"catalog:{name}@{tmp_path}")
    root, _ = copies[name]
    broken = tmp_path / "deep" / "er" / name
    shutil.copytree(root, broken)
    first = catalogued.gather(f"catalog:{name}@{root}").items[0]
    from terrasieve.data.catalog.copy import files_below

    gone = files_below(first.uri)[0]
    (broken / gone).unlink()
    run = CliRunner().invoke(cli.app, ["datasets", name, "-d", str(tmp_path)])
    assert run.exit_code == 1, "a copy that is not whole"
    said = " ".join(run.output.split())
    assert gone in said or entry.name in NOT_LISTED, said


NOT_LISTED: set[str] = set()  # their makers publish no list of images: what is gone cannot be named, only counted


def test_bands_of_several_files_are_one_image(copies: Copies) -> None:
    root, _ = copies["bigearthnet-v2"]
    table = catalogued.table_of(catalogued.gather(f"catalog:bigearthnet-v2@{root}"), workers=1)
    read = images.from_table(table, ("coastal", "blue", "rededge1"))
    pixels = read.read(2).array
    assert pixels.shape == (3, 120, 120)
    import rasterio

    folder = next(root.glob("BigEarthNet-S2/*/*_28_57"))
    for plane, band in zip(pixels, ("B01", "B02", "B05"), strict=True):
        with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
            own = file.read(1)
        factor = 120 // len(own)
        for y, x in ((0, 0), (5, 119), (119, 7), (63, 64)):
            assert plane[y, x] == own[y // factor, x // factor]
    crop = read.read(2, (11, 20, 50, 30)).array
    assert np.array_equal(crop, pixels[:, 20:50, 11:61])


def test_oriented_boxes(copies: Copies, tmp_path: Path) -> None:
    root, _ = copies["dior-r"]
    output = tmp_path / "dior-r.parquet"
    run = CliRunner().invoke(cli.app, ["datasets", "dior-r", "-d", str(root), "-o", str(output)])
    assert "10 boxes" in run.output
    table = boxes.read(output)
    flat, tilted = table["obb"].to_pylist()[:2]
    assert np.allclose(flat, (25, 25, 30, 10, 0), atol=1e-4)
    assert np.allclose(tilted, (50, 30, 30 * math.sqrt(2), 10 * math.sqrt(2), math.pi / 4), atol=1e-4)
    assert np.allclose(table["xyxy"].to_pylist()[1], (30, 10, 70, 50))
    assert set(table["id"].to_pylist()) == set(manifest.read(output)["id"].to_pylist())


def test_horizontal_boxes_count_pixels_from_1(copies: Copies) -> None:
    root, _ = copies["dior"]
    found = catalogued.gather(f"catalog:dior@{root}")
    assert found.items[0].boxes is not None
    assert found.items[0].boxes[0] == ("ship", (10.0, 20.0, 30.0, 60.0), None, False)


@pytest.mark.parametrize("turn", range(0, 360, 7))
def test_le90_of_corners(turn: int) -> None:
    """A rectangle of 30 x 10 turned by any angle, its corners in any order of beginning, is found again."""
    angle = math.radians(turn)
    corners = [
        (50 + math.cos(angle) * x - math.sin(angle) * y, 40 + math.sin(angle) * x + math.cos(angle) * y)
        for x, y in ((-15, -5), (15, -5), (15, 5), (-15, 5))
    ]
    for start in range(4):
        box = boxes.oriented("ship", corners[start:] + corners[:start])
        assert box.obb is not None
        x, y, width, height, found = box.obb
        assert np.allclose((x, y, width, height), (50, 40, 30, 10), atol=1e-6)
        assert -math.pi / 2 <= found < math.pi / 2
        assert abs(math.sin(found - angle)) < 1e-6
