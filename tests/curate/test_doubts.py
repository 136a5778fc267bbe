"""Doubts: what files and CSVs say of place and time but cannot mean is warned of, counted and listed by `index`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.transform import from_origin

from terrasieve.curate.scan import scan

PLACE = from_origin(300000, 6100000, 10, 10)


def write(path: Path, crs: str | None = "EPSG:32721", transform: Affine | None = PLACE, time: str | None = None) -> str:
    how: dict[str, Any] = {"width": 32, "height": 32, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **how) as file:
        file.write(np.arange(1024, dtype=np.uint8).reshape(1, 32, 32))
        if time:
            file.update_tags(TIFFTAG_DATETIME=time)
    return str(path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"crs": None}, "1 of 2 images have a footprint without a CRS, and so no place"),
        ({"time": "2020:13:45 99:00:00"}, "1 of 2 images have a time that does not parse"),
        ({"transform": Affine(0, 0, 300000, 0, 0, 6100000)}, "1 of 2 images have a footprint without area"),
        ({"crs": "EPSG:4326", "transform": Affine(1e-4, 0, -34.6, 0, -1e-4, -158.4)}, "1 of 2 .* swapped, most likely"),
    ],
)
def test_a_file_that_cannot_mean_what_it_says(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    write(tmp_path / "good.tif", time="2020:05:06 07:08:09", transform=from_origin(400000, 6100000, 10, 10))
    bad = write(tmp_path / "bad.tif", **how)
    result = scan(tmp_path, labels="none")
    assert result.summary.kept == 2
    (note,) = result.summary.notes
    assert re.search(words, note)
    assert bad in note and "good.tif" not in note


def test_good_files_and_files_without_a_place_are_no_doubt(tmp_path: Path) -> None:
    write(tmp_path / "good.tif", time="2020:05:06 07:08:09")
    write(tmp_path / "plain.tif", crs=None, transform=None)
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.jpg")
    assert scan(tmp_path, labels="none").summary.notes == []


def test_exif_times(tmp_path: Path) -> None:
    for name, time in (("a", "0000:00:00 00:00:00"), ("b", "2020:05:06 07:08:09")):
        exif = Image.Exif()
        exif[0x0132] = time
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.jpg", exif=exif)
    result = scan(tmp_path, labels="none")
    (note,) = result.summary.notes
    assert note.startswith("1 of 2 images have a time that does not parse") and "a.jpg" in note
    assert [time is None for time in result.table["datetime"].to_pylist()] == [True, False]


def test_times_and_bounds_of_a_csv_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    for name in "abcdef":
        write(tmp_path / f"{name}.tif", crs=None, transform=None)
    lines = ["path,datetime,left,bottom,right,top,epsg"]
    lines += ["a.tif,2020-01-01,0,0,320,320,32721", "b.tif,31/12/2020,0,0,320,320,32721", "c.tif,never,5,5,5,6,32721"]
    lines += ["d.tif,,0,9,320,9,32721", "e.tif,2020-02-30,,,,,", "f.tif,2020-02-28,400000,0,400320,320,"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    result = scan(tmp_path / "list.csv")
    found = {row["uri"][-5]: row for row in result.table.to_pylist()}
    assert all(row["keep"] for row in found.values())
    assert "".join(name for name, row in found.items() if row["datetime"]) == "af"
    assert "".join(name for name, row in found.items() if row["geometry"]) == "ab"
    left_out, no_crs = result.summary.notes
    assert "left out: 5" in left_out and "line 3: datetime is '31/12/2020'" in left_out
    assert no_crs.startswith("1 of 6 images have a footprint without a CRS") and "f.tif" in no_crs


def test_a_csv_that_contradicts_the_files(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.tif", transform=from_origin(300000 + 320 * number, 6100000, 10, 10))
    place = scan(tmp_path, labels="none").table.slice(0, 1).to_pylist()[0]
    rows = [f"0.tif,{place['lat']},{place['lon']},10", "1.tif,,,60"]
    (tmp_path / "list.csv").write_text("path,lon,lat,gsd_m\n" + "\n".join(rows))
    notes = scan(tmp_path, labels="none", csv=tmp_path / "list.csv").summary.notes
    assert len(notes) == 2
    assert "1 of 3 images have a footprint that contradicts the GSD by more than 10 %, e.g." in notes[0]
    assert "1.tif" in notes[0]
    assert "1 of 3 images have longitude and latitude swapped" in notes[1] and "0.tif" in notes[1]
