"""Shards hold what the manifest keeps, pixel for pixel, neighbours side by side, and are mended where damaged."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio.transform import from_origin

from terrasieve import keyed, manifest
from terrasieve.curate import shard_plan
from terrasieve.curate.engine import Local, Lost
from terrasieve.curate.scan import scan
from terrasieve.curate.shards import ShardSettings, damaged, export_shards, read_index
from terrasieve.curate.step import Work
from terrasieve.errors import UserError
from terrasieve.imagery import geo, members
from terrasieve.imagery.raster import header, read

SMALL = ShardSettings(shard_mb=0.06)


def pixels(count: int, size: int, dtype: str, *key: int) -> np.ndarray:
    """Draw an image that compresses about as well as imagery does."""
    draw = keyed.numpy_generator(0, "test", *key)
    top = {"uint8": 250, "uint16": 9000, "float32": 1}[dtype]
    coarse = draw.random((count, size // 8, size // 8)).repeat(8, 1).repeat(8, 2)
    return (top * (coarse * 0.9 + draw.random((count, size, size)) * 0.1)).astype(dtype)


def tiff(path: Path, array: np.ndarray, lon: float | None = None, **more: Any) -> Path:
    place = {} if lon is None else {"crs": "EPSG:4326", "transform": from_origin(lon, 10 + lon / 3, 1e-4, 1e-4)}
    shape = {"count": array.shape[0], "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
    with rasterio.open(path, "w", "GTiff", **shape, **place, **more) as file:
        file.write(array)
    return path


def window(row: dict[str, Any], x: int, y: int, size: int) -> dict[str, Any]:
    at = [x, y, size, size]
    return row | {"id": manifest.row_id(row["uri"], at), "window": at, "width": size, "height": size}


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of every kind of row: files, windows, members of a tar, dropped ones and one that has vanished."""
    root = tmp_path_factory.mktemp("shards")
    folder = root / "images"
    folder.mkdir()
    for number in range(20):
        array = pixels(3, 48, "uint8", number)
        Image.fromarray(array.transpose(1, 2, 0)).save(folder / f"plain{number:02d}.{('jpg', 'png')[number % 2]}")
    for number in range(24):
        tiff(folder / f"place{number:02d}.tif", pixels(4, 40, "uint16", number, 1), lon=(number * 37) % 300 - 150)
    tiff(folder / "scene_rgb.tif", pixels(3, 128, "uint8", 9), lon=5, photometric="rgb")
    tiff(folder / "scene_nodata.tif", pixels(1, 128, "uint8", 10), lon=6, nodata=3)
    tiff(folder / "scene_float.tif", pixels(2, 128, "float32", 11))
    with tarfile.open(root / "source.tar", "w") as tar:
        tar.add(folder / "plain00.jpg", "in/a.jpg")
        tar.add(folder / "place00.tif", "in/b.tif")
    with tarfile.open(root / "source.tar") as tar:
        uris = [members.member_uri(tar.name, info.name, info.offset_data, info.size) for info in tar]
    rows = scan(folder).table.to_pylist()
    by_name = {Path(row["uri"]).name: row for row in rows}
    rows += [by_name["plain00.jpg"] | {"uri": uris[0], "id": manifest.row_id(uris[0]), "source": "tar"}]
    rows += [by_name["place00.tif"] | {"uri": uris[1], "id": manifest.row_id(uris[1]), "source": "tar"}]
    for name in ("scene_rgb.tif", "scene_nodata.tif", "scene_float.tif"):
        rows.remove(by_name[name])
        rows += [window(by_name[name], x, y, 64) for x in (0, 64) for y in (0, 64)]
    rows += [by_name["plain01.png"] | {"id": "0" * 16, "keep": False, "reason": "duplicate: of another"}]
    (folder / "plain03.png").unlink()
    with (folder / "plain05.png").open("r+b") as file:
        file.truncate(3000)
    Image.new("RGB", (30, 30)).save(folder / "plain07.png")
    for number, row in enumerate(rows):
        row["label"], row["group"] = ("water", None)[number % 2], number % 5 if number % 3 else None
    manifest.write(manifest.rows_to_table(rows), root / "manifest.parquet")
    return root / "manifest.parquet"


def export(source: Path, folder: Path, settings: ShardSettings = SMALL, engine: Any = None, **more: Any) -> Any:
    return export_shards(source, folder, settings, Work(folder, engine or Local(1), **more))


