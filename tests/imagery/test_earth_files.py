"""Files of the procedural Earth: GeoTIFFs, JPEGs, masks, boxes, manifest rows, splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from terrasieve.errors import UserError
from terrasieve.imagery.earth import LAND_COVER, RGB, write_chips

SEED = 3


def test_geotiffs_agree_with_their_rows(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip("rasterio.warp")
    shapely = pytest.importorskip("shapely")
    import pyarrow as pa
    import pyarrow.parquet as pq

    from terrasieve.manifest import SCHEMA

    ticks: list[None] = []
    rows = write_chips(tmp_path, 14, SEED, size_px=48, masks=True, on_chip=lambda: ticks.append(None))
    assert len(rows) == len(ticks) == 14
    pa.Table.from_pylist(rows, SCHEMA)
    for row in rows:
        assert list(row) == SCHEMA.names
        path = Path(row["uri"])
        assert path.parent.name == row["label"]
        with rasterio.open(path) as file, rasterio.open(tmp_path / "masks" / row["label"] / path.name) as mask:
            assert file.crs.to_string() == row["crs"] == mask.crs.to_string()
            assert file.descriptions == ("blue", "green", "red", "nir")
            assert (file.width, file.height, file.dtypes[0]) == (48, 48, "uint16")
            assert file.res == (10.0, 10.0) and file.bounds == mask.bounds
            centre = rasterio.warp.transform(file.crs, "EPSG:4326", *[[value] for value in file.xy(23.5, 23.5)])
            assert (centre[0][0], centre[1][0]) == pytest.approx((row["lon"], row["lat"]), abs=1e-6)
            assert shapely.from_wkb(row["geometry"]).contains(shapely.Point(row["lon"], row["lat"]))
            names = {LAND_COVER[index] for index in np.unique(mask.read(1))}
            assert set(row["labels"]) <= names
    boxes = pq.read_table(tmp_path / "boxes.parquet").to_pylist()
    assert {box["id"] for box in boxes} <= {row["id"] for row in rows}
    assert not list(tmp_path.rglob("*.part"))


def test_jpegs(tmp_path: Path) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    rows = write_chips(tmp_path, 5, SEED, size_px=64, gsd_m=(0.5, 1.0), format="jpg", split="random")
    assert {row["gsd_m"] for row in rows} <= {0.5, 1.0}
    for row in rows:
        image = simplejpeg.decode_jpeg(Path(row["uri"]).read_bytes())
        assert image.shape == (64, 64, 3) and row["bands"] == list(RGB) and row["dtype"] == "uint8"


def test_splits_do_not_share_blocks(tmp_path: Path) -> None:
    rows = write_chips(tmp_path, 40, SEED, size_px=16)
    blocks: dict[tuple[int, int], set[str]] = {}
    for row in rows:
        blocks.setdefault((int((row["lon"] + 180) // 5), int((row["lat"] + 90) // 5)), set()).add(row["split"])
    assert {len(splits) for splits in blocks.values()} == {1}
    assert {split for splits in blocks.values() for split in splits} == {"train", "test"}


def test_visits_are_of_one_place_at_other_dates(tmp_path: Path) -> None:
    once = write_chips(tmp_path / "once", 4, SEED, size_px=32)
    rows = write_chips(tmp_path / "visits", 12, SEED, size_px=32, visits=3, shift=0.25)
    shapely = pytest.importorskip("shapely")
    for place in range(4):
        first, *later = rows[3 * place : 3 * place + 3]
        assert {**first, "id": 0, "uri": 0} == {**once[place], "id": 0, "uri": 0}
        assert len({row["datetime"] for row in (first, *later)}) == 3
        assert {row["split"] for row in later} == {first["split"]}
        ground = shapely.from_wkb(first["geometry"])
        for row in later:
            shared = shapely.from_wkb(row["geometry"]).intersection(ground).area / ground.area
            assert 0.7**2 < shared < 1  # at most a quarter of the side in each direction, and half a pixel
    with pytest.raises(UserError, match=r"shift = 1\.5"):
        write_chips(tmp_path, 1, visits=2, shift=1.5)


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        write_chips(tmp_path / "taken", 1)
    with pytest.raises(UserError, match="png"):
        write_chips(tmp_path, 1, format="png")  # type: ignore[arg-type]


@pytest.mark.slow
def test_worker_count_does_not_change_the_files(tmp_path: Path) -> None:
    rows = [write_chips(tmp_path / name, 208, SEED, size_px=16, workers=n) for name, n in (("one", 1), ("two", 2))]
    files = [
        sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*.tif")) for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files[0])
    assert [row["label"] for row in rows[0]] == [row["label"] for row in rows[1]]
