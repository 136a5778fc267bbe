"""Storage: what a crop decodes, of real files in strips, tiles, one block and JPEG; what is said before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.windows import Window

from terrasieve import manifest
from terrasieve.curate.scan import scan
from terrasieve.data import images, storage
from terrasieve.data.augment import ImageSettings
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe

IMAGE = ImageSettings(size_px=32)
LAYOUTS = {
    "strips": {"blockysize": 4},
    "tiles": {"tiled": True, "blockxsize": 32, "blockysize": 32},
    "one_block": {"blockysize": 256},
}


def scene(path: Path, side: int = 256) -> str:
    draw = np.random.Generator(np.random.Philox(1))
    pixels = draw.integers(0, 255, (3, side, side), dtype=np.uint8)
    if path.suffix == ".jpg":
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    else:
        shape = {"width": side, "height": side, "count": 3, "dtype": "uint8"}
        with rasterio.open(path, "w", driver="GTiff", compress="zstd", **shape, **LAYOUTS[path.stem]) as file:
            file.write(pixels)
    return str(path)


def images_of(folder: Path, windows: list[tuple[int, int, int, int]] | None = None) -> images.Images:
    rows = scan(folder).table.to_pylist()
    if windows:
        rows = [row | {"id": f"{row['id']}{n}", "window": list(w)} for row in rows for n, w in enumerate(windows)]
    return images.from_table(manifest.rows_to_table(rows))


@pytest.mark.parametrize("name", ["strips.tif", "tiles.tif", "one_block.tif", "picture.jpg"])
def test_decoded_pixels_are_those_of_all_places_of_a_crop(tmp_path: Path, name: str) -> None:
    path = scene(tmp_path / name)
    found = storage.take(images_of(tmp_path, [(96, 64, 64, 64)]), IMAGE, None, seed=0)
    assert found is not None and found.uri == path
    side = round(64 * 0.6**0.5)
    if path.endswith(".jpg"):
        blocks = (256, 256)
    else:
        with rasterio.open(path) as file:
            blocks = file.block_shapes[0]
            windows = [window for _, window in file.block_windows(1)]
        counts = []
        for start in range(0, 256 - side + 1, 7):
            crop = Window(start, start, side, side)
            touched = [w for w in windows if rasterio.windows.intersect(w, crop)]
            counts.append(sum(w.width * w.height for w in touched))
        assert found.decoded == pytest.approx(np.mean(counts) / side**2, rel=0.12)
    assert found.block_px == (blocks[1], blocks[0])


def test_small_windows_of_large_blocks_are_told_and_how_to_mend_it(tmp_path: Path) -> None:
    scene(tmp_path / "one_block.tif")
    windows = [(x, y, 32, 32) for x in range(0, 224, 32) for y in range(0, 224, 32)]
    told = storage.note(storage.take(images_of(tmp_path, windows), IMAGE, None, seed=0))
    assert told and "107 times its pixels" in told and "256 x 256 px" in told and "gdal_translate -co TILED" in told
    (tmp_path / "one_block.tif").unlink()
    scene(tmp_path / "tiles.tif")
    assert storage.note(storage.take(images_of(tmp_path, windows), IMAGE, None, seed=0)) is None
    (tmp_path / "tiles.tif").unlink()
    scene(tmp_path / "picture.jpg")
    told = storage.note(storage.take(images_of(tmp_path, windows), IMAGE, None, seed=0))
    assert told and "files of their own" in told and "gdal" not in told


def test_chips_shards_and_urls_are_no_matter(tmp_path: Path, small_manifest: Path) -> None:
    table = manifest.read(small_manifest)
    assert storage.note(storage.take(images.from_table(table), IMAGE, None, seed=0)) is None
    rows = [row | {"uri": f"https://nowhere.invalid/{n}.tif"} for n, row in enumerate(table.to_pylist())]
    far = images.from_table(manifest.rows_to_table(rows))
    assert storage.take(far, IMAGE, None, seed=0) is None


def test_a_run_begins_with_it(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    scene(folder / "one_block.tif", 512)
    rows = scan(folder).table.to_pylist()
    windows = [[x, 0, 32, 32] for x in range(0, 512, 32)]
    rows = [row | {"id": f"{row['id']}{n}", "window": window} for row in rows for n, window in enumerate(windows)]
    manifest.write(manifest.rows_to_table(rows), tmp_path / "windows.parquet")
    notes: list[str] = []
    pretrain(tiny(data=str(tmp_path / "windows.parquet"), steps=1), tmp_path / "run", on_note=notes.append)
    assert any("times its pixels" in note for note in notes)