@pytest.fixture(scope="module")
def exported(curated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "shards"
    export(curated, folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_kept_row_is_there_pixel_for_pixel(curated: Path, exported: Path, tmp_path: Path) -> None:
    ticks: list[tuple[int, int]] = []
    result = export(curated, tmp_path / "shards", tick=lambda *numbers: ticks.append(numbers))
    before = {row["id"]: row for row in manifest.read(curated).to_pylist() if row["keep"]}
    after = manifest.read(exported / "manifest.parquet").to_pylist()
    assert {row["id"] for row in after} == set(before) and len(after) == len(before)
    gone = {Path(row["uri"]).name: row["reason"].partition(":")[0] for row in after if not row["keep"]}
    assert gone == {"plain03.png": "missing", "plain05.png": "truncated", "plain07.png": "unreadable"}
    assert (result.rows, result.kept) == (len(before), len(before) - 3)
    assert result.dropped == Counter(missing=1, truncated=1, unreadable=1)
    assert ticks[-1] == (len(before), len(before)) and ticks == sorted(ticks)
    for row in (row for row in after if row["keep"]):
        was = before[row["id"]]
        ours, oracle = read(row["uri"]), read(was["uri"], was["window"])
        assert np.array_equal(ours.array, oracle.array) and ours.array.dtype == oracle.array.dtype == row["dtype"]
        assert np.array_equal(ours.valid, oracle.valid) if oracle.valid is not None else ours.valid is None
        assert {k: v for k, v in row.items() if k not in ("uri", "window")} == {
            k: v for k, v in was.items() if k not in ("uri", "window")
        }
        found = header(row["uri"], ends=True)
        assert (found.width, found.height, found.dtype) == (row["width"], row["height"], row["dtype"])
        if row["crs"] and found.format == "tiff":
            outline = geo.footprint(found.transform, found.crs, found.width, found.height)
            assert found.crs == row["crs"]
            if was["window"] is None:
                assert shapely.from_wkb(row["geometry"]).equals_exact(outline, 1e-9)
    kinds = Counter(members.parse(row["uri"]).name.rpartition(".")[2] for row in after if row["keep"])
    assert kinds == {"jpg": 11, "png": 7 + 4, "tif": 25 + 8}


def test_neighbours_sit_together(curated: Path, exported: Path) -> None:
    rows = manifest.read(exported / "manifest.parquet").to_pylist()
    number = {row["id"]: n for n, row in enumerate(manifest.read(curated).to_pylist())}
    placed = [row for row in rows if row["lon"] is not None]
    assert rows[: len(placed)] == placed, "those without coordinates follow"
    keys = geo.hilbert_order([row["lon"] for row in placed], [row["lat"] for row in placed], 24)
    assert (np.diff(keys) >= 0).all()
    sources = {
        name: n for n, name in enumerate(dict.fromkeys(row["source"] for row in manifest.read(curated).to_pylist()))
    }
    rest = [
        (sources[row["source"]], -1 if row["group"] is None else row["group"], number[row["id"]])
        for row in rows[len(placed) :]
    ]
    assert rest == sorted(rest) and len({source for source, _, _ in rest}) == 2


def test_shards_are_webdatasets(exported: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    index = read_index(exported).to_pylist()
    assert len(index) > 4
    sizes = [row["bytes"] for row in index]
    assert max(sizes) < 2 * SMALL.shard_mb * 1e6
    table = manifest.read(exported / "manifest.parquet").to_pylist()
    rows = {row["id"]: row for row in table if row["keep"]}
    seen = []
    for shard in index:
        samples = list(webdataset.WebDataset(str(exported / shard["shard"]), shardshuffle=False))
        assert len(samples) == shard["samples"]
        for sample in samples:
            row, about = rows[sample["__key__"]], json.loads(sample["json"])
            (suffix,) = {key for key in sample if not key.startswith("__")} - {"json"}
            assert sample[suffix] == members.read_bytes(members.parse(row["uri"]))
            assert about["id"] == sample["__key__"] and about.get("label") == row["label"]
            assert about["bands"] == row["bands"] and about.get("lon") == row["lon"]
            assert "geometry" not in about or shapely.from_geojson(json.dumps(about["geometry"])).equals_exact(
                shapely.from_wkb(row["geometry"]), 1e-9
            )
        outlines = [rows[s["__key__"]]["geometry"] for s in samples if rows[s["__key__"]]["geometry"]]
        bounds = shapely.total_bounds(shapely.from_wkb(outlines)).tolist() if outlines else None
        assert shard["bounds"] == bounds
        seen += [sample["__key__"] for sample in samples]
    assert seen == [row["id"] for row in table if row["keep"]]
    rgb = next(s for s in seen if rows[s]["dtype"] == "uint8" and rows[s]["crs"])
    with tarfile.open(members.parse(rows[rgb]["uri"]).archive) as tar:
        about = json.loads(tar.extractfile(f"{rgb}.json").read())  # type: ignore[union-attr]
    x, y, _, _ = about["window"]
    assert about["transform"] == pytest.approx([1e-4, 0, 5 + x * 1e-4, 0, -1e-4, 10 + 5 / 3 - y * 1e-4])


def test_the_same_manifest_gives_the_same_bytes(curated: Path, exported: Path, tmp_path: Path) -> None:
    export(curated, tmp_path / "shards", engine=Local(2))
    assert content(tmp_path / "shards") == content(exported)
    for path in exported.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert all((i.mtime, i.uid, i.gid, i.uname, i.gname) == (0, 0, 0, "", "") for i in tar)


def test_a_moved_folder_is_the_same_data(exported: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(exported, moved)
    before, after = (manifest.read(folder / "manifest.parquet") for folder in (exported, moved))
    assert manifest.content_hash(before) == manifest.content_hash(after)
    kept = [row["uri"] for row in after.to_pylist() if row["keep"]]
    assert all(uri.startswith(f"{moved}/") for uri in kept)


class Interrupted(Local):
    """An engine that is interrupted after some parts."""

    def __init__(self, after: int) -> None:
        super().__init__(1)
        self.after = after

    def run(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[tuple[int, Any | Lost]]:
        yield from super().run(work, parts[: self.after])
        raise KeyboardInterrupt


def test_an_interrupted_export_goes_on(curated: Path, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    with pytest.raises(KeyboardInterrupt):
        export(curated, folder, engine=Interrupted(3))
    assert not (folder / "manifest.parquet").exists()
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert sorted(times) == ["000000.tar", "000001.tar", "000002.tar"]
    (folder / "000001.tar").write_bytes(b"something else of another length")
    with (folder / "000002.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"?")
    export(curated, folder)
    assert content(folder) == content(exported)
    assert (folder / "000000.tar").stat().st_mtime_ns == times["000000.tar"], "it was whole and stayed"


def test_damaged_shards_are_named_and_mended(curated: Path, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(exported, folder)
    work = Work(folder, Local(1))
    assert damaged(folder, work) == {}
    (folder / "000000.tar").unlink()
    data = bytearray((folder / "000001.tar").read_bytes())
    data[700] ^= 4
    (folder / "000001.tar").write_bytes(data)
    (folder / "000003.tar").write_bytes((folder / "000003.tar").read_bytes()[:-1])
    kept = (folder / "000002.tar").stat().st_mtime_ns
    assert [wrong.partition(":")[0] for wrong in damaged(folder, work).values()] == ["missing", "altered", "cut off"]
    result = export(curated, folder)
    assert content(folder) == content(exported) and len(result.notes) == 3
    assert (folder / "000002.tar").stat().st_mtime_ns == kept
    assert export(curated, folder).notes == [f"The shards in {folder} were there and whole."]


def test_another_export_takes_the_place_of_the_first(curated: Path, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(exported, folder)
    export(curated, folder, ShardSettings(shard_mb=100, jpeg_quality=80))
    assert [path.name for path in sorted(folder.iterdir())] == ["000000.tar", "index.parquet", "manifest.parquet"]
    rows = manifest.read(folder / "manifest.parquet").to_pylist()
    before = {row["id"]: row for row in manifest.read(curated).to_pylist()}
    lossy = [row for row in rows if before[row["id"]]["window"] and members.parse(row["uri"]).name.endswith("jpg")]
    assert len(lossy) == 4, "windows of the 8-bit RGB scene, not those with a no-data value"
    for row in lossy:
        was = before[row["id"]]
        difference = read(row["uri"]).array.astype(int) - read(was["uri"], was["window"]).array
        assert 0 < np.abs(difference).mean() < 12


def test_many_passes_give_the_plan_of_one(curated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: Any = (60_000, False, "key")
    count = shard_plan.write_plan(curated, tmp_path / "one", *arguments)
    monkeypatch.setattr(shard_plan, "HELD", 9)
    monkeypatch.setattr(shard_plan, "ROW_GROUP", 4)
    assert shard_plan.write_plan(curated, tmp_path / "many", *arguments) == count
    one, many = (pq.ParquetFile(tmp_path / name) for name in ("one", "many"))
    assert one.read().equals(many.read()) and one.num_row_groups == many.num_row_groups > 4
    assert shard_plan.has_key(tmp_path / "one", "key") and not shard_plan.has_key(tmp_path / "one", "other")


def test_what_cannot_be_exported_is_said(curated: Path, tmp_path: Path) -> None:
    table = manifest.read(curated)
    manifest.write(pa.concat_tables([table, table.slice(0, 2)]), tmp_path / "twins.parquet")
    with pytest.raises(UserError, match="keeps 2 rows whose id another kept row has"):
        export(tmp_path / "twins.parquet", tmp_path / "shards")
    none = table.set_column(table.column_names.index("keep"), "keep", pa.array([False] * len(table)))
    manifest.write(none, tmp_path / "none.parquet")
    with pytest.raises(UserError, match="keeps none of its"):
        export(tmp_path / "none.parquet", tmp_path / "shards")
    with pytest.raises(UserError, match="holds no index of shards"):
        damaged(tmp_path, Work(tmp_path))
